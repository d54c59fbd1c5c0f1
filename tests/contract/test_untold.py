"""Every change of a charge is told once: by whoever settles, or by the settler, who asks the store for what is untold."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from contract.bench import NOON, Bench
from fal_proxy.exchange import Payer
from fal_proxy.stores import Budget, Cause, Change, Outcome, Store
from fal_proxy.stores.frames import encode, frame
from fal_proxy.stores.holdings import Put
from fal_proxy.stores.journal import Journal
from fal_proxy.stores.memory import MemoryStore
from fal_proxy.stores.redis import RedisStore
from support.redis import RedisServer, Unsteady

R, A, B = Outcome.RELEASED, Outcome.AS_RESERVED, Outcome.BILLED
BUDGET = Budget("caller", 10**12, "total")
ADA = Payer("free", "ada", "key", "fal-ai/flux/dev")
ADAS_COOKIE = Payer("free", "cookie", "anonymous")
ADA_ELSEWHERE = Payer("paid", "ada", "key")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what could not be sent be sent again at once."""
    monkeypatch.setattr("fal_proxy.stores.redis.PROBE_SECONDS", 0.0)


async def open_(bench: Bench, entry_id: str = "entry-1", payer: Payer | None = ADA) -> None:
    """Reserve 40."""
    assert await bench.denied(budgets=(BUDGET,), amount=40, entry_id=entry_id, payer=payer) is None


async def taken(store: Store) -> list[tuple[int, Cause, Payer | None, str]]:
    """Take all that is untold, as the settler does."""
    found: list[Change] = []
    told: list[int] = []
    while changes := await store.untold(told):
        found += changes
        told = [change.number for change in changes]
    return [(change.microusd, change.cause, change.payer, change.request_id) for change in found]


async def test_a_request_that_nobody_ends_is_told_with_its_payer_once(bench: Bench) -> None:
    await open_(bench)
    assert await taken(bench.store) == [], "a reservation is no charge"
    bench.now += 2 * 3600
    assert await taken(bench.store) == [(40, Cause.LEASE_END, ADA, "")]
    assert await taken(bench.store) == []
    assert (await bench.usage(BUDGET))[0][:2] == (40, 0)


async def test_a_job_whose_lease_ends_is_told_and_so_is_what_fal_bills_later(bench: Bench) -> None:
    await open_(bench)
    await bench.submit(1, "me")
    bench.now += 3600
    assert await taken(bench.store) == [(40, Cause.LEASE_END, ADA, "request-1")]
    assert await bench.store.settle("entry-1", B, 7, by=ADA) == -33, "who settles tells"
    assert await taken(bench.store) == []


async def test_what_ends_without_a_charge_leaves_nothing_to_tell(bench: Bench) -> None:
    for name, amount in (("free", 0), ("released", 40)):
        await bench.admit(budgets=(BUDGET,), amount=amount, entry_id=name, payer=ADA)
    assert await bench.store.settle("released", R) == 0
    bench.now += 2 * 3600
    assert await taken(bench.store) == []


async def test_the_settler_is_told_who_pays_for_a_job(bench: Bench) -> None:
    await open_(bench)
    await bench.submit(1, "me")
    bench.now += 10
    assert [due.payer for due in await bench.store.due(9)] == [ADA]


class By(NamedTuple):
    """Somebody who fetches a result, and whether the change is theirs to tell."""

    reason: str
    of: Payer | None
    by: Payer | None
    theirs: bool


BY = [
    By("the payer", ADA, ADA._replace(source="jwt", endpoint_id=""), True),
    By("the settler, who knows the payer", ADA, None, True),
    By("the cookie that the network's first answer has set", ADA, ADAS_COOKIE, False),
    By("the same person with another plan", ADA, ADA_ELSEWHERE, False),
    By("a reservation of a version that kept no payers", None, ADAS_COOKIE, True),
]


