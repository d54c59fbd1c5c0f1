"""The standalone server: sockets, uvicorn with its surprises switched off, and the end of a process.

A mounted app relies on its host's server instead. What a connection does is in `protocol`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fal_proxy.errors import Misconfigured
from fal_proxy.protocol import HttpProtocol

KEEP_ALIVE_SECONDS = 75
DRAIN_SECONDS = 30
BACKLOG = 2048
MESSAGE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Listener:
    """One socket and what is served on it."""

    app: Any
    sock: socket.socket
    protocol: type[HttpToolsProtocol] = HttpProtocol
    websockets: type[asyncio.Protocol] | None = None  # None: an Upgrade is refused
    max_message_bytes: int = MESSAGE_BYTES  # of one WebSocket message

    @property
    def url(self) -> str:
        """Return the address as a URL."""
        host, port = self.sock.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def bind(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Return a listening socket (`port` 0: any free one). Raises Misconfigured, naming what is in the way."""
    sock: socket.socket | None = None
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except (OSError, UnicodeError) as error:
        if sock is not None:
            sock.close()
        reason = getattr(error, "strerror", None) or "no such address"
        raise Misconfigured([f"cannot listen on {host} port {port}: {reason}"]) from error
    return sock


def serve(main: Listener, announce: Callable[[], None], *, beside: Listener | None = None) -> None:
    """Serve until SIGTERM or SIGINT; `announce` is called once `main` accepts. `beside` lives as long as `main`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(main, announce, beside))


async def _serve(main: Listener, announce: Callable[[], None], beside: Listener | None) -> None:
    async with contextlib.AsyncExitStack() as stack:
        if beside is not None:
            await stack.enter_async_context(serving(beside))
        await _Server(main, announce, DRAIN_SECONDS, owns_signals=True).serve(sockets=[main.sock])


@contextlib.asynccontextmanager
async def serving(listener: Listener, drain_seconds: int = 1) -> AsyncIterator[str]:
    """Serve inside a running loop, without touching signals; yields the URL once requests are accepted."""
    ready = asyncio.Event()
    server = _Server(listener, ready.set, drain_seconds, owns_signals=False)
    task = asyncio.create_task(server.serve(sockets=[listener.sock]))
    waiter = asyncio.create_task(ready.wait())
    await asyncio.wait([task, waiter], return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    try:
        yield listener.url
    finally:
        server.should_exit = True
        await task


class _Server(uvicorn.Server):
    def __init__(
        self, listener: Listener, announce: Callable[[], None], drain_seconds: int, *, owns_signals: bool
    ) -> None:
        super().__init__(
            uvicorn.Config(
                listener.app,
                http=listener.protocol,
                ws=listener.websockets or "none",
                ws_max_size=listener.max_message_bytes,
                ws_per_message_deflate=False,  # it costs more than it saves, and a bomb is a bomb
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                workers=1,  # WEB_CONCURRENCY means nothing here: more processes share Redis and a port
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=drain_seconds,
            )
        )
        self._announce = announce
        self._owns_signals = owns_signals

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if self._owns_signals:
            with super().capture_signals():
                yield
                # uvicorn would now raise the signal again and die of it; a drained end is exit 0.
                self._captured_signals.clear()
        else:
            yield
