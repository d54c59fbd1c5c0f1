"""The standalone server: sockets, uvicorn with its surprises switched off, and the end of a process.

A mounted app relies on its host's server instead. What a connection does is in `protocol`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fal_proxy.downstream.deadlines import KEEP_ALIVE_SECONDS, Sweep
from fal_proxy.downstream.peers import Peers, raise_file_limit
from fal_proxy.errors import Misconfigured
from fal_proxy.protocol import HttpProtocol

DRAIN_SECONDS = 30
BACKLOG = 2048
ADMIN_CONNECTIONS = 64


@dataclass(frozen=True, slots=True)
class Listener:
    """One socket and what is served on it; of `trusted_proxies` any number of connections is taken."""

    app: Any
    sock: socket.socket
    protocol: type[HttpToolsProtocol] = HttpProtocol
    trusted_proxies: Sequence[str] = ()
    max_connections: int | None = None  # None: what files allow

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
    raise_file_limit()
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
                http=_protocol_of(listener),
                ws="none",
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                workers=1,  # WEB_CONCURRENCY means nothing here: more processes share Redis and a port
                timeout_keep_alive=int(KEEP_ALIVE_SECONDS),
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


def _protocol_of(listener: Listener) -> type[asyncio.Protocol]:
    """Return what makes a connection of this listener's."""
    if not issubclass(listener.protocol, HttpProtocol):
        return listener.protocol
    peers = Peers(listener.trusted_proxies, listener.max_connections)
    return cast("type[asyncio.Protocol]", functools.partial(listener.protocol, peers=peers, sweep=Sweep()))
