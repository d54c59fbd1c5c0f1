"""Tens of thousands of callers who leave at random moments: upstream learns it at once, and nothing stays behind.

`./run env PYTHONPATH=tests python -m soak.cancellations [COUNT] [SEED]`: the proxy is a process of its own; callers and
upstream are this one, so that one clock times both ends.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
import uvloop

from support.faults import call
from support.limited import IN_QUEUE, RUN, STREAM, SUBMIT, result, said, status, status_stream
from support.observed import Sight, observed, raise_descriptor_limit, target
from support.raw import request
from support.scripts import ok

AT_ONCE = 12
LONGEST_SECONDS = 0.02  # until a caller leaves
WHOLE_SHARE = 0.9  # of the callers send all of their request
PATIENT_SHARE = 0.6  # of these leave only when upstream has it
SUBMIT_SECONDS = 0.005  # until upstream answers what is read to its end for nobody
LOOKS = 20
ENDED_SECONDS = 15.0
STEP_SECONDS = 0.01
MARK = b"user-agent: caller-"
HEALTHY = -1  # stays, and is answered
JOB = "some-job"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_STREAMED = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"
)
_KINDS = {
    "run": RUN,
    "stream": STREAM,
    "upload": RUN,
    "submit": SUBMIT,
    "status": status(JOB),
    "status_stream": status_stream(JOB),
    "result": result(JOB),
}
_SPEAKS = frozenset(["stream", "status_stream"])  # upstream begins an answer and never ends it


@dataclass
class World:
    """Who left when, and when upstream learned it."""

    random: random.Random
    port: int = 0
    kinds: dict[int, str] = field(default_factory=dict)
    arrived: set[int] = field(default_factory=set)  # at upstream, whole or in part
    arrivals: dict[int, asyncio.Future[None]] = field(default_factory=dict)  # who waits to be heard before leaving
    left: dict[int, float] = field(default_factory=dict)
    ended: dict[int, float] = field(default_factory=dict)

    async def desert(self, first: int, count: int) -> None:
        """Let `count` callers come and leave."""
        numbers = iter(range(first, first + count))

        async def deserters() -> None:
            for number in numbers:
                await self._leave(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(deserters())

    async def healthy(self, kind: str = "run") -> bool:
        """Say whether a caller who stays is served."""
        return (await call(self.port, self._request(kind, HEALTHY))).answer.status == 200

    async def _leave(self, number: int) -> None:
        kind = self.kinds[number] = self.random.choice(list(_KINDS))
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, ("127.0.0.1", self.port))
            data = self._request(kind, number)
            whole = self.random.random() < WHOLE_SHARE
            await loop.sock_sendall(sock, data if whole else data[: self.random.randint(0, len(data))])
            if whole and self.random.random() < PATIENT_SHARE:
                arrival = self.arrivals[number] = loop.create_future()
                await arrival
            await asyncio.sleep(self.random.uniform(0, LONGEST_SECONDS))
            if self.random.random() < 0.5:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        finally:
            self.left[number] = time.monotonic()
            self.arrivals.pop(number, None)
            sock.close()

    def _request(self, kind: str, number: int) -> bytes:
        method, path = _KINDS[kind]
        fields = [("User-Agent", f"caller-{number}"), ("Connection", "close")]
        if kind == "upload":
            # The rest is never sent: the caller leaves in the middle.
            fields.append(("Content-Length", "900000"))
            return request(method, target(path), fields) + b"x" * 300_000
        return request(method, target(path), fields, b"{}" if method == "POST" else None)


class Deserted(asyncio.Protocol):
    """Upstream's end of one connection."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._received = b""
        self._number: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Note who is asking; answer only what must be answered."""
        if self._number is not None:
            return
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        number = int(head.partition(MARK)[2].partition(b"\r\n")[0] or HEALTHY)  # the settler has no mark
        if head.startswith(b"POST") and not body:
            return
        self._received = b""
        if number == HEALTHY:
            self._transport.write(_answer(head))
            return
        kind = self._world.kinds[number]
        self._world.arrived.add(number)
        if (arrival := self._world.arrivals.pop(number, None)) is not None:
            arrival.set_result(None)
        if kind == "submit":
            asyncio.get_running_loop().call_later(SUBMIT_SECONDS, self._transport.write, said(422))
            return
        self._number = number
        if kind in _SPEAKS:
            self._transport.write(_STREAMED)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note when it ended."""
        if self._number is not None:
            self._world.ended[self._number] = time.monotonic()


