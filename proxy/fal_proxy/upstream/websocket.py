"""A WebSocket to upstream: our dialling and our fields, the framing of `websockets`. Whole messages in, whole messages out.

The connection is dialled like every other and belongs to one session. `open_socket` returns a Socket once upstream has
answered 101, and a Denied, which is an ordinary answer, when it says anything else. What a Socket yields last is a
Closing: 1005 for a close frame without a code, 1006 for an end without a close frame.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from websockets.client import ClientProtocol
from websockets.datastructures import Headers as Fields
from websockets.exceptions import InvalidState
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.uri import WebSocketURI

from fal_proxy.errors import UpstreamInvalid, UpstreamTimeout
from fal_proxy.headers import Headers
from fal_proxy.upstream.connection import HIGH_WATER_BYTES, Connection
from fal_proxy.upstream.dial import Dialer, Origin

MESSAGE_BYTES = 16 * 1024 * 1024  # the largest that upstream may send
SLICE_BYTES = 16 * 1024  # parsed at once: frames can be as short as two bytes
TURN_SECONDS = 0.002  # of parsing, before others have their turn
MESSAGE_OVERHEAD_BYTES = 128  # what an empty one takes of our memory
HANDSHAKE_SECONDS = 90.0  # a cold start; what fal's own Python client waits
CLOSE_SECONDS = 10.0  # for upstream to answer our close frame
NO_CODE, NO_FRAME = 1005, 1006
# What may stand in a close frame (RFC 6455 §7.4, IANA's registry).
SENDABLE_CODES = frozenset([1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)])
_QUIET = logging.getLogger("fal_proxy.websocket")
_QUIET.setLevel(logging.CRITICAL)  # it would log frames, and with them prompts and pictures


class Message(NamedTuple):
    """One message; text is UTF-8 that was not looked at."""

    data: bytes
    text: bool


class Closing(NamedTuple):
    """How the other side ended."""

    code: int
    reason: str = ""
    broken: bool = False  # without a close frame of theirs


class Denied(NamedTuple):
    """Upstream's answer when it did not switch protocols."""

    status: int
    headers: Headers
    body: bytes


