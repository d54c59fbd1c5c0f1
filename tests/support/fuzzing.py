"""Judge what the proxy makes of bent HTTP: in memory, with the whole app between two sockets that are none.

What must hold for every input: no exception that nobody expected, nothing of the fal key comes down, the connection
ends or is answered in time, and what reached upstream is, in order, what a strict second parser calls a request.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fal_proxy.app import App, create_app
from fal_proxy.identity.key import add
from support.memory_socket import MemoryCaller, MemoryDialer, MemoryServer
from support.mutation import mutate, packets
from support.proxied import FAL_KEY, FAL_KEY_ID, FAL_KEY_SECRET, MOUNT, SIGNING_SECRET, open_settings, with_server
from support.raw_corpus import SMUGGLED, rows
from support.strict_http import StrictRequest, parse

MAX_SEED_BYTES = 4096
SWEEPS = 120  # seconds within which every connection must have ended
UPSTREAM_OK = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 17\r\nconnection: close\r\n\r\n"
    b'{"request_id":""}'
)
_STATUS = re.compile(rb"(?:^|\n|\})HTTP/1\.1 (\d{3}) ")


class Broken(Exception):
    """An input under which something did not hold."""

    def __init__(self, what: str, data: bytes, back: bytes) -> None:
        super().__init__(f"{what}\nsent: {data!r}\nback: {back[-2000:]!r}")


class Stage:
    """The app between memory sockets, and everything that it complains of."""

    def __init__(self, folder: Path) -> None:
        settings = with_server(open_settings(folder), hosts=("proxy.test",))
        key = add(folder / "users.toml", "ada", "default")
        environ = {"FAL_PROXY_SECRET": SIGNING_SECRET, "FAL_PROXY_UPSTREAM": "http://127.0.0.1:9"}
        self.app: App = create_app(settings, environ=environ, key=FAL_KEY)
        self.dialer = MemoryDialer(UPSTREAM_OK)
        engine: Any = self.app._gateway.engine
        engine._dialer = self.dialer
        self.server = MemoryServer(self.app)
        self.complaints = Complaints()
        credential = f"Authorization: Bearer {key}\r\n".encode()
        small = [row for row in rows() if not row.steps and len(row.data) < MAX_SEED_BYTES]
        right = [row.bytes_for(credential) for row in small if row.expect == "ok"]
        # What is wrong already gets wronger: most of what goes deep begins as something right.
        self.seeds = [row.bytes_for(credential) for row in small] + right * 8
        self.valid = next(row.bytes_for(credential) for row in rows() if row.id == "ok-cl")
        self.upstream_calls = 0
        self.replayed = 0  # inputs of which a head was new, and so was known when they came again
        self.smuggled = 0  # calls to the smuggler's target, every one a request in its own right to the second parser
        self.answers: dict[int, int] = {}

    async def try_one(self, chance: random.Random) -> None:
        """Send one mutant. Raises Broken."""
        data = mutate(chance, self.seeds)
        pieces = packets(chance, data)
        known = len(self.server.known_heads)
        first = await self._try(data, pieces)
        if len(self.server.known_heads) != known:
            self.replayed += 1
            again = await self._try(data, pieces)
            if again != first:
                raise Broken(f"a head that is known is another one: first {first}", data, repr(again).encode())

    async def _try(self, data: bytes, pieces: list[bytes]) -> tuple[list[bytes], list[StrictRequest]]:
        """Send some bytes over a new connection; return the statuses that came back, and what reached upstream."""
        caller = self.server.connect()
        for piece in pieces:
            await caller.send(piece)
            if len(pieces) > 1:
                await asyncio.sleep(0)
        return await self._judge(data, caller)

    async def try_valid(self) -> None:
        """Send what is right and expect what is right. Raises Broken."""
        caller = self.server.connect()
        await caller.send(self.valid)
        await self._judge(self.valid, caller)
        back = bytes(caller.transport.written)
        if not back.startswith(b"HTTP/1.1 200 "):
            raise Broken("a valid request is not served any more", self.valid, back)

    async def _judge(self, data: bytes, caller: MemoryCaller) -> tuple[list[bytes], list[StrictRequest]]:
        await caller.settle(lambda: caller.protocol._unanswered is None)
        swept = 0
        while not caller.lost and swept < SWEEPS:
            caller.protocol.sweep(1.0)
            swept += 1
            await asyncio.sleep(0)
        back = bytes(caller.transport.written)
        reached = self.dialer.requests
        self.dialer.requests = []
        self.upstream_calls += len(reached)
        statuses = _STATUS.findall(back)
        for status in statuses:
            self.answers[int(status)] = self.answers.get(int(status), 0) + 1
        self.smuggled += sum(SMUGGLED in request.target for request in reached)
        if not caller.lost:
            raise Broken("the connection was not ended in time", data, back)
        if FAL_KEY_SECRET.encode() in back or FAL_KEY_ID.encode() in back:
            raise Broken("the fal key came down", data, back)
        if self.complaints.seen:
            raise Broken("\n".join(self.complaints.seen), data, back)
        if not _is_subsequence([_target_up(request) for request in reached], _targets(data)):
            raise Broken(f"upstream saw {reached}, which nobody asked for", data, back)
        return statuses, reached


class Complaints(logging.Handler):
    """Collect every log record that means a fault, and what the loop catches."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note a record. Nothing is traced here: an exporter that complains belongs to a test before, whose collector ended."""
        if not record.name.startswith("opentelemetry."):
            self.seen.append(self.format(record))

    def from_loop(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Note what the loop caught."""
        self.seen.append(f"{context.get('message')}: {context.get('exception')!r}")


async def fuzz(folder: Path, inputs: int, seed: int, progress: Callable[[int], None] = lambda _: None) -> Stage:
    """Try `inputs` mutants, and after each thousand a valid request. Raises Broken."""
    chance = random.Random(seed)
    stage = Stage(folder)
    asyncio.get_running_loop().set_exception_handler(stage.complaints.from_loop)
    logging.getLogger().addHandler(stage.complaints)
    try:
        for count in range(inputs):
            await stage.try_one(chance)
            if count % 1000 == 999:
                await stage.try_valid()
                progress(count + 1)
        await stage.try_valid()
    finally:
        logging.getLogger().removeHandler(stage.complaints)
        await stage.app.close()
    if stage.server.connections:
        raise Broken(f"{stage.server.connections} connections were left behind", b"", b"")
    return stage


def _target_up(request: StrictRequest) -> tuple[bytes, bytes]:
    return request.target.lstrip(b"/"), request.body


def _targets(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return what a strict reader would say was asked for, as upstream should see it."""
    wanted = []
    for request in parse(data)[0]:
        path = request.target
        below = path.removeprefix(MOUNT.encode())
        named = request.values(b"x-fal-target-url")
        if below in (b"", b"/") and len(named) == 1:
            wanted.append((named[0].removeprefix(b"https://"), request.body))
        elif below != path:
            wanted.append((below.removeprefix(b"/"), request.body))
    return wanted


def _is_subsequence(some: list[tuple[bytes, bytes]], of: list[tuple[bytes, bytes]]) -> bool:
    rest = iter(of)
    return all(item in rest for item in some)
