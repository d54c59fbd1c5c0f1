"""One caller's WebSocket: uvicorn's protocol on top of `websockets`, with what it leaves out.

The app learns through `scope["extensions"]["fal_proxy"]` how to reset the connection. A message of many tiny fragments, a
caller that reads nothing and bytes that are not a WebSocket end the connection; a close frame without a code stays one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.exceptions import InvalidState
from websockets.frames import Frame
from websockets.http11 import Request

from fal_proxy.app import EXTENSION
from fal_proxy.downstream.faults import NO_HANDSHAKE
from fal_proxy.downstream.flow import HIGH_WATER_BYTES, Outlet
from fal_proxy.downstream.peers import Place

MAX_FRAGMENTS = 1024  # of one message
SLICE_BYTES = 4096  # read at once: frames can be as short as two bytes
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
        self.logger = _log
        self._place = place
        self._target = target
        self._fragments = 0

    def connection_made(self, transport: Any) -> None:
        """Begin, with little to wait for the caller."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        """End: without a close frame before it, it is an abnormal one."""
        if self._place is not None:
            self._place.release()
        if self.handshake_complete:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read a little at a time, so that a flood of tiny frames is noticed before it was parsed."""
        for at in range(0, len(data), SLICE_BYTES):
            if self.conn.parser_exc is not None or self.transport.is_closing():
                return
            super().data_received(data[at : at + SLICE_BYTES])

    def handle_connect(self, event: Request) -> None:
        """Start the app, or say that this is no handshake."""
        if self.conn.accept(event).status_code != 101:
            self.handshake_complete = self.close_sent = True
            self.transport.write(NO_HANDSHAKE.answer())
            self.transport.close()
            return
        super().handle_connect(event)
        extension = {"raw_target": self._target, "reset": self.reset, "close_without_code": True}
        self.scope["extensions"] = {**(self.scope["extensions"] or {}), EXTENSION: extension}  # type: ignore[dict-item]

    def handle_cont(self, event: Frame) -> None:
        """Collect a fragment, of which there may be so many."""
        self._fragments += 1
        if self._fragments > MAX_FRAGMENTS:
            self._fail(1008, "a message of so many fragments")
            return
        super().handle_cont(event)

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
        super().keepalive_timeout()
        self.transport.abort()

    async def send(self, message: ASGISendEvent) -> None:
        """Send; a close without a code is possible here."""
        if message["type"] == "websocket.close" and message.get("code") == NO_CODE and self.handshake_complete:
            if not self.close_sent and not self.transport.is_closing():
                self._close_without_code()
            return
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True  # with another answer than 101; uvicorn would call it a fault of the app

    def reset(self) -> None:
        """Cut the connection so that the caller knows that it was cut."""
        Outlet(self.transport).reset()

    def _close_without_code(self) -> None:
        try:
            self.conn.send_close()
        except InvalidState:
            return
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)

    def _fail(self, code: int, reason: str) -> None:
        self.frames = []
        self.conn.fail(code, reason)
        self.handle_parser_exception()


def take_over(
    make: Callable[..., SocketProtocol],
    transport: asyncio.Transport,
    target: bytes,
    headers: list[tuple[bytes, bytes]],
) -> SocketProtocol:
    """Return the protocol that goes on with a connection whose handshake was read already."""
    successor = make(target=target)
    successor.connection_made(transport)
    fields = [name + b": " + value for name, value in headers]
    successor.data_received(b"\r\n".join([b"GET " + target + b" HTTP/1.1", *fields, b"", b""]))
    transport.set_protocol(successor)
    return successor
