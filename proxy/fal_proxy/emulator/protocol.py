"""uvicorn's HTTP protocol plus what ASGI hides: the exact request target, and a socket that can be cut.

Pass `EmulatorProtocol` to uvicorn as `http=`. Decides nothing: the app says when to cut.
"""

import asyncio
import socket
import struct
from collections.abc import Mapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_EXTENSION = "fal_emulator"
_LINGER_ZERO = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds: close() sends RST instead of FIN
_FLUSH_STEP_SECONDS = 0.005
_FLUSH_STEPS = 400


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


def connection_of(scope: Mapping[str, Any]) -> Connection | None:
    """Return the Connection of a request, None when another protocol class serves it."""
    connection = scope.get("extensions", {}).get(_EXTENSION, {}).get("connection")
    return connection if isinstance(connection, Connection) else None
