"""A day in one place: proxies that come and go on one store, callers, a fal, one clock; and every count there is of it.

`Day` lets things happen and notes of each what its caller saw, what reached fal and what has to be paid by the contract.
`counted` reads lines, metrics, rollup and ledger; `support.counts` holds them against each other and against fal's own books.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest

from fal_proxy.admin.usage import as_csv, summary
from fal_proxy.admission.settler import Settler
from fal_proxy.emulator import Entry, parse_faults
from fal_proxy.settings import Settings
from fal_proxy.stores import Store
from fal_proxy.stores.memory import MemoryStore
from fal_proxy.stores.redis import RedisStore
from fal_proxy.telemetry.access import AccessLog
from fal_proxy.telemetry.rollup import Rollup
from fal_proxy.upstream.answer import Head
from fal_proxy.upstream.keys import Key
from support.counts import Deed, Person, Tally
from support.emulated import Emulated
from support.ledger import cost
from support.limited import Clock, Fields, Limited, limited
from support.lines import Lines, samples
from support.peers import turns
from support.proxied import MOUNT
from support.raw import RawAnswer, raw_client, request

Ends = Literal["billed", "reserved", "nothing"]
Target = tuple[str, str]
WAIT_SECONDS = 20.0
_STEP_SECONDS = 0.002
_RELAYED = ("/fal.run/", "/queue.fal.run/", "/rest.fal.ai/", "/wma.fal.run/")


@dataclass
class Process:
    """One proxy, and what ends it."""

    running: Limited
    stack: contextlib.AsyncExitStack
    store: Store


@dataclass
class Day:
    """See the module."""

    fal: Emulated
    clock: Clock
    lines: Lines
    settings: Settings
    folder: Path
    open_store: Callable[[], Store]
    people: dict[str, Person] = field(default_factory=dict)
    prices: dict[str, str] = field(default_factory=dict)
    reserve_units: dict[str, str] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    deeds: list[Deed] = field(default_factory=list)
    seen: Counter[int | None] = field(default_factory=Counter)
    sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    died: int = 0
    _turn: int = 0
    _exchanges: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _raised: Counter[str] = field(default_factory=Counter)
    _lowered: Counter[str] = field(default_factory=Counter)
    _rollup: dict[str, Counter[str]] = field(
        default_factory=lambda: {"plans": Counter(), "callers": Counter(), "endpoints": Counter()}
    )
    _rollup_requests: int = 0
    _csv: int = 0

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Let every proxy to come live by this clock, and every question of a settler be noted."""

        def now() -> datetime:
            return datetime.fromtimestamp(self.clock.now, UTC)

        get = Settler._get

        async def noted(settler: Settler, path: bytes, key: Key, *, keep: bool) -> tuple[Head, bytes, bool]:
            self.asked[("GET", "queue.fal.run" + path.decode())] += 1
            return await get(settler, path, key, keep=keep)

        patch.setattr(Settler, "_get", noted)
        patch.setattr("fal_proxy.telemetry.Rollup", lambda: Rollup(self.clock))
        patch.setattr("fal_proxy.telemetry.AccessLog", lambda: AccessLog(now))

    # Processes

    async def start(self) -> Process:
        """Start one more proxy."""
        stack = contextlib.AsyncExitStack()
        store = self.open_store()
        running = await stack.enter_async_context(
            limited(self.fal.url, self.folder, self.settings, clock=self.clock, store=store, user_key="unused")
        )
        self.processes.append(Process(running, stack, store))
        return self.processes[-1]

    async def stop(self, process: Process) -> None:
        """End a proxy as SIGTERM does."""
        await turns()
        self._count(process)
        self.processes.remove(process)
        await process.stack.aclose()

    async def kill(self, process: Process, asking: asyncio.Task[Any]) -> None:
        """End a proxy as SIGKILL does, a second after the last settlement: what it does from now on never happened.

        Its folder is left as it is now. `asking` is the caller of the request that is being answered.
        """
        await turns()
        self._count(process)
        self.processes.remove(process)
        if isinstance(process.store, RedisStore):
            process.store._lost = True
        else:
            assert isinstance(process.store, MemoryStore)
            await process.store._durable()
            left = self.folder / f"journal-{self.clock.now}"
            shutil.copytree(self.folder / "journal", left)
        self.lines.__exit__()
        self.died += len(process.running.proxy.app._gateway.telemetry.in_progress)
        asking.cancel()
        await asyncio.wait([asking])
        await process.stack.aclose()
        self.lines.__enter__()
        if isinstance(process.store, MemoryStore):
            shutil.rmtree(self.folder / "journal")
            left.rename(self.folder / "journal")

    async def pass_(self, seconds: float) -> None:
        """Let time pass, and every settler take its turn."""
        self.clock.advance(seconds)
        await self.settle()

    async def settle(self) -> None:
        """Let every settler take its turn."""
        for process in self.processes:
            await process.running.turn()

    # Callers

    async def ask(
        self,
        who: str,
        target: Target,
        body: bytes = b"{}",
        *,
        fields: Fields | None = None,
        fault: str = "",
        reaches: bool = True,
    ) -> RawAnswer | None:
        """Ask the next proxy in turn; return the answer, None when the connection broke off before its head.

        `reaches`: what is asked has to reach fal.
        """
        self._turn += 1
        process = self.processes[self._turn % len(self.processes)]
        self.fal.app.faults[:] = parse_faults(fault)
        chosen = self.people[who].fields if fields is None else fields
        answer: RawAnswer | None
        try:
            answer = await process.running.ask(target, chosen, body)
        except (asyncio.IncompleteReadError, ConnectionError):
            answer = None
        self.fal.app.faults.clear()
        self._sent(target, answer.status if answer is not None else None, reaches=reaches)
        return answer

    async def leave(self, who: str, target: Target, body: bytes, arrived: Callable[[Entry], bool]) -> None:
        """Ask, and leave as soon as fal has the request."""
        process = self.processes[self._turn % len(self.processes)]
        written = len(self.lines.text)
        count = len(self.fal.app.journal)
        async with raw_client(process.running.proxy.port) as client:
            await client.send(request(target[0], MOUNT + target[1], self.people[who].fields, body))
            await until(lambda: len(self.fal.app.journal) > count and arrived(self.fal.last))
            client.reset()
            await self.line(written + 1)
        self._sent(target, json.loads(self.lines.text[written])["status"])

    async def line(self, count: int) -> None:
        """Wait until so many lines are written."""
        await until(lambda: len(self.lines.text) >= count)

    def _sent(self, target: Target, status: int | None, *, reaches: bool = True) -> None:
        self.seen[status] += 1
        if reaches and target[1].startswith(_RELAYED):
            self.sent[(target[0], target[1][1:])] += 1

    # What has to be paid

    async def pay(
        self,
        who: str,
        target: Target,
        body: bytes = b"{}",
        *,
        ends: Ends,
        fault: str = "",
        fields: Fields | None = None,
        payer: str = "",
    ) -> RawAnswer | None:
        """Ask for a run or a stream, and note what it has to cost by what fal says it did."""
        deed = self.deed(payer or who, target, f"{target[1]} {fault}")
        before = self._bills()
        answer = await self.ask(who, target, body, fault=fault, fields=fields)
        entry = await self.fal.finished()
        deed.billed = [bill for bill in self._bills() if bill not in before]
        deed.owed, deed.told = self._owed(deed, ends, entry.units), ends == "billed" and entry.units not in (None, "0")
        return answer

    def deed(self, who: str, target: Target, what: str = "") -> Deed:
        """Begin something that may have to be paid."""
        endpoint = target[1].partition("/")[2].partition("/")[2].removesuffix("/stream")
        price = self.prices.get(endpoint, self.prices["default"])
        reserved = cost(price, self.reserve_units.get(endpoint, "1"))
        self.deeds.append(Deed(what or target[1], who, price, reserved))
        return self.deeds[-1]

    async def submit(
        self, who: str, body: bytes = b"{}", target: Target = ("POST", "/queue.fal.run/emulator/echo"), **more: Any
    ) -> Deed:
        """Submit a job; what it costs is known when it has ended: `ended`."""
        payer = more.pop("payer", who)
        answer = await self.ask(who, target, body, **more)
        assert answer is not None
        assert answer.status == 200, answer
        deed = self.deed(payer, target)
        deed.request_id = str(json.loads(answer.body)["request_id"])
        return deed

    def ended(self, deed: Deed, ends: Ends, *, told: bool | None = None) -> None:
        """Say what a job has to cost; `told`: fal's units came through, by default where they are billed."""
        deed.billed = [bill for bill in self._bills() if bill[0] == deed.request_id]
        units = f"{deed.billed[0][1]:f}" if deed.billed else "0"
        deed.owed = self._owed(deed, ends, units)
        deed.told = bool(deed.billed) and (ends == "billed" if told is None else told)

    def _owed(self, deed: Deed, ends: Ends, units: str | None) -> int:
        if ends == "billed":
            assert units is not None, deed
            return cost(deed.price, units)
        return deed.reserved if ends == "reserved" else 0

    def _bills(self) -> list[tuple[str, Decimal]]:
        return [(bill.request_id, bill.units) for bill in self.fal.app._world.bills.between(0, self.clock.now + 1)]

    # What was counted

    def _count(self, process: Process) -> None:
        """Add what one process has counted, at its end."""
        app = process.running.proxy.app
        for name, labels, value in samples(app):
            if name == "fal_proxy_exchanges_total":
                self._exchanges[(labels["kind"], labels["decision"], labels["ending"])] += int(value)
            elif name == "fal_proxy_cost_microusd_total":
                self._raised[labels["plan"]] += int(value)
            elif name == "fal_proxy_cost_lowered_microusd_total":
                self._lowered[labels["plan"]] += int(value)
        hours = app._gateway.telemetry.rollup.hours()
        shown = summary(hours)
        self._rollup_requests += shown["total"]["requests"]
        for dimension, names in self._rollup.items():
            for row in shown[dimension]:
                names[row["name"]] += row["microusd"]
        rows = [row.split(",") for row in as_csv(hours).decode().splitlines()]
        self._csv += sum(int(Decimal(row[-1]) * 1_000_000) for row in rows if row[1] == "total")

    async def counted(self) -> Tally:
        """Return everything, once the day is over and its proxies have stopped; `agree` judges it."""
        await turns()
        ledger = await self._ledger()
        while self.processes:
            await self.stop(self.processes[0])
        received = Counter((entry.method, f"{entry.host}{entry.target.decode()}") for entry in self.fal.app.journal)
        return Tally(
            seen=self.seen,
            lines=[json.loads(line) for line in self.lines.text],
            exchanges=self._exchanges,
            raised=self._raised,
            lowered=self._lowered,
            rollup_requests=self._rollup_requests,
            rollup=self._rollup,
            csv=self._csv,
            ledger=ledger,
            reached=received,
            sent=self.sent,
            asked=self.asked,
            bills=self._bills(),
            deeds=self.deeds,
            people=self.people,
            died=self.died,
        )

    async def _ledger(self) -> dict[str, tuple[int, int]]:
        """Return what the store holds under every budget's key, all periods together."""
        store = self.processes[0].store
        found: dict[str, tuple[int, int]] = {}
        if isinstance(store, MemoryStore):
            purses = [(name[0], purse.spent, purse.reserved) for name, purse in store.state.purses.items()]
        else:
            assert isinstance(store, RedisStore)
            purses = []
            for name in await store._link.call(("KEYS", "fal-proxy:purse:*")):
                spent, reserved = await store._link.call(("HMGET", name, "spent", "reserved"))
                purses.append((name.decode().split(":", 4)[4], int(spent or 0), int(reserved or 0)))
        for key, spent, reserved in purses:
            before = found.get(key, (0, 0))
            found[key] = (before[0] + spent, before[1] + reserved)
        return found


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what happens in another task."""
    for _ in range(round(WAIT_SECONDS / _STEP_SECONDS)):
        if is_so():
            return
        await asyncio.sleep(_STEP_SECONDS)
    raise TimeoutError
