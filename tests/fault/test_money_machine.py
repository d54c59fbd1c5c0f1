"""Whatever callers, fal, the clock and SIGKILL do in whatever order: the books hold what the contract's table wants.

The real gate, accounts, settler, store and journal run next to `support.ledger`. A kill leaves the folder as it is.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fal_proxy.admission.accounts import Account
from fal_proxy.admission.gate import Gate, Grant
from fal_proxy.admission.limits import BudgetLimit, Limits
from fal_proxy.admission.settler import AT_ONCE
from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller, Exchange, Kind, Target
from fal_proxy.policy.pricing import charge_for
from fal_proxy.stores.frames import frame
from fal_proxy.stores.journal import Journal
from fal_proxy.stores.memory import MemoryStore
from support import ledger
from support.crash import Disk, memory, segments
from support.ledger import Job, Said

START = 1_794_268_788.0  # Monday, 2026-11-09, 12 s before midnight
NETWORK = "anonymous::network-192.0.2.0"
PLANS = {
    "free": (2, BudgetLimit(700, "hour"), BudgetLimit(1_500, "day")),
    "paid": (3, BudgetLimit(5_000, "total"), None),
}
LIMITS = {
    name: Limits({"submit": (), "read": (), "upload": ()}, concurrent, 1, budget, total)
    for name, (concurrent, budget, total) in PLANS.items()
}
TOTAL = BudgetLimit(4_000, "week")


def caller(id_: str, plan: str, network: str = "") -> Caller:
    """Return a caller, an anonymous one if there is a network."""
    owners = () if id_ == network else (id_,)
    return Caller(id_, id_.partition(":")[0], plan, False, id_ == network, network, frozenset([id_]), owners)


ANONYMOUS = [caller(id_, "free", NETWORK) for id_ in (NETWORK, "anonymous::cookie-x", "anonymous::cookie-y")]
CALLERS = [caller("key::ann", "free"), caller("key::bob", "paid"), *ANONYMOUS]
PICK = st.integers(0, 20)
COSTS = st.sampled_from([Kind.RUN, Kind.STREAM, Kind.SUBMIT])
STATUSES = st.sampled_from([Said(200), Said(200, whole=False), Said(500)])
PRICES = st.sampled_from(["0.0001", "0.000033333333", "0.0000001", "0", "0.025"])
UNITS = st.one_of(
    st.integers(0, 9).map(str), st.from_regex(r"[0-9]\.[0-9]{1,8}", fullmatch=True), st.just("999999999999.99999999")
)
LEAPS = st.sampled_from([1, 1.5, 5, 10, 61, 600, 1_800, 3_599, 3_600, 7_200, 40_000, 86_399, 86_400, 8 * 86_400])
T = TypeVar("T")


def limits_of(caller: Caller) -> tuple[dict[str, int], list[ledger.Cap]]:
    """Return what a request that costs is judged by: slots and budgets."""
    concurrent, (limit, period), plan_budget = PLANS[caller.plan]
    factors = {caller.id: 1} | ({caller.network: 2} if caller.network else {})
    caps = [ledger.Cap(f"caller:{who}", limit * by, period) for who, by in factors.items()]
    caps += [ledger.Cap(f"plan:{caller.plan}", *plan_budget)] if plan_budget is not None else []
    return {f"jobs:{who}": concurrent * by for who, by in factors.items()}, [*caps, ledger.Cap("all", *TOTAL)]


class Money(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.loop = asyncio.new_event_loop()
        self.loop.time = lambda: self.now  # type: ignore[method-assign]
        self.root = Path(tempfile.mkdtemp())
        self.numbers = count()
        self.books = ledger.Books(START)
        self.calls: list[Account] = []
        self.submits: list[Account] = []
        self.jobs: dict[str, tuple[Caller, Job]] = {}
        self.open(self.root / "first")

    def open(self, folder: Path) -> None:
        """Start a process on a folder."""
        self.journal = Journal(folder, segment_bytes=4_000, sync=Disk())
        self.store = MemoryStore(self.journal, self.loop.time)
        self.gate = Gate(self.store, LIMITS, TOTAL, network_factor=2, ownership=True)
        self.settler = ledger.AskedSettler(self.store, charge_for)

    def do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end, and what the journal does in the background too: otherwise no example would repeat itself."""
        result = self.loop.run_until_complete(coroutine)
        while (task := self.journal._task) is not None:
            self.loop.run_until_complete(task)
        return result

    def flush(self) -> None:  # within a second everything is on disk
        self.do(self.journal.durable())
        self.books.save()

    def settle_down(self) -> None:
        """Let the store see the time as often as it takes to drop all that is over."""
        for _ in range(2 + len(self.jobs)):
            self.do(self.store.find(""))
        self.books.advance(self.now)

    def admit(self, caller: Caller, target: Target, amount: int = 0, price: str = "") -> Grant | str:
        """Return the gate's grant, or the type of its refusal, which must have changed nothing."""
        before = memory(self.store.state, self.now)
        try:
            return self.do(self.gate.admit(caller, self.gate.demand(caller, caller.plan, target), amount, price))
        except Refusal as refusal:
            return refusal.error_type if memory(self.store.state, self.now) == before else "changed something"

    def account(self, caller: Caller, target: Target, grant: Grant) -> Account:
        return Account(self.store, grant, Exchange(self.loop.time), caller, target, charge_for, "")

    def carry(self, account: Account, said: Said, units: str, *, written: bool = True, piece: int = 9) -> None:
        """Let an answer pass as the relay does, and close the account."""
        exchange, kind = account.exchange, account.target.kind
        exchange.written, exchange.whole = written, said.whole
        if said.status is not None:
            exchange.upstream_status, exchange.named = said.status, said.named
            exchange.units = units if said.says else None
            if kind in (Kind.STATUS, Kind.STATUS_STREAM, Kind.CANCEL):
                body = said.body if said.whole else said.body[:-1]
                for at in range(0, len(body), piece):
                    self.do(account.passing(body[at : at + piece]))
            elif said.whole:
                self.do(account.answered(said.status, said.body))
        self.do(account.close())

    def job(self, pick: int) -> tuple[Caller, Job]:
        return list(self.jobs.values())[pick % len(self.jobs)]

    def ask(self, pick: int, kind: Kind) -> tuple[Job, Account | None]:
        """Begin a request about a job; without an account when nobody owns it any more."""
        caller, job = self.job(pick)
        target = Target(b"queue.fal.run", job.path.encode(), None, kind, "fal-ai/flux", job.id)
        grant = self.admit(caller, target)
        assert self.books.is_owned(self.books.of(job)) is isinstance(grant, Grant)
        if isinstance(grant, str):
            assert grant == "unknown_request"
            return job, None
        job.last_polled = self.now
        return job, self.account(caller, target, grant)

    @rule(caller=st.sampled_from(CALLERS), kind=COSTS, price=PRICES, amount=st.integers(0, 400))
    def arrive(self, caller: Caller, kind: Kind, price: str, amount: int) -> None:
        slots, caps = limits_of(caller)
        target = Target(b"fal.run", b"/fal-ai/flux/dev", None, kind, "fal-ai/flux/dev")
        expected = self.books.would_admit(slots, caps, amount)
        grant = self.admit(caller, target, amount, price)
        assert (grant if isinstance(grant, str) else None) == expected
        if isinstance(grant, str):
            return
        self.books.open(grant.entry_id, price, amount, caps, slots)
        held = self.books.purses()
        assert all(sum(held[name]) <= cap.limit for name, cap in self.books.names(caps))
        flights = self.submits if kind is Kind.SUBMIT else self.calls
        flights.append(self.account(caller, target, grant))

    @precondition(lambda self: self.calls)
    @rule(pick=PICK, end=st.sampled_from(ledger.CALL_ENDS), units=UNITS)
    def call_ends(self, pick: int, end: ledger.End, units: str) -> None:
        account = self.calls.pop(pick % len(self.calls))
        self.carry(account, end.answer, units, written=end.written)
        self.books.bills[account.grant.entry_id].settle(end.bill, units)

    @precondition(lambda self: self.submits)
    @rule(pick=PICK, end=st.sampled_from(ledger.SUBMIT_ENDS), units=UNITS)
    def submit_fails(self, pick: int, end: ledger.End, units: str) -> None:
        account = self.submits.pop(pick % len(self.submits))
        self.carry(account, end.answer, units, written=end.written)
        self.books.bills[account.grant.entry_id].settle(end.bill)

    @precondition(lambda self: self.submits)
    @rule(pick=PICK, units=UNITS, done=st.booleans(), app=st.sampled_from(["fal-ai/flux", "fal-ai/flux-base"]))
    def submit_succeeds(self, pick: int, units: str, done: bool, app: str) -> None:
        account = self.submits.pop(pick % len(self.submits))
        job = Job(f"job-{next(self.numbers)}", app, units, done, last_polled=self.now)
        body = f'{{"request_id":"{job.id}","response_url":"https://queue.fal.run{job.path}"}}'
        self.carry(account, Said(200, says=True, body=body.encode()), units)
        self.books.accept(account.grant.entry_id, job)
        self.jobs[job.path] = (account.caller, job)

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK, streamed=st.booleans(), said=STATUSES, piece=st.integers(1, 60))
    def status(self, pick: int, streamed: bool, said: Said, piece: int) -> None:
        job, account = self.ask(pick, Kind.STATUS_STREAM if streamed else Kind.STATUS)
        if account is not None:
            body = b"data: %b\n" % ledger.status_body(job) if streamed else ledger.status_body(job)
            self.carry(account, said._replace(body=body), job.units, piece=piece)
            if job.done and said.status == 200 and said.whole:
                self.books.complete(job)

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK, answers=st.lists(st.tuples(st.sampled_from(ledger.RESULTS), UNITS), min_size=1, max_size=4))
    def results(self, pick: int, answers: list[tuple[Said, str]]) -> None:
        for said, units in answers:
            job, account = self.ask(pick, Kind.RESULT)
            if account is not None:
                job.units = units
                said = said if job.done or said.status in ledger.SILENT else Said(400)  # before completion
                self.carry(account, said, units)
                self.books.hear(job, said)

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK, answer=st.sampled_from(ledger.CANCELS))
    def cancel(self, pick: int, answer: tuple[Said, bool]) -> None:
        job, account = self.ask(pick, Kind.CANCEL)
        if account is not None:
            self.carry(account, answer[0], job.units)
            if answer[1]:
                self.books.of(job).settle("released")

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK, kind=st.sampled_from([Kind.STATUS, Kind.STATUS_STREAM, Kind.RESULT, Kind.CANCEL]))
    def a_stranger_and_a_wrong_app_reach_nothing(self, pick: int, kind: Kind) -> None:
        caller, job = self.job(pick)
        for who, app in ((CALLERS[0 if caller is CALLERS[1] else 1], job.app), (caller, "fal-ai/other")):
            assert self.admit(who, Target(b"queue.fal.run", b"/", None, kind, app, job.id)) == "unknown_request"

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK)
    def fal_finishes(self, pick: int) -> None:
        self.job(pick)[1].done = True

    @rule(status=STATUSES, result=st.sampled_from(ledger.RESULTS))
    def settler_asks(self, status: Said, result: Said) -> None:
        now, jobs = self.now, {path: job for path, (_, job) in self.jobs.items()}
        waiting = [job for job in jobs.values() if self.books.of(job).charged is None]
        overdue = [job for job in waiting if now >= max(job.last_polled + 10, job.last_asked + 60)]
        asked = self.do(self.settler.ask(jobs, status, result))
        assert all(job in waiting and now >= job.last_polled + 10 for job in asked)
        assert all(job in asked for job in overdue) or len(asked) == AT_ONCE
        for job in asked:
            job.last_asked = now
            if job.done and status == Said(200):
                self.books.complete(job)
                self.books.hear(job, result)

    @rule(seconds=LEAPS)
    def time_passes(self, seconds: float) -> None:
        end = self.now + (min(seconds, 60) if self.submits else seconds)  # fal accepts or refuses at once
        while self.now < end:
            self.now = min(end, self.now + 3600)
            self.do(self.store.renew([account.grant.entry_id for account in self.calls + self.submits]))
        self.settle_down()
        self.flush()

    @rule(second_passed=st.booleans(), torn=st.integers(0, 200))
    def kill(self, second_passed: bool, torn: int) -> None:
        if second_passed or not self.journal._pending:
            self.flush()
        folder = self.root / str(next(self.numbers))
        shutil.copytree(self.journal._folder, folder)
        with segments(folder)[-1].open("ab") as file:
            file.write(frame(self.journal._pending)[:-1][:torn] if self.journal._pending else b"")
        self.do(self.store.close())
        self.calls, self.submits = [], []
        self.open(folder)
        self.books.killed()
        self.settle_down()
        for _, job in self.jobs.values():
            job.last_polled = job.last_asked = 0.0

    @invariant()
    def the_books_are_those_of_the_contract(self) -> None:
        state, bills, expected = self.store.state, self.books.bills, self.books.purses()
        assert state.slots == dict(self.books.slots())
        for name, purse in state.purses.items():
            assert (purse.spent, purse.reserved) == expected[name]
            assert purse.spent >= 0 <= purse.reserved
        for entry in state.entries.values():
            assert (entry.charged if entry.outcome else None) == bills[entry.id].charged
        for bill in bills.values():
            assert bill.id in state.entries or not (bill.charged is None or self.books.is_owned(bill))
            assert state.purses.keys() >= set(bill.purses) or not self.books.is_owned(bill)
            if bill.said is not None:
                assert bill.charged == ledger.cost(bill.price, bill.said)

    def teardown(self) -> None:
        self.now += 7_201  # nobody hears how the last requests end
        self.settle_down()
        assert not self.store.state.slots
        assert not any(purse.reserved for purse in self.store.state.purses.values())
        self.do(self.store.close())
        self.loop.close()
        shutil.rmtree(self.root)


TestMoney = Money.TestCase
TestMoney.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
