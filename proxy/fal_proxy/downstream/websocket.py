"""One caller's WebSocket: uvicorn's protocol on top of `websockets`, with what it leaves out.

Bytes are parsed a little at a time, and only as fast as the app takes messages and the caller takes answers; before the
101 not at all. A message of many tiny fragments, a flood of pings, a caller that reads nothing and bytes that are not a
WebSocket end the connection; a close frame without a code stays one. The app learns through
`scope["extensions"]["fal_proxy"]` how to end without a close frame, and how to be told that the caller has left.
"""

from __future__ import annotations

import asyncio
import logging
import urllib.parse
from collections.abc import Callable
from typing import Any, cast

from uvicorn._types import ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.datastructures import Headers
from websockets.exceptions import InvalidState
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.protocol import Protocol

from fal_proxy.asgi import EXTENSION
from fal_proxy.downstream.faults import NO_HANDSHAKE
from fal_proxy.downstream.flow import Flow, Outlet
from fal_proxy.downstream.peers import Place

MAX_FRAGMENTS = 1024  # of one message
MAX_PINGS = 100  # in a second
SLICE_BYTES = 4096  # read at once: frames can be as short as two bytes
TURN_SECONDS = 0.002  # of parsing, before others have their turn
PING_SECONDS = 20.0  # between two
PONG_SECONDS = 20.0  # for the answer
LINGER_SECONDS = 10.0  # for a caller to take what is left and end their side
LINGER_BYTES = 32 * 1024 * 1024  # what may still come meanwhile; it is not looked at
NO_CODE = 1005
_log = logging.getLogger("fal_proxy.websocket.caller")
_log.setLevel(logging.WARNING)  # uvicorn would log every URL, and with it a ticket


class SocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket of a caller. It takes over `place` and gives it back."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        *,
        place: Place | None,
        target: bytes,
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.logger = self.conn.logger = _log
        self.conn.debug = False
        self.ping_interval, self.ping_timeout = PING_SECONDS, PONG_SECONDS
        self._place = place
        self._target = target
        self._leaving: list[Callable[[], None]] = []
        self._unread = bytearray()  # received, and not parsed yet
        self._turn: asyncio.Handle | None = None
        self._behind_close_bytes = 0
        self._fragments = 0
        self._pings, self._pings_since = 0, 0.0

    def connection_made(self, transport: Any) -> None:
        """Begin, with little to wait for the caller."""
        self._flow = Flow(transport, self.loop)
        self._outlet = _SocketOutlet(transport, self.loop, self._read)
        super().connection_made(cast("asyncio.Transport", self._outlet))

    def connection_lost(self, exc: Exception | None) -> None:
        """End: without a close frame before it, it is an abnormal one."""
        self._flow.stop_looking()
        self._outlet.lost()
        self._unread.clear()
        if self._place is not None:
            self._place.release()
        if self.handshake_complete:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})
        super().connection_lost(exc)
        for leave in self._leaving:
            leave()
        self._leaving.clear()

    def begin(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Start with a handshake that was read already: what `websockets` would read of it is less than we allow."""
        self.conn.parser = Protocol.parse(self.conn)
        next(self.conn.parser)
        fields = Headers([(name.decode("ascii"), value.decode("latin-1")) for name, value in headers])
        self.handle_connect(Request("/", fields))

    def data_received(self, data: bytes) -> None:
        """Keep what arrived, and read as much as is wanted."""
        if not self._outlet.is_closing():
            self._unread += data
            self._read()
        elif self._outlet.discarded(len(data)) > LINGER_BYTES:
            self.transport.abort()

    def resume_writing(self) -> None:
        """Go on: the caller reads again."""
        super().resume_writing()
        self._read()

    def _read(self) -> None:
        """Parse a little at a time, so that no flood of tiny frames keeps others waiting."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        ends = self.loop.time() + TURN_SECONDS
        while self._unread and not self._waits:
            if self.loop.time() >= ends:
                self._turn = self.loop.call_soon(self._read)
                break
            data = bytes(self._unread[:SLICE_BYTES])
            del self._unread[:SLICE_BYTES]
            if self.close_sent:
                self._behind_close_bytes += len(data)
                if self._behind_close_bytes > self.config.ws_max_size + SLICE_BYTES:
                    self.transport.abort()
            super().data_received(data)
        if self._outlet.is_closing():
            self._unread.clear()
            self._flow.resume_reading()
        elif self._unread or self._waits:
            self._flow.pause_reading()
        else:
            self._flow.resume_reading()

    @property
    def _waits(self) -> bool:
        """Say whether nothing may be parsed: before the 101, behind a message that the app has, or answers unread."""
        unwanted = not self.handshake_complete or self.read_paused or not self.writable.is_set()
        return unwanted or self._outlet.is_closing()

    def handle_connect(self, event: Request) -> None:
        """Start the app, or say that this is no handshake."""
        if self.conn.accept(event).status_code != 101:
            self.handshake_complete = self.close_sent = True
            self.transport.write(NO_HANDSHAKE.answer())
            self.transport.close()
            return
        super().handle_connect(event)
        raw_path, _, query = self._target.partition(b"#")[0].partition(b"?")
        path = urllib.parse.unquote(raw_path.decode("latin-1"))
        self.scope |= {"path": path, "raw_path": raw_path, "query_string": query}
        extension = {
            "raw_target": self._target,
            "break_off": self._outlet.close,
            "on_departure": self._leaving.append,
            "close_without_code": True,
        }
        self.scope["extensions"] = {
            **(self.scope["extensions"] or {}),
            EXTENSION: cast("dict[object, object]", extension),
        }

    def handle_cont(self, event: Frame) -> None:
        """Collect a fragment, of which there may be so many."""
        self._fragments += 1
        if self._fragments > MAX_FRAGMENTS:
            self._fail(1008, "a message of so many fragments")
            return
        super().handle_cont(event)

    def handle_ping(self) -> None:
        """Answer a ping, of which there may be so many."""
        now = self.loop.time()
        if now - self._pings_since >= 1:
            self._pings, self._pings_since = 0, now
        self._pings += 1
        if self._pings > MAX_PINGS:
            self._fail(1008, "so many pings")
            return
        super().handle_ping()

    def send_receive_event_to_app(self) -> None:
        """Pass a whole message on; text must be text."""
        self._fragments = 0
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self._fail(1007, "text that is not UTF-8")
                return
        super().send_receive_event_to_app()

    def keepalive_timeout(self) -> None:
        """End a caller who does not answer, be it that they read nothing: a close would wait for ever."""
        if self.read_paused:  # it may be upstream that we wait for, and the answer may lie behind a message
            self.pong_timer = self.pending_ping_payload = None
            self.schedule_ping()
            return
        super().keepalive_timeout()
        self.transport.abort()

    def shutdown(self) -> None:
        """Leave the end of the process to the app, which says so on every socket."""
        if self.close_sent:
            super().shutdown()

    async def send(self, message: ASGISendEvent) -> None:
        """Send; a close without a code is possible here. Raises OSError once the socket is over."""
        await self.writable.wait()
        kind = message["type"]
        if self.handshake_complete and self.close_sent and kind in ("websocket.send", "websocket.close"):
            raise ClientDisconnected
        if kind == "websocket.close" and message.get("code") == NO_CODE and self.handshake_complete:
            if not self.transport.is_closing():
                self._close_without_code()
            return
        await super().send(message)
        if kind == "websocket.accept":
            self._read()  # what came early
        elif kind == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True  # with another answer than 101; uvicorn would call it a fault of the app

    def _close_without_code(self) -> None:
        try:
            self.conn.send_close()
        except InvalidState:
            return
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    def _fail(self, code: int, reason: str) -> None:
        self.frames = []
        if not self.close_sent:
            self.conn.fail(code, reason)
            self.handle_parser_exception()


class _SocketOutlet(Outlet):
    """A transport that reads on when it closes, for a while: unread bytes would reset it, and the close frame be lost."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, read: Callable[[], None]) -> None:
        super().__init__(transport)
        self._loop = loop
        self._read = read
        self._closing = False
        self._discarded_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self.close, self.is_closing = self._close, self._is_closing

    def write(self, data: bytes) -> None:
        """Queue bytes, unless it closes."""
        if not self.is_closing():
            super().write(data)

    def pause_reading(self) -> None:
        """Do nothing: the protocol itself decides how fast to read."""

    def resume_reading(self) -> None:
        """Read on."""
        self._read()

    def discarded(self, count: int) -> int:
        """Count what comes behind the end; return how much it is."""
        self._discarded_bytes += count
        return self._discarded_bytes

    def lost(self) -> None:
        """Learn that the connection is gone."""
        if self._timer is not None:
            self._timer.cancel()

    def _is_closing(self) -> bool:
        return self._closing or self.transport.is_closing()

    def _close(self) -> None:
        if not self.is_closing():
            self._closing = True
            self.transport.write_eof()
            self._timer = self._loop.call_later(LINGER_SECONDS, self.transport.abort)
            self._read()


def take_over(
    make: Callable[..., SocketProtocol],
    transport: asyncio.Transport,
    target: bytes,
    headers: list[tuple[bytes, bytes]],
) -> SocketProtocol:
    """Return the protocol that goes on with a connection whose handshake was read already."""
    successor = make(target=target)
    successor.connection_made(transport)
    transport.set_protocol(successor)
    successor.begin(headers)
    return successor
