"""Thousands of random faults in a row: nothing hangs, nothing is held at the end, and the money adds up to the micro-dollar.

`./run env PYTHONPATH=tests python -m soak.faults [COUNT] [SEED]`: the proxy is a process of its own; callers, the fault
proxy and a fal with books of its own are this one.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from support.faults import (
    CLEAN,
    GARBAGE,
    PAID,
    REDIRECT,
    STATUS_600,
    Fault,
    Faulty,
    Heard,
    call,
    charged,
    dissect,
    foretell,
    judge,
)
from support.limited import COMPLETED, IN_QUEUE, NAMED, cancel, events, result, said, status, status_stream, units
from support.observed import Sight, observed, target
from support.peers import Upstream
from support.raw import request
from support.scripts import ok

PRICE = 10_000  # micro-dollars a unit
AT_ONCE = 24
STALL_SECONDS = 1.0
CLEAN_SHARE = 0.15  # of the requests, so that faults meet the innocent
APP = "fal-ai/soak"
SUBMIT = ("POST", f"/queue.fal.run/{APP}")
RUN = ("POST", f"/fal.run/{APP}")
STREAM = ("POST", f"/fal.run/{APP}/stream")
MARK = b"user-agent: fault-"


@dataclass
class Job:
    """One job as fal knows it."""

    id: str
    result: bytes
    cancelled: bool  # what its caller will do with it
    charge: int
    known: bool = False


@dataclass
class Storm:
    """Callers and fal, and the books of both."""

    port: int = 0
    random: random.Random = field(default_factory=random.Random)
    left: int = 0  # faults yet to come
    faults: dict[int, tuple[Fault, bytes]] = field(default_factory=dict)  # by request: the fault and the intact answer
    seen: set[int] = field(default_factory=set)
    jobs: dict[str, Job] = field(default_factory=dict)
    spent: int = 0  # what CONTRACT §4 says that callers were charged
    tally: Counter[str] = field(default_factory=Counter)
    faulty: Faulty = field(init=False)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.faulty = Faulty(self._answer, self._choose)

    # fal

    def _choose(self, head: bytes) -> Fault:
        number = _number(head)
        return CLEAN if number is None else self.faults[number][0]

    async def _answer(self, head: bytes, _: bytes) -> bytes:
        number = _number(head)
        if number is not None:
            self.seen.add(number)
            return self.faults[number][1]
        # The settler asks, without a mark.
        path = head.split(b" ")[1].decode()
        job = self.jobs[path.split("/requests/")[1].partition("/")[0]]
        if path.endswith("/status"):
            return IN_QUEUE if job.cancelled else COMPLETED
        return job.result

    # callers

    async def rage(self, count: int) -> None:
        """Let faults fall until there were `count`; raise what any caller was harmed by."""
        self.left = count
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._call_on())

    async def _call_on(self) -> None:
        while self.left > 0:
            kind = self.random.choice(["run", "stream", "job", "job"])
            if kind == "job":
                await self._job()
            else:
                await self._call(kind)

    async def _call(self, kind: str) -> None:
        bill = self._bill()
        if kind == "run":
            await self._ask("run", RUN, ok(b'{"images": []}', *bill))
        else:
            wire = events(b"1", b"\xe2\x82\xac", b"3")
            await self._ask(
                "stream", STREAM, wire.replace(b"\r\n\r\n", b"\r\n" + b"".join(bill) + b"\r\n\r\n", 1) if bill else wire
            )

    def _bill(self) -> list[bytes]:
        return self.random.choice([[], [units("0")], [units("2")], [units("3.5")]])

    async def _job(self) -> None:
        job = self._new_job()
        url = f"https://queue.fal.run/{APP}/requests/{job.id}"
        heard = await self._ask("submit", SUBMIT, ok(msgspec.json.encode({"request_id": job.id, "response_url": url})))
        if heard.answer.status != 200:
            return
        steps = self.random.choices(["status", "status_stream", "result", "cancel"], k=self.random.randint(0, 4))
        for step in [*steps, "end"]:
            if step == "end":
                await self._end(job)
            elif step != "cancel" or job.cancelled:
                await self._step(job, step)
        self.spent += job.charge

    def _new_job(self) -> Job:
        name = f"job-{next(self.numbers)}"
        bill = self._bill()
        cancelled = self.random.random() < 0.3
        refused = not bill and self.random.random() < 0.5
        wire = said(422, b'{"detail": "no"}', NAMED) if refused else ok(b'{"images": []}', NAMED, *bill)
        charge = 0 if cancelled or refused else charged(dissect(wire), head=True, whole=True, price=PRICE)
        self.jobs[name] = Job(name, wire, cancelled, charge)
        return self.jobs[name]

    async def _step(self, job: Job, step: str, *, fault: Fault | None = None) -> None:
        if step == "status":
            await self._ask(step, status(job.id, APP), IN_QUEUE if job.cancelled else COMPLETED, fault)
        elif step == "status_stream":
            method, path = status_stream(job.id)
            wire = events(b'{"status":"%b"}' % (b"IN_QUEUE" if job.cancelled else b"COMPLETED"))
            await self._ask(step, (method, path.replace("fal-ai/flux", APP)), wire, fault)
        elif step == "cancel":
            await self._ask(step, cancel(job.id, APP), ok(b'{"status":"OK"}'), fault)
        else:
            await self._ask(step, result(job.id, APP), said(400) if job.cancelled else job.result, fault)

    async def _end(self, job: Job) -> None:
        for step in ["cancel"] if job.cancelled else ["status", "result"]:
            await self._step(job, step, fault=CLEAN)

    async def _ask(self, kind: str, where: tuple[str, str], wire: bytes, fault: Fault | None = None) -> Heard:
        """Ask through the proxy, judge what comes back, and book what it cost."""
        number = next(self.numbers)
        fault = self._draw(kind, wire) if fault is None else fault
        self.faults[number] = fault, wire
        method, path = where
        body = b"{}" if not fault.early else b'{"prompt": "%b"}' % (b"x" * self.random.randint(1, 600_000))
        fields = [("User-Agent", f"fault-{number}"), ("Connection", "close")]
        data = request(method, target(path), fields, body if method == "POST" else None)
        if self.random.random() < 0.1:
            data = data.replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        while True:
            heard = await call(self.port, data)
            if number in self.seen:
                break
            self._unseen(kind, heard)
            if fault is not CLEAN:
                return heard
        expected = foretell(kind, wire, fault)
        try:
            judge(heard, expected, unread=fault.early)
        except AssertionError as error:
            error.add_note(f"request {number}, {kind}: {fault}, {wire!r}")
            raise
        sent = None if fault.instead == GARBAGE else dissect(fault.cut(wire), ended=True)
        refused = expected.whole and expected.status >= 400
        if kind in ("run", "stream"):
            self.spent += charged(sent, head=expected.head, whole=expected.whole, price=PRICE)
        elif kind == "submit" and expected.status != 200 and not refused:
            self.spent += PRICE
        return heard

    def _unseen(self, kind: str, heard: Heard) -> None:
        """Judge the answer to a request that fal never read: its connection died first."""
        answer = heard.answer
        self.tally["connection died unread"] += 1
        said = answer.status, answer.fields.get(b"x-fal-error-type")
        if kind in PAID and said == (500, b"upstream_outcome_unknown"):
            self.spent += PRICE
        else:
            assert said == (502, b"upstream_unreachable"), heard

    def _draw(self, kind: str, wire: bytes) -> Fault:
        if self.left <= 0 or self.random.random() < CLEAN_SHARE:
            return CLEAN
        self.left -= 1
        at = self.random.randint(0, len(wire))
        # A job that fal shows as succeeded and then as failed would be fal contradicting itself.
        packed = wire if kind == "result" else ok(gzip.compress(b"{}"), b"content-encoding: gzip")
        name, fault = self.random.choices(
            [
                ("reset", Fault(after=at, end="reset")),
                ("close", Fault(after=at, end="close")),
                ("whole, then reset", Fault(end="reset")),
                ("stall", Fault(after=min(at, len(wire) - 1), end="stall")),
                ("garbage", Fault(instead=GARBAGE)),
                ("redirect", Fault(instead=REDIRECT)),
                ("status 600", Fault(instead=STATUS_600)),
                ("extra bytes", Fault(extra=self.random.choice([GARBAGE, wire, b"\r\n\r\n0"]))),
                ("drip", Fault(after=self.random.choice([None, at]), end="close", drip=True)),
                ("gzip", Fault(instead=packed)),
                ("error of fal's", Fault(instead=said(self.random.choice([400, 404, 422, 429, 499, 500, 503])))),
                ("reset unread", Fault(end="close")),
                ("early", Fault(early=kind in PAID)),
            ],
            [20, 20, 4, 8, 6, 5, 4, 7, 6, 5, 8, 4, 5],
        )[0]
        if name == "reset unread":
            self.faulty.resets += 1
        self.tally[name] += 1
        return fault


def _number(head: bytes) -> int | None:
    _, found, rest = head.partition(MARK)
    return int(rest.partition(b"\r\n")[0]) if found else None


class Report(NamedTuple):
    """What a storm came to."""

    storm: Storm
    before: Sight
    after: Sight
    me: dict[str, Any]
    seconds: float

    def judge(self) -> None:
        """Assert that nothing is held and that the money adds up."""
        before, after = self.before, self.after
        assert (after.in_progress, after.open_calls, after.reservations) == (0, 0, 0), after
        assert after.tasks == before.tasks, (before, after)
        assert after.sockets - after.idle == before.sockets - before.idle, (before, after)
        assert self.me["concurrent"]["in_use"] == 0, self.me
        budget = self.me["budget"]
        assert (budget["spent_microusd"], budget["reserved_microusd"]) == (self.storm.spent, 0), (
            budget,
            self.storm.spent,
        )


async def storm(count: int, seed: int, folder: Path) -> Report:
    """Let `count` faults fall on a proxy process of its own. Raises TimeoutError for a hang, AssertionError for harm."""
    world = Storm(random=random.Random(seed))
    upstream = Upstream((world.faulty.script,), None)
    started = time.monotonic()
    try:
        async with observed(
            upstream.port,
            folder,
            head_seconds=STALL_SECONDS,
            run_head_seconds=STALL_SECONDS,
            body_idle_seconds=STALL_SECONDS,
        ) as proxy:
            world.port = proxy.port
            before = await proxy.look()
            await world.rage(count)
            after = await proxy.calm(before)
            me = msgspec.json.decode(
                (await call(proxy.port, request("GET", target("/me"), [("Connection", "close")]))).answer.body
            )
    finally:
        await upstream.close()
    return Report(world, before, after, me, time.monotonic() - started)


def main() -> None:
    """Run one storm and say what it came to."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(storm(count, seed, Path(folder)))
    world, after = report.storm, report.after
    print(
        f"{sum(world.tally.values())} events in {report.seconds:.0f} s, seed {seed}: {dict(world.tally.most_common())}"
    )
    print(f"requests: {len(world.faults)}, of which fal saw {len(world.seen)}; jobs: {len(world.jobs)}")
    print(f"before {report.before}\nafter  {after}")
    print(
        f"spent {report.me['budget']['spent_microusd']} micro-dollars, by fal's books {world.spent}; "
        f"reserved {report.me['budget']['reserved_microusd']}; slots {report.me['concurrent']['in_use']}"
    )
    report.judge()
    print("passed")


if __name__ == "__main__":
    main()
