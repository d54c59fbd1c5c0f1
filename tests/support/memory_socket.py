"""Our server's protocol without sockets: a caller and an upstream in memory, so that a second holds thousands of inputs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import uvicorn
from uvicorn.server import ServerState

from fal_proxy.downstream.deadlines import Sweep
from fal_proxy.downstream.known_heads import KnownHeads
from fal_proxy.downstream.peers import Peers
from fal_proxy.lifecycle import Lifecycle
from fal_proxy.protocol import HttpProtocol
from fal_proxy.upstream.connection import Connection
from fal_proxy.upstream.dial import Origin
from support.strict_http import StrictRequest, parse

TURNS = 200  # of the loop, for what is under way in one process to arrive


class MemoryTransport(asyncio.Transport):
    """One end of a connection; what is written lies in `written`, or in `unsent` while nobody takes it."""

    def __init__(self, lost: Callable[[], None]) -> None:
        super().__init__()
        self.written = bytearray()
        self.unsent = bytearray()
        self.taking = True
        self.reading = True
        self.ended = False  # our direction: write_eof, close or abort
        self.high_water = 65536
        self.paused: Callable[[bool], None] = lambda _: None
        self._lost = lost
        self._closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return addresses of loopback; there is no socket."""
        return {"peername": ("127.0.0.1", 50000), "sockname": ("127.0.0.1", 8080)}.get(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes."""
        if not self._closing:
            (self.written if self.taking else self.unsent).extend(data)
            if len(self.unsent) > self.high_water:
                self.paused(True)

    def get_write_buffer_size(self) -> int:
        """Return what nobody has taken yet."""
        return len(self.unsent)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Note when to say that it is enough."""
        self.high_water = high or 65536

    def write_eof(self) -> None:
        """End our direction."""
        self.ended = True

    def pause_reading(self) -> None:
        """Stop delivering."""
        self.reading = False

    def resume_reading(self) -> None:
        """Deliver again."""
        self.reading = True

    def is_closing(self) -> bool:
        """Say whether the end was asked for."""
        return self._closing

    def close(self) -> None:
        """End; the protocol learns it in the loop's next turn."""
        if not self._closing:
            self._closing = self.ended = True
            asyncio.get_running_loop().call_soon(self._lost)

    def abort(self) -> None:
        """End at once."""
        self.close()


class MemoryDialer:
    """Stands in for the engine's dialer: every connection leads to an upstream that answers each whole request."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.requests: list[StrictRequest] = []

    async def connect(self, origin: Origin) -> Connection:
        """Return a new connection."""
        connection = Connection()
        connection.connection_made(_UpstreamTransport(connection, self))
        return connection


class _UpstreamTransport(MemoryTransport):
    def __init__(self, connection: Connection, dialer: MemoryDialer) -> None:
        super().__init__(lambda: connection.connection_lost(None))
        self._connection, self._dialer = connection, dialer

    def write(self, data: bytes | bytearray | memoryview) -> None:
        super().write(data)
        requests, rest = parse(bytes(self.written))
        if requests and not rest:
            self.written.clear()
            self._dialer.requests += requests
            asyncio.get_running_loop().call_soon(self._connection.data_received, self._dialer.answer)


class MemoryServer:
    """Our protocol in front of an ASGI application; `connect` makes callers."""

    def __init__(self, app: Any, lifecycle: Lifecycle | None = None) -> None:
        self._lifecycle = lifecycle
        self._config = uvicorn.Config(app, http=HttpProtocol, ws="none", lifespan="off", log_config=None)
        self._config.load()
        self._state = ServerState()
        self._peers, self._sweep = Peers(max_connections=100), Sweep()
        self.known_heads = KnownHeads()

    def connect(self) -> MemoryCaller:
        """Return a caller on a new connection."""
        loop = asyncio.get_running_loop()
        of_all: dict[str, Any] = {"peers": self._peers, "sweep": self._sweep, "known_heads": self.known_heads}
        of_all["lifecycle"] = self._lifecycle
        return MemoryCaller(HttpProtocol(self._config, self._state, {}, loop, **of_all))

    @property
    def connections(self) -> int:
        """Return how many connections there are."""
        return len(self._state.connections)


class MemoryCaller:
    """One connection, seen from the caller's side."""

    def __init__(self, protocol: HttpProtocol) -> None:
        self.protocol = protocol
        self.lost = False
        self.transport = MemoryTransport(self._lose)
        self.transport.paused = lambda _: protocol.pause_writing()
        protocol.connection_made(cast("asyncio.Transport", self.transport))

    def _lose(self) -> None:
        if not self.lost:
            self.lost = True
            self.protocol.connection_lost(None)

    async def send(self, data: bytes) -> None:
        """Deliver bytes as far as they are read."""
        for _ in range(TURNS):
            if self.transport.reading or self.lost:
                break
            await asyncio.sleep(0)
        if not self.transport.is_closing():
            self.protocol.data_received(data)

    async def settle(self, until: Callable[[], bool]) -> None:
        """Let the loop turn until something holds, or nothing can be under way any more."""
        for _ in range(TURNS):
            if until() or self.lost:
                return
            await asyncio.sleep(0)

    def take(self) -> None:
        """Read everything that waits."""
        self.transport.written += self.transport.unsent
        self.transport.unsent.clear()
        self.protocol.resume_writing()
