"""A real Redis of our own: started on a free port, paused, flushed, restarted; and a wire to it that can be slow.

As a script: `./run env PYTHONPATH=tests python -m support.redis` prints the latency of an admission; with a URL it
is one of the processes that `test_redis_atomicity` sets upon the same Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest
import uvloop

from fal_proxy.errors import StoreUnavailable
from fal_proxy.stores import Ask, Budget, Concurrency, Outcome, Rate
from fal_proxy.stores.link import Link, NotSent
from fal_proxy.stores.redis import RedisStore
from support.ports import free_port

PROGRAM = shutil.which("redis-server")


class RedisServer:
    """One redis-server process; `durable` keeps its data over a restart."""

    def __init__(self, folder: str, durable: bool = False) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._options = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", folder, "--save", ""]
        self._options += [
            "--appendonly",
            "yes" if durable else "no",
            "--appendfsync",
            "always",
            "--loglevel",
            "warning",
        ]
        self.start()

    def start(self) -> None:
        """Start, and return once it answers."""
        assert PROGRAM is not None
        self._process = subprocess.Popen([PROGRAM, *self._options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                if self.command("PING").startswith(b"+PONG"):
                    return
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def stop(self) -> None:
        """End the process as a crash would."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Let it hang: the kernel goes on accepting and buffering."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def command(self, *words: str) -> bytes:
        """Send one command on a connection of its own; return the start of its raw reply."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as sock:
            packed = "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
            sock.sendall(f"*{len(words)}\r\n{packed}".encode())
            return sock.recv(65536)

    def number(self, *words: str) -> int:
        """Send one command; return its integer or numeric text, 0 for nothing."""
        lines = self.command(*words).split(b"\r\n")
        return 0 if lines[0] == b"$-1" else int(lines[0][1:] if lines[0][:1] == b":" else lines[1])


@contextlib.contextmanager
def redis_server(durable: bool = False) -> Iterator[RedisServer]:
    """Run a Redis until the block ends; skip the test where there is none to run."""
    if PROGRAM is None:
        pytest.skip("redis-server is not installed")
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(folder, durable)
        try:
            yield server
        finally:
            server.resume()
            server.stop()


class SlowWire:
    """A TCP relay to a Redis that can hold back either direction, or swallow everything without closing."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.delay_seconds = 0.0  # of replies
        self.request_delay_seconds = 0.0
        self._vanished = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.accepted = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def vanish(self) -> None:
        """Leave every open connection half-open: what is sent there disappears from now on; new ones work."""
        self._vanished = self.accepted

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        number = self.accepted
        back, forth = await asyncio.open_connection("127.0.0.1", self._target)
        for source, sink, late in ((reader, forth, False), (back, writer, True)):
            task = asyncio.create_task(self._pump(number, source, sink, late))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, number: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter, late: bool) -> None:
        try:
            while piece := await source.read(65536):
                if number <= self._vanished:
                    continue
                if delay := self.delay_seconds if late else self.request_delay_seconds:
                    await asyncio.sleep(delay)
                sink.write(piece)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()


class Unsteady(RedisStore):
    """A store whose calls now and then do not reach Redis, or whose answers are lost."""

    fate: list[str]  # of the next settlements and questions for what is untold; the last comes first

    def __init__(self, url: str, clock: Callable[[], float] | None = None) -> None:
        super().__init__(url, clock)
        self._link = Link(url, call_seconds=10.0)  # a busy machine decides nothing here
        self.fate = []

    async def _run(self, operation: str, argument: object) -> Any:
        fate = self.fate.pop() if operation in ("settle", "untold") and self.fate else "well"
        if fate == "unsent":
            raise NotSent("it did not leave")
        reply = await super()._run(operation, argument)
        if fate == "unheard":
            raise StoreUnavailable("no answer came")
        return reply

    async def heard(self) -> None:
        """Wait until everything has reached Redis."""
        while (sender := self._sender) is not None:
            await sender


async def measure(url: str, concurrent: int, count: int = 4000) -> tuple[float, float, float]:
    """Return p50 and p99 of an admission in microseconds, and admissions per second."""
    store = RedisStore(url)
    took: list[float] = []

    async def one(caller: int) -> None:
        for _ in range(count // concurrent):
            key = f"caller-{caller}"
            ask = Ask(
                rates=(Rate(key, 10**6, 60), Rate(key, 10**6, 86400), Rate("network", 10**6, 60)),
                concurrency=(Concurrency(key, 10**6), Concurrency("network", 10**6)),
                budgets=(Budget(key, 10**12, "day"), Budget("plan", 10**12, "day"), Budget("all", 10**12, "day")),
                amount_microusd=25_000,
                entry_id=uuid.uuid4().hex,
            )
            started = time.perf_counter()
            await store.admit(ask)
            took.append(time.perf_counter() - started)
            await store.settle(ask.entry_id, Outcome.RELEASED)

    await store.ping()
    begun = time.perf_counter()
    await asyncio.gather(*(one(caller) for caller in range(concurrent)))
    elapsed = time.perf_counter() - begun
    await store.close()
    took.sort()
    return statistics.median(took) * 1e6, took[int(len(took) * 0.99)] * 1e6, len(took) / elapsed


async def flock(url: str) -> None:
    """Admit when told to: each line of stdin names a round and its limits; each answer is how many were admitted."""
    store = RedisStore(url)
    await store.ping()
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while line := (await lines.readline()).decode().split():
        key, count, rate, slots, money = line[0], *map(int, line[1:])

        async def one(key: str, rate: int, slots: int, money: int) -> str:
            limits = ((Rate(key, rate, 3600),), (Concurrency(key, slots),), (Budget(key, money, "total"),))
            while True:
                try:
                    verdict = await store.admit(Ask(None, *limits, 7, "0.025", uuid.uuid4().hex))
                    return "admitted" if verdict.denied is None else verdict.denied.value
                except NotSent:  # more than this machine can ask within a call's time: as a client, try again
                    await asyncio.sleep(0.05)
                except StoreUnavailable:
                    return "unknown"

        ended = Counter(await asyncio.gather(*(one(key, rate, slots, money) for _ in range(count))))
        sys.stdout.write(json.dumps(ended) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1:]:
        uvloop.run(flock(sys.argv[1]))
        sys.exit()
    with redis_server() as running_server:
        for together in (1, 8, 64):
            middle, late, rate = uvloop.run(measure(running_server.url, together))
            sys.stdout.write(f"{together} at once: p50 {middle:.0f} us, p99 {late:.0f} us, {rate:.0f} admit+settle/s\n")
