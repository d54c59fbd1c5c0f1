"""The embedded store: one process's memory, bounded, and journalled when it is given a folder.

Every operation is a few dictionary accesses, however many callers there are; what has expired is dropped a little with
each operation instead of in sweeps. All state lives in `State`; what changes it is written down as `Put`s, absolute
values of what was touched, one group per operation. Replaying the groups in order gives the state again, and a snapshot
is nothing but a put of everything. See `journal` for when a group is on disk.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from fal_proxy.errors import StoreUnavailable
from fal_proxy.exchange import Payer
from fal_proxy.stores import (
    JOB_LEASE_SECONDS,
    SLOTS,
    Ask,
    Cause,
    Change,
    Denial,
    Due,
    Outcome,
    Owns,
    Question,
    RateState,
    Record,
    Standing,
    Usage,
    Verdict,
    marks,
)
from fal_proxy.stores.holdings import Charged, Entry, Purse
from fal_proxy.stores.periods import Calendar
from fal_proxy.stores.replay import StatePuts
from fal_proxy.stores.state import State

if TYPE_CHECKING:
    from fal_proxy.stores.journal import Journal

CONCURRENCY_RETRY_SECONDS = 5.0
# An admission that never hears of its end, and that nobody renews, belongs to a request that is no longer answered.
REQUEST_LEASE_SECONDS = 2 * 3600.0
UNTOLD_AT_ONCE = 100


class MemoryStore:
    """`Store` in one process."""

    def __init__(self, journal: Journal | None = None, clock: Callable[[], float] = time.time) -> None:
        """Replay `journal`; what was open without a request id when the last process died is an unknown outcome."""
        self._clock = clock
        self._now = 0.0
        self._journal = journal
        self._calendar = Calendar()
        self.state = State(written_down=journal is not None)
        if journal is not None:
            puts = StatePuts(self.state)
            journal.replay(puts)
            self._now = self.state.clock
            self._adopt()
            journal.start(puts)

    @property
    def may_be_marked(self) -> bool:
        """Whether anything is marked."""
        return bool(self.state.marks)

    async def admit(self, ask: Ask) -> Verdict:
        """Judge and reserve in one step."""
        if ask.entry_id and self._journal is not None:
            self._journal.require()  # a refusal consumes nothing, so it comes before the reservation
        now = self._tick()
        record = None if ask.owns is None else self.state.find(ask.owns.request_id, now)
        purses: list[Charged] = []
        verdict = self._judge_names(ask, record) or self._judge(ask, now, purses)
        if verdict is not None:
            return verdict
        state = self.state
        states: list[RateState] = []
        told = len(ask.rates) if ask.told is None else ask.told
        written = self._journal is not None and ask.entry_id
        for rate in ask.rates:
            seconds = rate.window_seconds
            slot = int(now * SLOTS / seconds)
            window = state.hit(rate.key, seconds, slot)
            if written:
                state.note_hit(rate.key, seconds, slot)
            if told:
                told -= 1
                states.append(window.state(rate.limit, seconds, now))
        if record is not None:
            state.asks.polled(record.request_id, now)
        if ask.entry_id:
            slots = tuple([limit.key for limit in ask.concurrency])
            names = tuple([charged[0] for charged in purses])
            lease_end = now + REQUEST_LEASE_SECONDS
            entry = Entry(ask.entry_id, ask.amount_microusd, names, slots, ask.price, lease_end, payer=ask.payer)
            state.open(entry, purses)
            if self._journal is not None:
                try:
                    await self._durable()
                except (StoreUnavailable, asyncio.CancelledError):
                    state.settle(entry, Outcome.RELEASED, 0)  # the request goes no further, so nobody else would
                    self._flush()
                    raise
        return Verdict(rates=tuple(states), record=record)

    def _judge_names(self, ask: Ask, record: Record | None) -> Verdict | None:
        for at, name in enumerate(ask.marks):
            if name in self.state.marks:
                return Verdict(Denial.MARKED, at)
        if ask.owns is not None and (record is None or not owns(record, ask.owns)):
            return Verdict(Denial.UNKNOWN_REQUEST)
        return None

    def _judge(self, ask: Ask, now: float, purses: list[Charged]) -> Verdict | None:
        """Return the refusal, or None, having collected the purses that would be charged."""
        state = self.state
        for at, rate in enumerate(ask.rates):
            windows = state.windows.get(rate.window_seconds)
            window = windows.get(rate.key) if windows is not None else None
            if window is not None and window.count(int(now * SLOTS / rate.window_seconds)) >= rate.limit:
                states = tuple([state.standing(told, now) for told in ask.rates[: ask.told]])
                left = window.state(rate.limit, rate.window_seconds, now)
                return Verdict(Denial.RATE, at, left.reset_seconds, states)
        in_use = state.slots
        for at, limit in enumerate(ask.concurrency):
            if in_use.get(limit.key, 0) >= limit.limit:
                return Verdict(Denial.CONCURRENCY, at, CONCURRENCY_RETRY_SECONDS)
        amount = ask.amount_microusd
        for at, budget in enumerate(ask.budgets):
            period, ends = self._calendar.at(budget.period, now)
            name = (budget.key, budget.period, period)
            purse = state.purses.get(name)
            if (purse.spent + purse.reserved if purse is not None else 0) + amount > budget.limit_microusd:
                return Verdict(Denial.BUDGET, at, None if ends is None else ends - now)
            purses.append((name, ends, purse))
        return None

    async def submitted(self, record: Record, lease_seconds: float = JOB_LEASE_SECONDS) -> None:
        """Record the ownership of a request id."""
        now = self._tick()
        self.state.own(record, now, now + lease_seconds)
        await self._durable()

    async def settle(
        self, entry_id: str, outcome: Outcome, amount_microusd: int = 0, *, by: Payer | None = None, onto: str = ""
    ) -> int:
        """Replace an entry's reservation and free its slot; return the change of its charge."""
        self._tick()
        entry = self.state.entries.get(entry_id)
        if entry is None or (outcome is not Outcome.BILLED and entry.outcome is not None):
            return 0
        if outcome is not Outcome.BILLED:
            amount_microusd = entry.amount if outcome is Outcome.AS_RESERVED else 0
        more = self.state.settle(entry, outcome, amount_microusd)
        if onto:
            self.state.put_onto(onto, entry, more)
            more = 0
        elif by is not None and is_another(by, entry.payer):
            self.state.leave(entry, more, Cause.ANOTHER)
            more = 0
        if self._journal is not None:
            self._flush()
        return more

    async def untold(self, told: Sequence[int] = ()) -> Sequence[Change]:
        """Return charges that changed with nobody there to tell of it."""
        self._tick()
        for number in told:
            self.state.told(number)
        self._flush()
        return list(itertools.islice(self.state.untold.values(), UNTOLD_AT_ONCE))

    async def completed(self, request_id: str) -> None:
        """Note that fal called the job COMPLETED."""
        self._tick()
        self.state.complete(request_id)
        self._flush()

    async def hasten(self, request_id: str) -> None:
        """Let the settler ask about a job now. After a restart it asks about all of them, so nothing is written down."""
        self.state.hasten(request_id, self._tick())

    async def find(self, request_id: str) -> Record | None:
        """Return the record of a request id."""
        return self.state.find(request_id, self._tick())

    async def due(self, limit: int) -> Sequence[Due]:
        """Claim jobs that nobody has asked about for long enough."""
        now = self._tick()
        claimed: list[Due] = []
        while len(claimed) < limit and (job := self.state.claim(now)) is not None:
            entry = self.state.entry_of(job[0])
            claimed.append(Due(self.state.records[job[0]], job[1], entry.payer if entry is not None else None))
        self._flush()
        return claimed

    async def standing(self, question: Question) -> Standing:
        """Return where a caller stands."""
        now = self._tick()
        rates = [self.state.standing(rate, now) for rate in question.rates]
        in_use = [self.state.slots.get(limit.key, 0) for limit in question.concurrency]
        budgets = []
        for budget in question.budgets:
            period, ends = self._calendar.at(budget.period, now)
            purse = self.state.purses.get((budget.key, budget.period, period), Purse())
            budgets.append(Usage(purse.spent, purse.reserved, ends))
        marked = tuple([name in self.state.marks for name in question.marks])
        return Standing(tuple(rates), tuple(in_use), tuple(budgets), marked)

    async def renew(self, entry_ids: Sequence[str]) -> None:
        """Put off the leases' end. After a restart all of them are lost anyway, so nothing is written down."""
        now = self._tick()
        for entry_id in entry_ids:
            self.state.renew(entry_id, now + REQUEST_LEASE_SECONDS)

    async def extend(self, name: str, seconds: float) -> float:
        """Cover a name for a while; what is not on disk at a crash is only covered, and paid for, once more."""
        now = self._tick()
        left = max(self.state.covers.get(name, now) - now, 0.0)
        if seconds > left:
            self.state.cover(name, now + seconds)
            self._flush()
        return left

    async def mark(self, name: str) -> None:
        """Let no admission that names it pass."""
        marks.mark(self.state, name, self._tick())
        await self._durable()

    async def unmark(self, name: str) -> None:
        """Take a mark away."""
        marks.unmark(self.state, name)
        await self._durable()

    async def marks(self) -> Mapping[str, float]:
        """Return what is marked, and since when."""
        return dict(self.state.marks)

    async def forget(self, question: Question) -> None:
        """Let rates and what budgets have spent begin at zero."""
        now = self._tick()
        names = [(each.key, each.period, self._calendar.at(each.period, now)[0]) for each in question.budgets]
        marks.forget(self.state, question.rates, names)
        await self._durable()

    async def ping(self) -> None:
        """Raise StoreUnavailable when the journal can no longer be written."""
        if self._journal is not None:
            self._journal.require()

    async def close(self) -> None:
        """Flush the journal and let go of it."""
        if self._journal is not None:
            await self._journal.close()

    def _tick(self) -> float:
        """Return the store's time, which never runs backwards, and drop a little of what it has left behind."""
        now = self._clock()
        if now > self._now:
            self._now = now
        if self._journal is not None:
            self.state.note_clock(self._now)
        self.state.expire(self._now)
        return self._now

    def _adopt(self) -> None:
        self._tick()
        for entry in [entry for entry in self.state.entries.values() if entry.outcome is None and not entry.request_id]:
            self.state.leave(entry, self.state.settle(entry, Outcome.AS_RESERVED, entry.amount), Cause.LOST)

    def _flush(self) -> None:
        if self._journal is not None:
            self._journal.append(self.state.take_puts())

    async def _durable(self) -> None:
        self._flush()
        if self._journal is not None:
            await self._journal.durable()


def is_another(payer: Payer, of_entry: Payer | None) -> bool:
    """Say whether what one pays for is charged to somebody else; of an older version's entries nobody knows."""
    return of_entry is not None and payer[:2] != of_entry[:2]


def owns(record: Record, question: Owns) -> bool:
    """Say whether a record answers the question with yes; the same under any other app would be a guess."""
    if question.app not in record.apps:
        return False
    return question.anonymous if not record.owners else not question.identities.isdisjoint(record.owners)
