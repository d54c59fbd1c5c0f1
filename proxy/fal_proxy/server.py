"""The standalone server: sockets, uvicorn with its surprises switched off, and the end of a process.

A mounted app relies on its host's server instead. What a connection does is in `protocol`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, cast

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fal_proxy.allocator import keep_large_blocks_apart
from fal_proxy.downstream.backlog import is_waiting, turn_away
from fal_proxy.downstream.deadlines import KEEP_ALIVE_SECONDS, Sweep
from fal_proxy.downstream.known_heads import KnownHeads
from fal_proxy.downstream.peers import Peers, raise_file_limit
from fal_proxy.errors import Misconfigured
from fal_proxy.lifecycle import Lifecycle, Stage
from fal_proxy.protocol import HttpProtocol
from fal_proxy.relay.http import DEPARTED_SECONDS

BACKLOG = 2048
ADMIN_CONNECTIONS = 64
SETTLING_SECONDS = 1.0  # for what is cut or cancelled to settle
HANDSHAKE_SECONDS = 0.05  # for handshakes that have begun when the port is about to close
LAST_CALLS_SECONDS = 1.0  # for requests on connections that were idle when the port closed
_SHORTEST_LOOK_SECONDS, _LOOK_SECONDS = 0.001, 0.02
_YOUNG_OBJECTS = 10_000  # more than before, let the collector look at them; Python's own 700 is a dozen requests
MESSAGE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Drain:
    """How long the end may take."""

    seconds: float  # for what runs to end by itself
    notice_seconds: float = 0  # before it: everything is served, and `/readyz` says no
    last_calls_seconds: float = 0  # of the first: what comes over connections that are open is served


AT_ONCE = Drain(1)


@dataclass(frozen=True, slots=True)
class Listener:
    """One socket and what is served on it; of `trusted_proxies` any number of connections is taken."""

    app: Any
    sock: socket.socket
    protocol: type[HttpToolsProtocol] = HttpProtocol
    websockets: type[asyncio.Protocol] | None = None  # None: an Upgrade is refused
    max_message_bytes: int = MESSAGE_BYTES  # of one WebSocket message
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    trusted_proxies: Sequence[str] = ()
    trusts: Callable[[str], bool] | None = None  # says it in their place, where they may change
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


def serve(
    main: Listener,
    announce: Callable[[], None],
    *,
    beside: Listener | None = None,
    drain: Callable[[], Drain] = lambda: AT_ONCE,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends at once.

    `announce` is called once `main` accepts. `beside` lives as long as `main`. `drain` is asked when the end begins.
    """
    raise_file_limit()
    keep_large_blocks_apart()
    # What was made until now stays; and requests leave next to no cycles, so that looking for them can be rare.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(main, announce, beside, drain))


async def _serve(
    main: Listener, announce: Callable[[], None], beside: Listener | None, drain: Callable[[], Drain]
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        if beside is not None:
            await stack.enter_async_context(serving(beside))
        await _Server(main, announce, drain, owns_signals=True).serve(sockets=[main.sock])


@contextlib.asynccontextmanager
async def serving(listener: Listener, drain: Callable[[], Drain] = lambda: AT_ONCE) -> AsyncIterator[str]:
    """Serve inside a running loop, without touching signals; yields the URL once requests are accepted."""
    ready = asyncio.Event()
    server = _Server(listener, ready.set, drain, owns_signals=False)
    task = asyncio.create_task(server.serve(sockets=[listener.sock]))
    waiter = asyncio.create_task(ready.wait())
    await asyncio.wait([task, waiter], return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    try:
        yield listener.url
    finally:
        server.stop()
        await task


class _Server(uvicorn.Server):
    def __init__(
        self, listener: Listener, announce: Callable[[], None], drain: Callable[[], Drain], *, owns_signals: bool
    ) -> None:
        super().__init__(
            uvicorn.Config(
                listener.app,
                http=_protocol_of(listener),
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
                timeout_keep_alive=int(KEEP_ALIVE_SECONDS),
            )
        )
        self._announce = announce
        self._drain = drain
        self._lifecycle = listener.lifecycle
        self._owns_signals = owns_signals
        self._stopped = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def stop(self) -> None:
        """Begin the end."""
        self.should_exit = True
        self._stopped.set()

    async def main_loop(self) -> None:
        """Wait for the end; uvicorn looks ten times a second for things that are not used here."""
        await self._stopped.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Go through the stages of the end; the app's own end, which flushes what it knows, is the last."""
        state, drain = self.server_state, self._drain()
        self._lifecycle.reach(Stage.LEAVING)
        for caller in self._callers:
            caller.leave()
        await self._until(lambda: False, drain.notice_seconds)
        await self._close_port(sockets or [], drain)
        ends = time.monotonic() + drain.seconds
        last_calls = min(drain.last_calls_seconds, drain.seconds)
        await self._until(lambda: not any(caller.may_ask for caller in self._callers), last_calls)
        # All of them are asked; where a request has arrived and was not read yet, once more.
        await self._until(lambda: all(caller.dismiss() for caller in self._callers), SETTLING_SECONDS, forced=True)
        self._lifecycle.reach(Stage.DRAINING)
        for connection in list(state.connections):
            connection.shutdown()
        await self._until(lambda: not state.connections and not state.tasks, ends - time.monotonic())
        self._lifecycle.reach(Stage.CUTTING)
        for connection in list(state.connections):
            _cut(connection)
        # A submit that was sent is read to its end; the others only settle.
        await self._until(lambda: not state.tasks, SETTLING_SECONDS, forced=True)
        await self._until(lambda: not state.tasks, DEPARTED_SECONDS)
        for task in state.tasks:
            task.cancel()
        await self._until(lambda: not state.tasks, SETTLING_SECONDS, forced=True)
        await self.lifespan.shutdown()

    async def _close_port(self, sockets: list[socket.socket], drain: Drain) -> None:
        """Close it when nobody is left in front of it whom the kernel has let in: those would be reset."""
        if drain.last_calls_seconds:
            for sock in sockets:
                turn_away(sock)
            await self._until(lambda: False, HANDSHAKE_SECONDS)
        await self._until(lambda: not any(is_waiting(sock) for sock in sockets), SETTLING_SECONDS, forced=True)
        for server in self.servers:
            server.close()
        for sock in sockets:
            sock.close()

    @property
    def _callers(self) -> list[HttpProtocol]:
        return [each for each in self.server_state.connections if isinstance(each, HttpProtocol)]

    async def _until(self, over: Callable[[], bool], seconds: float, *, forced: bool = False) -> None:
        """Wait, but no longer than this, nor beyond a second signal."""
        ends = time.monotonic() + seconds
        pause = _SHORTEST_LOOK_SECONDS
        # uvicorn's sets of connections and tasks tell nobody when they are empty.
        while not over() and time.monotonic() < ends and (forced or not self.force_exit):
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LOOK_SECONDS)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the end; a second signal of either kind hastens it."""
        self._captured_signals.append(sig)
        self.force_exit = self.should_exit
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._stopped.set)  # a signal comes between any two instructions

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
    peers = Peers(listener.trusted_proxies, listener.max_connections, trusts=listener.trusts)
    made = functools.partial(
        listener.protocol, peers=peers, sweep=Sweep(), lifecycle=listener.lifecycle, known_heads=KnownHeads()
    )
    return cast("type[asyncio.Protocol]", made)


def _cut(connection: asyncio.Protocol) -> None:
    """Break off a connection of either kind."""
    if isinstance(connection, HttpProtocol):
        connection.cut()
    else:
        connection.transport.abort()  # type: ignore[attr-defined] # every protocol of uvicorn's has it
