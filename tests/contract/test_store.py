"""What both stores promise, on the same questions: rates, slots, money, and all of them at once."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from contract.bench import NOON, Bench
from fal_proxy.stores import Budget, Concurrency, Denial, Outcome, Period, Rate, RateState, Usage
from fal_proxy.stores.memory import MemoryStore
from fal_proxy.stores.redis import RedisStore
from support.redis import RedisServer

RATE = Rate("caller", 3, 60)
SLOT = Concurrency("caller", 2)
BUDGET = Budget("caller", 100, "day")


async def test_rate_admits_up_to_its_limit_and_says_what_is_left(bench: Bench) -> None:
    states = [(await bench.admit(rates=(RATE,))).rates[0] for _ in range(3)]
    assert states == [RateState(2, 61.0), RateState(1, 61.0), RateState(0, 61.0)]
    assert await bench.denied(rates=(RATE,)) is Denial.RATE


async def test_refused_rate_names_itself_and_the_moment_when_its_slot_ends(bench: Bench) -> None:
    wide = Rate("caller", 10, 3600)
    for _ in range(3):
        await bench.admit(rates=(wide, RATE))
        bench.now += 0.5
    verdict = await bench.admit(rates=(wide, RATE))
    assert (verdict.denied, verdict.at, verdict.retry_seconds) == (Denial.RATE, 1, 59.5)
    assert verdict.rates == (RateState(7, 3658.5), RateState(0, 59.5))  # of all, so that all can be told
    bench.now += 59.4999
    assert await bench.denied(rates=(RATE,)) is Denial.RATE
    bench.now += 0.0002
    assert await bench.denied(rates=(RATE,)) is None


async def test_equal_keys_share_a_counter_per_window_and_others_do_not(bench: Bench) -> None:
    for _ in range(3):
        await bench.admit(rates=(RATE,))
    assert await bench.denied(rates=(replace(RATE, limit=4),)) is None
    assert await bench.denied(rates=(replace(RATE, window_seconds=30),)) is None
    assert await bench.denied(rates=(replace(RATE, key="other"),)) is None
    assert await bench.denied(rates=(RATE,)) is Denial.RATE


async def test_clock_that_steps_back_refills_nothing(bench: Bench) -> None:
    await bench.admit(rates=(replace(RATE, limit=1),), budgets=(BUDGET,), amount=100)
    bench.now -= 3 * 86400
    assert await bench.denied(rates=(replace(RATE, limit=1),)) is Denial.RATE
    assert await bench.denied(budgets=(BUDGET,), amount=1) is Denial.BUDGET


async def test_admission_without_an_entry_counts_in_rates_and_reserves_nothing(bench: Bench) -> None:
    await bench.admit(rates=(RATE,), concurrency=(SLOT,), budgets=(BUDGET,), amount=5, entry_id="")
    standing = await bench.standing((RATE,), (SLOT,), (BUDGET,))
    assert standing.rates[0].remaining == 2
    assert standing.in_use == (0,)
    assert standing.budgets[0][:2] == (0, 0)


class Refused(NamedTuple):
    """One limit that is exhausted while the others have room."""

    reason: str
    full: str
    denial: Denial
    retry_seconds: float | None


REFUSED = [
    Refused("the second rate is full", "rates", Denial.RATE, 61.0),
    Refused("no slot is left", "concurrency", Denial.CONCURRENCY, 5.0),
    Refused("the day's money is spent", "budgets", Denial.BUDGET, 43200.0),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.reason.replace(" ", "-"))
async def test_refusal_consumes_nothing_in_any_counter(case: Refused, bench: Bench) -> None:
    rates = (Rate("wide", 9, 60), Rate("tight", 1, 60))
    concurrency = (Concurrency("wide", 9), Concurrency("tight", 1))
    budgets = (Budget("wide", 900, "month"), Budget("tight", 100, "day"))
    full = {"rates": rates, "concurrency": concurrency, "budgets": budgets}
    await bench.admit(**{case.full: full[case.full]}, amount=100)  # type: ignore[arg-type]
    before = await bench.standing(rates, concurrency, budgets)
    for _ in range(3):
        verdict = await bench.admit(rates=rates, concurrency=concurrency, budgets=budgets, amount=100)
        assert (verdict.denied, verdict.at, verdict.retry_seconds) == (case.denial, 1, case.retry_seconds)
    assert await bench.standing(rates, concurrency, budgets) == before


async def test_concurrency_counts_entries_until_they_settle(bench: Bench) -> None:
    for name in ("a", "b"):
        assert await bench.denied(concurrency=(SLOT,), entry_id=name) is None
    assert await bench.denied(concurrency=(SLOT,)) is Denial.CONCURRENCY
    await bench.store.settle("a", Outcome.RELEASED)
    await bench.store.settle("a", Outcome.RELEASED)
    assert await bench.in_use("caller") == (1,)
    assert await bench.denied(concurrency=(SLOT,)) is None
    assert await bench.denied(concurrency=(SLOT,)) is Denial.CONCURRENCY


class Turn(NamedTuple):
    """A budget's period and a moment just before it ends."""

    period: Period
    seconds_left: float
    reason: str


