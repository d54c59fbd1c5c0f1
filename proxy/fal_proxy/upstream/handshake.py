"""The opening of a WebSocket to upstream: our dialling and our fields, the rules of `websockets` for the answer.

The connection is dialled like every other and belongs to one session. `open_socket` returns it Opened once upstream has
answered 101, and a Denied, which is an ordinary answer, when it says anything else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple

from websockets.client import ClientProtocol
from websockets.datastructures import Headers as Fields
from websockets.http11 import Request, Response
from websockets.uri import WebSocketURI

from fal_proxy.errors import UpstreamInvalid, UpstreamTimeout
from fal_proxy.headers import Headers
from fal_proxy.upstream.connection import Connection
from fal_proxy.upstream.dial import Dialer, Origin
from fal_proxy.upstream.websocket import Socket

HANDSHAKE_SECONDS = 90.0  # a cold start; what fal's own Python client waits
_END_OF_HEAD = b"\r\n\r\n"
_QUIET = logging.getLogger("fal_proxy.websocket")
_QUIET.setLevel(logging.CRITICAL)  # it would log fields, and with them the key


class Opened(NamedTuple):
    """A socket, and the fields of upstream's 101."""

    socket: Socket
    headers: Headers


class Denied(NamedTuple):
    """Upstream's answer when it did not switch protocols."""

    status: int
    headers: Headers
    body: bytes


class _Opening:
    """Listen to a connection until it is a WebSocket, or an answer that says otherwise."""

    def __init__(self, connection: Connection, protocol: ClientProtocol) -> None:
        self._connection = connection
        self._protocol = protocol
        self._last = b""  # of the head, so that its end is found across reads
        self.socket: Socket | None = None
        self.answered: asyncio.Future[Response | None] = asyncio.get_running_loop().create_future()

    def send(self, request: Request) -> None:
        """Ask."""
        self._connection.listen(self)
        self._protocol.send_request(request)
        self._flush()

    def on_bytes(self, data: bytes) -> None:
        """Read an answer. What stands behind the head of a 101 is not for the library's eyes."""
        if self.answered.done():
            return
        seen = self._last + data
        at = seen.find(_END_OF_HEAD)
        size = len(data) if at < 0 else at + len(_END_OF_HEAD) - len(self._last)
        self._last = seen[-len(_END_OF_HEAD) + 1 :]
        self._protocol.receive_data(data[:size])
        if self._take_answer() and self._protocol.handshake_exc is None:
            self.socket = Socket(self._connection)
            self.socket.on_bytes(data[size:])
        elif size < len(data) and not self.answered.done():
            self._protocol.receive_data(data[size:])
            self._last = b""
            self._take_answer()

    def on_end(self) -> None:
        """Learn that upstream closed its direction."""
        if not self.answered.done():
            self._protocol.receive_eof()
            self._take_answer()
            self._give_up()

    def on_time(self) -> None:
        """Do nothing: deadlines are kept elsewhere."""

    def on_lost(self, reason: str) -> None:
        """Learn that the connection is gone."""
        self._give_up()

    def _take_answer(self) -> bool:
        for event in self._protocol.events_received():
            if isinstance(event, Response) and not self.answered.done():
                self.answered.set_result(event)
                return True
        if self._protocol.handshake_exc is not None:
            self._give_up()
        return False

    def _give_up(self) -> None:
        if not self.answered.done():
            self.answered.set_result(None)

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            self._connection.write(data)


async def open_socket(
    dialer: Dialer,
    origin: Origin,
    path_and_query: bytes,
    headers: Headers,
    on_written: Callable[[], None] = lambda: None,
) -> Opened | Denied:
    """Open a WebSocket to `origin`; the fields in `headers` are sent after those of the handshake, in their order.

    `on_written` is called once the request goes out. Whoever is given a Socket calls its `abort` or `close` at the end.
    Raises UpstreamError (`written` once the request went out). A 101 that does not fit our key is UpstreamInvalid.
    """
    path, _, query = path_and_query.decode("ascii").partition("?")
    uri = WebSocketURI(origin.scheme == "https", origin.host, origin.port, path, query)
    protocol = ClientProtocol(uri, logger=_QUIET)
    request = protocol.connect()
    host = ("Host", origin.authority.decode("ascii"))
    own = [(name, value) for name, value in request.headers.raw_items() if name != "Host"]
    passed = [(name.decode("ascii"), value.decode("latin-1")) for name, value in headers]
    fields = Fields([host, *own, *passed])
    try:
        return await _shake_hands(
            await dialer.connect(origin), protocol, Request(path_and_query.decode("ascii"), fields), on_written
        )
    finally:
        protocol.parser.close()  # which it holds and is held by: garbage waits for its collector


async def _shake_hands(
    connection: Connection, protocol: ClientProtocol, request: Request, on_written: Callable[[], None]
) -> Opened | Denied:
    opening = _Opening(connection, protocol)
    on_written()
    try:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            opening.send(request)
            response = await opening.answered
        if response is None:
            raise UpstreamInvalid("upstream did not answer the WebSocket handshake as HTTP", written=True)
        if opening.socket is not None:
            return Opened(opening.socket, _pairs(response))
        if response.status_code == 101:
            raise UpstreamInvalid("upstream answered 101 and did not complete the handshake", written=True)
    except TimeoutError:
        connection.abort()
        raise UpstreamTimeout("upstream did not answer the WebSocket handshake in time", written=True) from None
    except BaseException:
        connection.abort()
        raise
    connection.abort()
    return Denied(response.status_code, _pairs(response), bytes(response.body))


def _pairs(response: Response) -> Headers:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.raw_items()]