@pytest.mark.parametrize("case", BY, ids=[case.reason for case in BY])
async def test_what_another_identity_settles_is_told_of_the_payer(case: By, bench: Bench) -> None:
    await open_(bench, payer=case.of)
    await bench.submit(1, "me")
    assert await bench.store.settle("entry-1", B, 30, by=case.by) == (30 if case.theirs else 0)
    assert await bench.store.settle("entry-1", B, 25, by=case.by) == (-5 if case.theirs else 0)
    untold = [] if case.theirs else [(n, Cause.ANOTHER, case.of, "request-1") for n in (30, -5)]
    assert await taken(bench.store) == untold
    assert (await bench.usage(BUDGET))[0][:2] == (25, 0)


async def test_what_is_put_onto_an_open_entry_is_told_with_it(bench: Bench) -> None:
    await open_(bench, "session")
    for minute in range(3):
        await open_(bench, f"minute-{minute}")
        assert await bench.store.settle(f"minute-{minute}", A, onto="session") == 0
    assert await taken(bench.store) == []
    assert (await bench.usage(BUDGET))[0][:2] == (120, 40)
    assert await bench.store.settle("session", A) == 160
    await open_(bench, "last")
    assert await bench.store.settle("last", A, onto="session") == 0
    assert await taken(bench.store) == [(40, Cause.APART, ADA, "")]


async def test_what_was_put_onto_an_entry_is_not_lost_with_its_lease(bench: Bench) -> None:
    await open_(bench, "session")
    await open_(bench, "minute")
    await bench.store.settle("minute", A, onto="session")
    bench.now += 2 * 3600
    assert await taken(bench.store) == [(80, Cause.LEASE_END, ADA, "")]


async def test_many_changes_are_told_in_parts(bench: Bench) -> None:
    for number in range(230):
        await open_(bench, f"entry-{number}")
    bench.now += 2 * 3600
    for _ in range(9):
        await bench.store.find("")  # ends a part of what is over
    assert len(await bench.store.untold()) == 100
    bench.now += 90
    assert await taken(bench.store) == [(40, Cause.LEASE_END, ADA, "")] * 230


# What a restart finds


async def restarted(folder: Path, store: MemoryStore | None = None) -> MemoryStore:
    """Return a store on a folder, after the process before it."""
    if store is not None:
        await store.close()
    return MemoryStore(Journal(folder), clock=lambda: NOON)


async def test_what_a_crash_has_charged_is_told_by_the_next_process_once(tmp_path: Path) -> None:
    bench = Bench(await restarted(tmp_path))
    await open_(bench, "run")
    await open_(bench, "session")
    await open_(bench, "minute")
    await bench.store.settle("minute", A, onto="session")
    bench = Bench(await restarted(tmp_path, bench.store))  # type: ignore[arg-type]
    bench = Bench(await restarted(tmp_path, bench.store))  # type: ignore[arg-type]
    assert await taken(bench.store) == [(40, Cause.LOST, ADA, ""), (80, Cause.LOST, ADA, "")]
    bench = Bench(await restarted(tmp_path, bench.store))  # type: ignore[arg-type]
    assert await taken(bench.store) == []
    assert (await bench.usage(BUDGET))[0][:2] == (120, 0)
    await bench.store.close()


async def test_payers_of_open_jobs_survive_a_restart(tmp_path: Path) -> None:
    bench = Bench(await restarted(tmp_path))
    await open_(bench)
    await bench.submit(1, "me")
    bench = Bench(await restarted(tmp_path, bench.store))  # type: ignore[arg-type]
    assert [due.payer for due in await bench.store.due(9)] == [ADA]
    assert await bench.store.settle("entry-1", B, 30, by=ADAS_COOKIE) == 0
    await bench.store.close()