TURNS = [
    Turn("hour", 3600, "the hour ends on the hour"),
    Turn("day", 12 * 3600, "the day ends at midnight UTC"),
    Turn("week", 6.5 * 86400, "the ISO week ends on Monday"),
    Turn("month", 21.5 * 86400, "November has 30 days"),
]


@pytest.mark.parametrize("case", TURNS, ids=lambda case: case.period)
async def test_budget_ends_with_its_period_and_not_before(case: Turn, bench: Bench) -> None:
    budget = Budget("caller", 100, case.period)
    assert await bench.denied(budgets=(budget,), amount=60) is None
    assert await bench.denied(budgets=(budget,), amount=41) is Denial.BUDGET
    assert await bench.denied(budgets=(budget,), amount=40) is None
    verdict = await bench.admit(budgets=(budget,), amount=1)
    assert verdict.retry_seconds == case.seconds_left
    bench.now += case.seconds_left - 0.001
    assert await bench.denied(budgets=(budget,), amount=1) is Denial.BUDGET
    bench.now = NOON + case.seconds_left
    assert await bench.denied(budgets=(budget,), amount=100) is None


async def test_total_budget_never_ends(bench: Bench) -> None:
    budget = Budget("caller", 100, "total")
    await bench.admit(budgets=(budget,), amount=100)
    bench.now += 400 * 86400
    verdict = await bench.admit(budgets=(budget,), amount=1)
    assert (verdict.denied, verdict.retry_seconds) == (Denial.BUDGET, None)
    usage = (await bench.usage(budget))[0]
    assert (usage.spent_microusd + usage.reserved_microusd, usage.resets_at) == (100, None)


async def test_settlement_is_charged_to_the_period_of_the_reservation(bench: Bench) -> None:
    hour = Budget("caller", 100, "hour")
    await bench.admit(budgets=(hour,), amount=60, entry_id="entry-1")
    await bench.submit(1, "me")
    bench.now += 3599
    await bench.store.settle("entry-1", Outcome.AS_RESERVED)
    bench.now += 2
    await bench.store.settle("entry-1", Outcome.BILLED, 90)
    assert (await bench.usage(hour))[0][:2] == (0, 0)


class Settled(NamedTuple):
    """Settlements of one reservation of 40, in order, and what is charged in the end."""

    reason: str
    outcomes: list[tuple[Outcome, int]]
    charged: int


R, A, B = Outcome.RELEASED, Outcome.AS_RESERVED, Outcome.BILLED
SETTLED = [
    Settled("nothing is owed", [(R, 0)], 0),
    Settled("nothing better is known", [(A, 0)], 40),
    Settled("fal billed less", [(B, 7)], 7),
    Settled("fal billed more than the whole budget", [(B, 700)], 700),
    Settled("fal billed nothing", [(B, 0)], 0),
    Settled("a release twice is one", [(R, 0), (R, 0)], 0),
    Settled("an estimate twice is one", [(A, 0), (A, 0)], 40),
    Settled("a bill twice is one", [(B, 7), (B, 7)], 7),
    Settled("an estimate does not replace a release", [(R, 0), (A, 0)], 0),
    Settled("a release does not replace an estimate", [(A, 0), (R, 0)], 40),
    Settled("a bill replaces a release", [(R, 0), (B, 7)], 7),
    Settled("a bill replaces an estimate", [(A, 0), (B, 7)], 7),
    Settled("a bill replaces a bill", [(B, 7), (B, 9)], 9),
    Settled("nothing but a bill replaces a bill", [(B, 7), (A, 0), (R, 0)], 7),
]


@pytest.mark.parametrize("case", SETTLED, ids=lambda case: case.reason.replace(" ", "-"))
async def test_settlement_replaces_only_what_it_may(case: Settled, bench: Bench) -> None:
    budgets = (BUDGET, Budget("everyone", 1000, "total"))
    await bench.admit(budgets=budgets, concurrency=(SLOT,), amount=40, entry_id="entry-1")
    await bench.submit(1, "me")
    changes = 0
    for outcome, amount in case.outcomes:
        changes += await bench.store.settle("entry-1", outcome, amount)
        assert await bench.in_use("caller") == (0,)
    assert changes == case.charged
    assert [usage[:2] for usage in await bench.usage(*budgets)] == [(case.charged, 0)] * 2