def _answer(head: bytes) -> bytes:
    """Answer a caller who stays, and the settler."""
    if b"/status " in head:
        return IN_QUEUE
    url = f"https://queue.fal.run/fal-ai/flux/requests/{JOB}"
    return ok(msgspec.json.encode({"request_id": JOB, "response_url": url}))


class Report(NamedTuple):
    """What became of everybody's leaving."""

    callers: int
    seconds: float
    delays_ms: list[float]  # from a caller's leaving to upstream's learning it, sorted
    never: int  # calls that upstream still holds
    healthy: bool
    looks: list[Sight]  # the first before anybody came, the second after a twentieth, the last when all was quiet
    me: dict[str, Any]

    def delay_ms(self, share: float) -> float:
        """Return a percentile."""
        return self.delays_ms[min(int(len(self.delays_ms) * share), len(self.delays_ms) - 1)]

    def judge(self) -> None:
        """Assert that nothing stayed behind."""
        before, after = self.looks[0], self.looks[-1]
        assert self.healthy, "callers who stay are served all along"
        assert self.never == 0, f"{self.never} calls go on for nobody"
        assert (after.in_progress, after.open_calls, after.reservations) == (0, 0, 0), after
        assert after.tasks == before.tasks, (before, after)
        assert after.sockets - after.idle == before.sockets - before.idle, (before, after)
        assert (self.me["concurrent"]["in_use"], self.me["budget"]["reserved_microusd"]) == (0, 0), self.me


async def cancellations(count: int, seed: int, folder: Path) -> Report:
    """Let `count` callers leave a proxy process of its own."""
    world = World(random.Random(seed))
    sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
    server = await asyncio.get_running_loop().create_server(lambda: Deserted(world), sock=sock)
    began = time.monotonic()
    async with server, observed(sock.getsockname()[1], folder) as proxy:
        world.port = proxy.port
        looks, healthy = [await proxy.look()], await world.healthy("submit")
        for part in range(LOOKS):
            first, last = (count * part // LOOKS, count * (part + 1) // LOOKS)
            await world.desert(first, last - first)
            healthy = healthy and await world.healthy()
            looks.append(await proxy.calm(looks[0]))
        healthy = healthy and await world.healthy("result")  # which settles the job
        me = await call(proxy.port, request("GET", target("/me"), [("Connection", "close")]))
        seconds = time.monotonic() - began
        waiting = {number for number in world.arrived if world.kinds[number] != "submit"}
        # The proxy has closed them all; that news is on its way at most.
        for _ in range(round(ENDED_SECONDS / STEP_SECONDS)):
            if waiting <= world.ended.keys():
                break
            await asyncio.sleep(STEP_SECONDS)
        delays = sorted(1000 * (world.ended[number] - world.left[number]) for number in waiting & world.ended.keys())
        never = len(waiting - world.ended.keys())
    return Report(count, seconds, delays, never, healthy, looks, msgspec.json.decode(me.answer.body))


def main() -> None:
    """Run once and say what came of it."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    raise_descriptor_limit()
    with tempfile.TemporaryDirectory() as folder:
        report = uvloop.run(cancellations(count, seed, Path(folder)))
    before, early, after = report.looks[0], report.looks[1], report.looks[-1]
    shares = ", ".join(f"p{share * 100:g} {report.delay_ms(share):.1f} ms" for share in (0.5, 0.99, 0.999))
    print(
        f"{report.callers} cancellations in {report.seconds:.0f} s, seed {seed}; {len(report.delays_ms)} had reached upstream"
    )
    print(
        f"upstream learned of a departure after {shares}, at most {report.delays_ms[-1]:.1f} ms; never: {report.never}"
    )
    print(f"resident: {early.resident_kib / 1024:.1f} MiB after 5 %, {after.resident_kib / 1024:.1f} MiB at the end")
    print(f"sockets but idle ones: {before.sockets - before.idle} before, {after.sockets - after.idle} after")
    print(f"before {before}\nafter  {after}")
    report.judge()
    print("passed")


if __name__ == "__main__":
    main()
