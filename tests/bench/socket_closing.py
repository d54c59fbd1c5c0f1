"""How soon one side of a session ends when the other has vanished: `./run env PYTHONPATH=tests python
tests/bench/socket_closing.py [COUNT] [BESIDE]`.

COUNT times each way, one after the other, while BESIDE other sessions talk; callers and upstream are this process, so that
one clock tells. Exits with 1 when one in a hundred takes longer than the goal.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

import uvloop

from bench.socket_echo import proxy
from support.observed import raise_descriptor_limit
from support.proxied import MOUNT
from support.websocket import BINARY, frame, handshake, switching

GOAL_SECONDS = 0.1
PATIENCE_SECONDS = 20.0
TALK_SECONDS = 0.05
PATH = "/fal.run/fal-ai/closing/realtime"
SAID = frame(BINARY, b"x" * 100)


class Side(asyncio.Protocol):
    """Either end of a socket, once its handshake is done; `ended` is when the other side was gone."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[float] = loop.create_future()
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self.opened.done():
            self._head += data
            if self._head.endswith(b"\r\n\r\n"):
                self.on_head(self._head)
                self.opened.set_result(None)

    def on_head(self, head: bytes) -> None:
        """Judge the answer."""
        assert head.startswith(b"HTTP/1.1 101"), head

    def eof_received(self) -> None:
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(time.perf_counter())


class Fal(Side):
    """Upstream's end."""

    def on_head(self, head: bytes) -> None:
        self.transport.write(switching(head))


class Closings:
    """Sockets through one proxy, both ends here."""

    def __init__(self) -> None:
        self._fal: asyncio.Queue[Fal] = asyncio.Queue()
        self.port = 0

    def upstream(self) -> Fal:
        """Make upstream's end of the next socket."""
        made = Fal()
        self._fal.put_nowait(made)
        return made

    async def open(self) -> tuple[Side, Fal]:
        """Open one socket; return both ends."""
        caller = Side()
        await asyncio.get_running_loop().create_connection(lambda: caller, "127.0.0.1", self.port)
        caller.transport.write(handshake(PATH, [], mount=MOUNT))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await caller.opened
            return caller, await self._fal.get()

    async def vanish(self, who: str, how: str) -> float:
        """Return the seconds from one side's leaving to the other's end."""
        caller, fal = await self.open()
        leaves, stays = (caller, fal) if who == "caller" else (fal, caller)
        began = time.perf_counter()
        getattr(leaves.transport, how)()
        async with asyncio.timeout(PATIENCE_SECONDS):
            took = await stays.ended - began
        for end in (caller, fal):
            end.transport.abort()
        return took


async def talk(caller: Side) -> None:
    """Say something again and again."""
    while not caller.transport.is_closing():
        caller.transport.write(SAID)
        await asyncio.sleep(TALK_SECONDS)


async def main(count: int, beside: int) -> int:
    """Measure and print."""
    raise_descriptor_limit()
    late = 0
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        closings = Closings()
        server = await asyncio.get_running_loop().create_server(closings.upstream, "127.0.0.1", 0)
        peer = stack.enter_context(proxy(Path(folder) / "ours", server.sockets[0].getsockname()[1]))
        closings.port = peer.port
        talking = [asyncio.ensure_future(talk((await closings.open())[0])) for _ in range(beside)]
        for who in ("caller", "fal"):
            for how in ("write_eof", "close", "abort"):
                found = sorted([await closings.vanish(who, how) for _ in range(count)])
                p50, p99 = statistics.median(found), found[min(int(count * 0.99), count - 1)]
                late += p99 > GOAL_SECONDS
                print(f"{who}, {how}: p50 {p50 * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms, longest {found[-1] * 1e3:.2f} ms")
        for task in talking:
            task.cancel()
    return 1 if late else 0


if __name__ == "__main__":
    asked = [int(argument) for argument in sys.argv[1:]]
    sys.exit(uvloop.run(main(*asked, *(500, 100)[len(asked) :])))