async def test_entry_without_a_request_id_is_over_when_it_is_settled(bench: Bench) -> None:
    await bench.admit(budgets=(BUDGET,), amount=40, entry_id="run")
    assert await bench.store.settle("run", Outcome.BILLED, 30) == 30
    assert await bench.store.settle("run", Outcome.BILLED, 90) == 0
    assert await bench.store.settle("nobody's", Outcome.BILLED, 90) == 0
    assert (await bench.usage(BUDGET))[0][:2] == (30, 0)


async def test_settlement_may_pass_the_budget_and_then_refuses_the_caller(bench: Bench) -> None:
    await bench.admit(budgets=(BUDGET,), amount=1, entry_id="run")
    await bench.store.settle("run", Outcome.BILLED, 2**52)
    assert (await bench.usage(BUDGET))[0] == Usage(2**52, 0, NOON + 43200)
    assert await bench.denied(budgets=(BUDGET,), amount=0) is Denial.BUDGET


async def test_free_request_fits_an_exactly_exhausted_budget(bench: Bench) -> None:
    await bench.admit(budgets=(BUDGET,), amount=100)
    assert await bench.denied(budgets=(BUDGET,), amount=0, entry_id="free") is None
    await bench.store.settle("free", Outcome.RELEASED)
    assert (await bench.usage(BUDGET))[0][:2] == (0, 100)


class Extended(NamedTuple):
    """A second extension of what was covered for 120 seconds, some time later."""

    reason: str
    later: float
    seconds: float
    found: float  # covered already
    left: float  # covered afterwards


EXTENDED = [
    Extended("at once: nothing new", 0, 120, 120, 120),
    Extended("a refresh at 90 % pays for what it adds", 108, 120, 12, 120),
    Extended("a shorter one changes nothing", 30, 60, 90, 90),
    Extended("a longer one adds the difference", 30, 300, 90, 300),
    Extended("a question extends nothing", 30, 0, 90, 90),
    Extended("the last moment is not covered any more", 120, 0, 0, 0),
    Extended("over: it begins anew", 500, 120, 0, 120),
]


@pytest.mark.parametrize("case", EXTENDED, ids=[case.reason for case in EXTENDED])
async def test_extension_says_what_was_covered_already(case: Extended, bench: Bench) -> None:
    assert await bench.store.extend("token", 120) == 0
    bench.now += case.later
    assert await bench.store.extend("token", case.seconds) == case.found
    assert await bench.store.extend("token", 0) == case.left
    assert await bench.store.extend("another", 0) == 0


async def test_of_many_that_extend_at_once_one_pays(bench: Bench) -> None:
    found = await asyncio.gather(*(bench.store.extend("token", 60) for _ in range(20)))
    assert sorted(found) == [0.0] + [60.0] * 19


async def test_standing_equals_what_the_admissions_left(bench: Bench) -> None:
    rates = (Rate("a", 20, 60), Rate("a", 200, 86400), Rate("b", 7, 10))
    for _ in range(5):
        verdict = await bench.admit(rates=rates, concurrency=(replace(SLOT, limit=9),), budgets=(BUDGET,), amount=9)
        bench.now += 0.7
    bench.now -= 0.7
    standing = await bench.standing((*rates, Rate("new", 3, 60)), (SLOT, Concurrency("new", 1)), (BUDGET,))
    assert standing.rates == (*verdict.rates, RateState(3, 0.0))
    assert standing.in_use == (5, 0)
    assert standing.budgets == (Usage(0, 45, NOON + 43200),)


# In windows: anywhere, in one slot or the next, and where an interval of the window's length ends.
GAPS = st.one_of(st.floats(0, 1.5), st.floats(0, 0.04), st.floats(0.97, 1.01), st.floats(0.98, 1))
HITS = st.lists(GAPS, min_size=1, max_size=40)


@pytest.mark.parametrize("kind", ["memory", "redis"])
@given(gaps=HITS, limit=st.integers(1, 5), window=st.sampled_from([1, 7, 10, 60]), start=st.floats(0, 1e6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_interval_of_the_window_admits_more_than_its_limit(
    kind: str, gaps: list[float], limit: int, window: int, start: float, redis: RedisServer
) -> None:
    now = NOON + start
    store: MemoryStore | RedisStore = MemoryStore(clock=lambda: now)
    if kind == "redis":
        redis.command("FLUSHALL")
        store = RedisStore(redis.url, clock=lambda: now)
    bench, admitted = Bench(store), []
    for gap in gaps:
        now += gap * window
        verdict = await bench.admit(rates=(Rate("caller", limit, window),))
        if verdict.denied is None:
            admitted.append(now)
        else:
            assert verdict.retry_seconds is not None
            assert 0 < verdict.retry_seconds <= window * (1 + 1 / 60) + 1e-6
    await store.close()
    for first, last in zip(admitted, admitted[limit:], strict=False):
        assert last - first > window
