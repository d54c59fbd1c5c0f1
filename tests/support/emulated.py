"""A real emulator on a real socket, in the test's own loop."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import time

import uvicorn

from fal_proxy.emulator import (
    Delivery,
    Emulator,
    EmulatorProtocol,
    EmulatorSocket,
    Entry,
    Fault,
    Session,
    create_emulator,
    parse_faults,
)

WAIT_SECONDS = 10.0
_STEP_SECONDS = 0.005


@dataclass(frozen=True)
class Emulated:
    """A running emulator: its base URL without a final slash, and the app with its journal."""

    url: str
    port: int
    app: Emulator

    def at(self, host: str, path: str) -> str:
        """Return the URL under which the emulator serves https://<host><path>."""
        return f"{self.url}/{host}{path}"

    def socket(self, host: str, path: str) -> str:
        """Return the URL under which the emulator serves wss://<host><path>."""
        return f"ws://127.0.0.1:{self.port}/{host}{path}"

    @property
    def last(self) -> Entry:
        """The latest request."""
        return self.app.journal[-1]

    async def finished(self, index: int = -1) -> Entry:
        """Wait until a request of the journal is over and return it."""
        entry = self.app.journal[index]
        async with asyncio.timeout(WAIT_SECONDS):
            await entry.done.wait()
        return entry

    async def arrived(self, count: int = 1, body_bytes: int = 0) -> Entry:
        """Wait until the journal has so many requests, the last with so much of its body, and return that one."""
        for _ in range(round(WAIT_SECONDS / _STEP_SECONDS)):
            if len(self.app.journal) >= count and self.last.body_bytes >= body_bytes:
                return self.last
            await asyncio.sleep(_STEP_SECONDS)
        raise TimeoutError(f"the emulator saw {len(self.app.journal)} requests, not {count}")

    async def delivered(self, count: int = 1) -> list[Delivery]:
        """Wait until so many attempts to deliver a webhook are over and return all that were begun."""
        for _ in range(round(WAIT_SECONDS / _STEP_SECONDS)):
            begun = list(self.app.deliveries)
            if sum(delivery.done.is_set() for delivery in begun) >= count:
                return begun
            await asyncio.sleep(_STEP_SECONDS)
        raise TimeoutError(f"the emulator made {len(self.app.deliveries)} attempts to deliver, not {count}")

    async def received(self, messages: int, index: int = -1) -> Session:
        """Wait until a WebSocket of the journal has received so many messages and return its session."""
        for _ in range(round(WAIT_SECONDS / _STEP_SECONDS)):
            session = self.app.journal[index].session if self.app.journal else None
            if session is not None and session.received >= messages:
                return session
            await asyncio.sleep(_STEP_SECONDS)
        raise TimeoutError(f"the emulator did not receive {messages} messages")


@asynccontextmanager
async def emulated(
    *,
    speed: float = 50.0,
    seed: int | None = 1,
    faults: str | Sequence[Fault] = (),
    gzip: bool = False,
    late_refusals: bool = False,
    max_message_bytes: int = 16 * 1024 * 1024,
    api_keys: Collection[str] | None = None,
    admin_keys: Collection[str] | None = None,
    clock: Callable[[], float] = time,
    public_url: str | None = None,
) -> AsyncIterator[Emulated]:
    """Run an emulator on an ephemeral port of 127.0.0.1 until the block ends; `faults` may be in the --faults form."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:  # asyncio asks for the last
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        chosen = parse_faults(faults) if isinstance(faults, str) else tuple(faults)
        app = create_emulator(
            public_url or url,
            speed=speed,
            seed=seed,
            faults=chosen,
            gzip=gzip,
            late_refusals=late_refusals,
            api_keys=api_keys,
            admin_keys=admin_keys,
            clock=clock,
        )
        config = uvicorn.Config(
            app,
            http=EmulatorProtocol,
            lifespan="off",
            ws=EmulatorSocket,
            ws_max_size=max_message_bytes,
            ws_per_message_deflate=False,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await server.ready.wait()
            yield Emulated(url, port, app)
        finally:
            server.stop.set()
            await serving
            await app.close()


class _Server(uvicorn.Server):
    """Tells when it listens, stops when told instead of looking every tenth of a second, installs no signal handlers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self.stop = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)  # the Date header
        await self.stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn waits politely, a tenth of a second at least; a test is over when it is over.
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        async with asyncio.timeout(WAIT_SECONDS):
            await asyncio.gather(*self.server_state.tasks)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self._serve(sockets)
