"""uvicorn's protocols plus what ASGI hides: the exact request target, and a connection that can be cut or spoilt.

Pass `EmulatorProtocol` to uvicorn as `http=`, `EmulatorSocket` as `ws=`. Decides nothing: the app says when to cut.
"""

import asyncio
import select
import socket
import struct
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

_EXTENSION = "fal_emulator"
_LINGER_ZERO = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds: close() sends RST instead of FIN
_FLUSH_STEP_SECONDS = 0.005
_FLUSH_STEPS = 400
_HANGUP_POLL_SECONDS = 0.02


class Connection:
    """The client's socket, as far as a fault needs it."""

    def __init__(self, transport: asyncio.Transport, target: bytes) -> None:
        self._transport = transport
        self.target = target

    async def reset(self) -> None:
        """Send what is written, then RST."""
        await self._flush()
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self._transport.abort()

    async def cut(self) -> None:
        """Send what is written, then FIN, whatever the framing had promised."""
        await self._flush()
        self._transport.close()

    async def spoil(self, raw: bytes) -> None:
        """Put bytes on the wire that no protocol has framed."""
        self._transport.write(raw)
        await self._flush()

    async def ignore(self) -> None:
        """Read nothing more, not even what asks for a reply, until the client has hung up."""
        self._transport.pause_reading()
        await self.hung_up()
        self._transport.abort()

    async def hung_up(self) -> None:
        """Return when the client has hung up, even behind bytes that nobody reads, or the connection is over."""
        poll: select.poll | None = None
        while not self._transport.is_closing():
            if poll is None:
                poll = select.poll()
                poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
            if poll.poll(0):
                return
            await asyncio.sleep(_HANGUP_POLL_SECONDS)

    async def _flush(self) -> None:
        for _ in range(_FLUSH_STEPS):  # a client that does not read must not keep us
            if self._transport.is_closing() or not self._transport.get_write_buffer_size():
                return
            await asyncio.sleep(_FLUSH_STEP_SECONDS)


class EmulatorProtocol(HttpToolsProtocol):
    """Put a Connection into every request's scope."""

    def on_headers_complete(self) -> None:
        """Attach the connection before the request is served."""
        self.scope["extensions"] = {_EXTENSION: {"connection": Connection(self.transport, self.url)}}
        super().on_headers_complete()


class EmulatorSocket(WebSocketsSansIOProtocol):
    """Put a Connection into every handshake's scope, and tell a lost connection from an empty close frame."""

    def handle_connect(self, event: Request) -> None:
        """Attach the connection before the handshake is served."""
        super().handle_connect(event)
        if self.response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            connection = Connection(self.transport, event.path.encode("latin-1"))
            self.scope["extensions"][_EXTENSION] = {"connection": connection}

    def start_keepalive(self) -> None:
        """Send no pings: whether fal does is not known, so nothing may rely on them."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Say 1006 where no close frame came."""
        if self.handshake_complete and self.conn.close_rcvd is None and not self.close_sent:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})
        super().connection_lost(exc)


def connection_of(scope: Mapping[str, Any]) -> Connection | None:
    """Return the Connection of a request, None when another protocol class serves it."""
    connection = scope.get("extensions", {}).get(_EXTENSION, {}).get("connection")
    return connection if isinstance(connection, Connection) else None