async def test_a_journal_without_payers_is_read_and_what_it_holds_is_told_of_nobody(tmp_path: Path) -> None:
    purse = ("caller", "total", "total")
    entry: Put = ("entry", "run", 40, [purse], [], "0.025", NOON + 60, "", None, 0)
    job: Put = ("entry", "job", 40, [purse], [], "0.025", NOON + 60, "request-1", None, 0)
    record = ("record", NOON, "request-1", ["fal-ai/flux"], ["me"], "job", "0.025", "/x", "key", False)
    puts: list[Put] = [("purse", purse, 0, 80, None), entry, job, record, ("complete",)]
    groups = [[("fal-proxy journal", 1)], puts]
    segment = b"".join(frame([encode(put) for put in group]) for group in groups)
    (tmp_path / "00000001.journal").write_bytes(segment)
    bench = Bench(await restarted(tmp_path))
    assert await taken(bench.store) == [(40, Cause.LOST, None, "")]
    assert await bench.store.settle("job", B, 30, by=ADA) == 30
    assert (await bench.usage(BUDGET))[0][:2] == (70, 0)
    await bench.store.close()


# Several processes, and answers that do not come


async def test_each_change_is_lent_to_one_process_and_to_another_when_that_one_dies(redis: RedisServer) -> None:
    redis.command("FLUSHALL")
    now = NOON
    first, second = (RedisStore(redis.url, clock=lambda: now) for _ in range(2))
    await open_(Bench(first))
    now += 90
    [change] = await first.untold()
    assert await taken(second) == [], "the first one is about to tell of it"
    now += 90
    assert [each.number for each in await second.untold()] == [change.number], "it has not: it died"
    assert await second.untold([change.number]) == []
    now += 90
    assert (await taken(first), await taken(second)) == ([], [])
    for store in (first, second):
        await store.close()


class Fate(NamedTuple):
    """How a settlement of 40 fares on its way, and who tells of it then."""

    reason: str
    job: bool
    asked: dict[str, Any]
    fate: list[str]  # the last comes first
    untold: list[tuple[Cause, str]]


FATES = [
    Fate("a run, and it did not leave", False, {}, ["unsent"], [(Cause.LATE, "")]),
    Fate("a run, and nobody heard the answer", False, {}, ["unheard"], [(Cause.LATE, "")]),
    Fate("a run, and nobody heard the second answer either", False, {}, ["unheard"] * 2, [(Cause.LATE, "")]),
    Fate("a run, unheard, then unsent", False, {}, ["unsent", "unheard"], [(Cause.LATE, "")]),
    Fate("a job, and it did not leave", True, {"by": ADA}, ["unsent"], [(Cause.LATE, "request-1")]),
    Fate("a job, and nobody heard the answer", True, {"by": ADA}, ["unheard"], [(Cause.LATE, "request-1")]),
    Fate("a job, twice unheard", True, {"by": ADA}, ["unheard"] * 2, [(Cause.LATE, "request-1")]),
    Fate("another's, unheard", True, {"by": ADAS_COOKIE}, ["unheard"], [(Cause.ANOTHER, "request-1")]),
    Fate("onto a session, unheard", False, {"onto": "session"}, ["unheard"], []),
    Fate("onto a session, unsent", False, {"onto": "session"}, ["unsent"], []),
]


@pytest.mark.parametrize("case", FATES, ids=[case.reason for case in FATES])
async def test_what_nobody_heard_is_told_by_the_settler_once(case: Fate, redis: RedisServer) -> None:
    redis.command("FLUSHALL")
    store = Unsteady(redis.url, clock=lambda: NOON)
    store.fate = []
    bench = Bench(store)
    await open_(bench, "session")
    await open_(bench)
    if case.job:
        await bench.submit(1, "me")
    store.fate = list(case.fate)
    assert await store.settle("entry-1", A, **case.asked) == 0
    await store.heard()
    assert await taken(store) == [(40, cause, ADA, request_id) for cause, request_id in case.untold]
    assert await store.settle("entry-1", B, 50) == (10 if case.job else 0)
    assert await store.settle("session", A) == (40 if case.untold else 80)
    assert (await bench.usage(BUDGET))[0][:2] == (90 if case.job else 80, 0)
    await store.close()