class Socket:
    """An open WebSocket. Whoever opened it calls `abort` at the end, whatever happened."""

    def __init__(self, connection: Connection, protocol: ClientProtocol) -> None:
        self._connection = connection
        self._protocol = protocol
        self._messages: deque[Message | Closing] = deque()
        self._waiting_bytes = 0
        self._partial = bytearray()  # of a message
        self._is_text = False
        self._waiter: asyncio.Future[None] | None = None
        self._response: Response | None = None
        self.headers: Headers = []  # of the 101
        self._ended = False
        self._unread = bytearray()  # received, and not parsed yet
        self._turn: asyncio.Handle | None = None
        self._unanswered_pings = 0
        self._timer: asyncio.TimerHandle | None = None

    async def receive(self) -> Message | Closing:
        """Return the next message, or how it ended."""
        while not self._messages:
            await self._wait()
        message = self._messages[0]
        if isinstance(message, Message):
            self._messages.popleft()
            self._waiting_bytes -= len(message.data) + MESSAGE_OVERHEAD_BYTES
            if self._waiting_bytes < HIGH_WATER_BYTES:
                self._read()
        return message

    def send(self, message: Message) -> None:
        """Send a message; the caller awaits `drained()` while `write_paused`. After the end it means nothing."""
        try:
            if message.text:
                self._protocol.send_text(message.data)
            else:
                self._protocol.send_binary(message.data)
        except InvalidState:
            return
        self._flush()

    @property
    def write_paused(self) -> bool:
        """Say whether upstream is slower than we write."""
        return self._connection.write_paused

    async def drained(self) -> None:
        """Return when upstream has taken enough, or the connection is gone."""
        await self._connection.drained()

    def ping(self) -> bool:
        """Ask whether upstream is still there; False when it has not answered the last two times."""
        if self._waiting_bytes >= HIGH_WATER_BYTES:
            return True  # nothing is read now, and the answer lies behind what waits
        if self._unanswered_pings >= 2:
            return False
        if self._protocol.state is State.OPEN:
            self._unanswered_pings += 1
            self._protocol.send_ping(b"fal-proxy")
            self._flush()
        return True

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame (none for NO_FRAME: just end); the connection ends when upstream has answered, or soon."""
        if code == NO_FRAME:
            self.abort()
            return
        try:
            if code in SENDABLE_CODES:
                self._protocol.send_close(code, reason)
            else:
                self._protocol.send_close()
        except InvalidState:
            return
        self._flush()
        self._expect_end()

    def abort(self) -> None:
        """End at once."""
        if self._timer is not None:
            self._timer.cancel()
        self._connection.abort()

    # Listener

    def on_bytes(self, data: bytes) -> None:
        """Take what arrived."""
        if not self._ended:
            self._unread += data
            self._read()

    def on_end(self) -> None:
        """Learn that upstream closed its direction."""
        if not self._ended:
            self._parse(len(self._unread))
        if not self._ended:
            self._protocol.receive_eof()
            self._take_events()
            self._end()
            self._connection.close()

    def on_lost(self, reason: str) -> None:
        """Learn that the connection is gone."""
        if not self._ended:
            self._parse(len(self._unread))
        self._end()
        if self._timer is not None:
            self._timer.cancel()

    def _read(self) -> None:
        """Parse a little at a time, so that no flood of tiny frames keeps other sessions waiting."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        loop = asyncio.get_running_loop()
        ends = loop.time() + TURN_SECONDS
        while self._unread and self._waiting_bytes < HIGH_WATER_BYTES and not self._ended:
            if loop.time() >= ends:
                self._turn = loop.call_soon(self._read)
                break
            self._parse(SLICE_BYTES)
        if (self._unread or self._waiting_bytes >= HIGH_WATER_BYTES) and not self._ended:
            self._connection.pause_reading()
        else:
            self._connection.resume_reading()

    def _parse(self, size: int) -> None:
        data = bytes(self._unread[:size])
        del self._unread[:size]
        self._protocol.receive_data(data)
        self._take_events()
        self._flush()
        if self._protocol.handshake_exc is not None or self._protocol.parser_exc is not None:
            self._end()

    def _take_events(self) -> None:
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self._response = event
                self._wake()
            elif isinstance(event, Frame):
                self._take_frame(event)

    def _take_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            self._end()
        elif frame.opcode is Opcode.PONG:
            self._unanswered_pings = 0
        elif frame.opcode is not Opcode.PING:
            if frame.opcode is not Opcode.CONT:
                self._is_text = frame.opcode is Opcode.TEXT
            whole = frame.fin and frame.opcode is not Opcode.CONT
            if not whole:
                self._partial += frame.data
            if frame.fin:
                data = bytes(frame.data if whole else self._partial)
                self._partial.clear()
                self._waiting_bytes += len(data) + MESSAGE_OVERHEAD_BYTES
                self._messages.append(Message(data, self._is_text))
                self._wake()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._unread.clear()
        received = self._protocol.close_rcvd
        failed = self._protocol.parser_exc is not None and self._protocol.close_sent is not None
        if failed and (sent := self._protocol.close_sent) is not None:
            code = 1009 if sent.code == 1009 else 1011
            self._messages.append(Closing(code, "fal broke the protocol of WebSockets", broken=True))
        elif received is not None:
            self._messages.append(Closing(received.code, received.reason))
        else:
            self._messages.append(Closing(NO_FRAME, broken=True))
        self._expect_end()
        self._wake()

    def _expect_end(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.abort)

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._connection.write(data)
            else:
                self._connection.close()  # the end of our direction

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _shake_hands(self, request: Request) -> Response:
        self._connection.listen(self)
        self._protocol.send_request(request)
        self._flush()
        while self._response is None and not self._ended:
            await self._wait()
        if self._response is None:
            raise UpstreamInvalid("upstream did not answer the WebSocket handshake as HTTP", written=True)
        return self._response


async def open_socket(
    dialer: Dialer,
    origin: Origin,
    path_and_query: bytes,
    headers: Headers,
    on_written: Callable[[], None] = lambda: None,
) -> Socket | Denied:
    """Open a WebSocket to `origin`; the fields in `headers` are sent after those of the handshake, in their order.

    `on_written` is called once the request goes out.

    Raises UpstreamError (`written` once the request went out). A 101 that does not fit our key is UpstreamInvalid.
    """
    path, _, query = path_and_query.decode("ascii").partition("?")
    uri = WebSocketURI(origin.scheme == "https", origin.host, origin.port, path, query)
    protocol = ClientProtocol(uri, max_size=MESSAGE_BYTES, logger=_QUIET)
    request = protocol.connect()
    host = ("Host", origin.authority.decode("ascii"))
    own = [(name, value) for name, value in request.headers.raw_items() if name != "Host"]
    passed = [(name.decode("ascii"), value.decode("latin-1")) for name, value in headers]
    fields = Fields([host, *own, *passed])
    connection = await dialer.connect(origin)
    socket = Socket(connection, protocol)
    on_written()
    try:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            response = await socket._shake_hands(Request(path_and_query.decode("ascii"), fields))
        if response.status_code == 101:
            if protocol.handshake_exc is not None:
                raise UpstreamInvalid("upstream answered 101 and did not complete the handshake", written=True)
            socket.headers = _pairs(response)
            return socket
    except TimeoutError:
        socket.abort()
        raise UpstreamTimeout("upstream did not answer the WebSocket handshake in time", written=True) from None
    except BaseException:
        socket.abort()
        raise
    socket.abort()
    return Denied(response.status_code, _pairs(response), bytes(response.body))


def _pairs(response: Response) -> Headers:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.raw_items()]
