"""What only the shared store has: periods computed by Redis, leases of living processes, keys that end by themselves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import get_args

import pytest

from contract.bench import NOON, Bench
from fal_proxy.stores import Budget, Concurrency, Denial, Outcome, Owns, Period, Question, Rate
from fal_proxy.stores.periods import label, resets_at
from fal_proxy.stores.redis import MOST_MICROUSD, RedisStore
from support.redis import RedisServer

SLOT = Concurrency("caller", 9)
BUDGET = Budget("caller", 1000, "day")
PERIODS: tuple[Period, ...] = get_args(Period)


@pytest.fixture
async def shared(redis: RedisServer) -> AsyncIterator[Bench]:
    """Bring an empty shared store."""
    redis.command("FLUSHALL")
    store = RedisStore(redis.url, clock=lambda: made.now)
    made = Bench(store)
    yield made
    await store.close()


def moments() -> list[float]:
    """Return moments around every kind of boundary of 130 years, and a thousand anywhere; Redis' time only grows."""
    dice = random.Random(20261109)
    found = [dice.uniform(0, 4_100_000_000) for _ in range(1000)]
    for year in range(1970, 2100):
        for month, day in ((1, 1), (1, 4), (2, 28), (2, 29), (3, 1), (6, 30), (12, 28), (12, 31)):
            if (month, day) != (2, 29) or (year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)):
                midnight = datetime(year, month, day, tzinfo=UTC).timestamp()
                found += [midnight, midnight + 86399.5]
    return sorted(found)


async def test_redis_computes_the_same_periods_as_we_do(shared: Bench) -> None:
    assert isinstance(shared.store, RedisStore)
    for moment in moments():
        shared.now = moment
        expected = [(label(period, moment), resets_at(period, moment)) for period in PERIODS]
        assert await shared.store.running(PERIODS) == expected, moment


async def test_process_that_stops_renewing_is_taken_for_dead_after_90_seconds(shared: Bench) -> None:
    for name in ("alive", "dead"):
        await shared.admit(concurrency=(SLOT,), budgets=(BUDGET,), amount=40, entry_id=name)
    shared.now += 89
    await shared.store.renew(["alive"])
    assert await shared.in_use("caller") == (2,)
    shared.now += 1
    assert await shared.in_use("caller") == (1,)
    assert (await shared.usage(BUDGET))[0][:2] == (40, 40)


async def test_bill_of_a_request_that_was_taken_for_dead_replaces_the_estimate(shared: Bench) -> None:
    await shared.admit(concurrency=(SLOT,), budgets=(BUDGET,), amount=40, entry_id="cut off")
    shared.now += 90
    await shared.store.settle("cut off", Outcome.RELEASED)
    assert (await shared.usage(BUDGET))[0][:2] == (40, 0)
    await shared.store.settle("cut off", Outcome.BILLED, 7)
    assert (await shared.usage(BUDGET))[0][:2] == (7, 0)


async def test_renewal_does_not_lengthen_the_lease_of_a_job(shared: Bench) -> None:
    await shared.admit(concurrency=(SLOT,), budgets=(BUDGET,), amount=40, entry_id="entry-1")
    await shared.submit(1, "me")
    shared.now += 3600
    await shared.store.renew(["entry-1"])
    assert (await shared.usage(BUDGET))[0][:2] == (40, 0)


async def test_everything_of_a_day_ago_ends_at_once_after_an_idle_night(shared: Bench) -> None:
    hour = Budget("caller", 1000, "hour")
    for number in range(20):
        await shared.admit(budgets=(hour,), amount=1, entry_id=f"entry-{number}")
        await shared.submit(number, "me")
        await shared.store.settle(f"entry-{number}", Outcome.AS_RESERVED)
    shared.now += 30 * 3600
    assert await shared.store.find("request-19") is None
    await shared.store.settle("entry-18", Outcome.BILLED, 999)
    assert (await shared.usage(hour))[0][:2] == (0, 0)


async def test_two_processes_never_ask_about_one_job_at_once(shared: Bench, redis: RedisServer) -> None:
    for number in range(40):
        await shared.admit(budgets=(BUDGET,), amount=1, entry_id=f"entry-{number}")
        await shared.submit(number, "me")
    shared.now += 10
    other = RedisStore(redis.url, clock=lambda: shared.now)
    claims = await asyncio.gather(*(store.due(7) for _ in range(5) for store in (shared.store, other)))
    asked = [due.record.request_id for claim in claims for due in claim]
    assert sorted(asked) == sorted(f"request-{number}" for number in range(40))
    await other.close()


async def test_time_comes_from_redis_and_everybody_sees_the_same(redis: RedisServer) -> None:
    redis.command("FLUSHALL")
    first, second = RedisStore(redis.url), RedisStore(redis.url)
    rate = Rate("caller", 1, 3600)
    bench = Bench(first)
    assert await bench.denied(rates=(rate,)) is None
    standing = await second.standing(Question(rates=(rate,)))
    assert standing.rates[0].remaining == 0
    assert 3540 < standing.rates[0].reset_seconds <= 3660
    assert await Bench(second).denied(rates=(rate,), entry_id="other") is Denial.RATE
    await first.close()
    await second.close()


async def test_amounts_that_cannot_be_counted_exactly_are_refused(shared: Bench) -> None:
    with pytest.raises(ValueError, match="exactly"):
        await shared.admit(budgets=(BUDGET,), amount=MOST_MICROUSD + 1)
    with pytest.raises(ValueError, match="exactly"):
        await shared.admit(budgets=(Budget("caller", MOST_MICROUSD + 1, "total"),))
    with pytest.raises(ValueError, match="exactly"):
        await shared.store.settle("entry", Outcome.BILLED, MOST_MICROUSD + 1)


async def test_money_is_counted_to_the_last_micro_dollar(shared: Bench) -> None:
    budget = Budget("caller", MOST_MICROUSD, "total")
    assert await shared.denied(budgets=(budget,), amount=MOST_MICROUSD - 2, entry_id="much") is None
    assert await shared.denied(budgets=(budget,), amount=3) is Denial.BUDGET
    assert await shared.denied(budgets=(budget,), amount=1) is None
    await shared.store.settle("much", Outcome.BILLED, MOST_MICROUSD - 3)
    assert (await shared.usage(budget))[0][:2] == (MOST_MICROUSD - 3, 1)


async def test_every_key_ends_by_itself_but_those_that_must_not(shared: Bench, redis: RedisServer) -> None:
    budgets = tuple(Budget("caller", 1000, period) for period in PERIODS)
    for number in range(3):
        await shared.admit(rates=(Rate("r", 9, 60),), concurrency=(SLOT,), budgets=budgets, entry_id=f"entry-{number}")
    await shared.submit(0, "me")
    await shared.submit(1, "me", "my network-1")
    await shared.store.completed("request-0")
    await shared.store.extend("a token", 120)
    await shared.store.settle("entry-0", Outcome.BILLED, 5)
    await shared.admit(owns=Owns("request-1", "fal-ai/flux", frozenset({"me"}), False), entry_id="")
    shared.now += 100
    await shared.store.due(5)
    await shared.store.renew(["entry-2"])
    names = [line for line in redis.command("KEYS", "*").decode().split("\r\n") if line.startswith("fal-proxy:")]
    kinds = {name.split(":")[1] for name in names}
    paid = {"slots", "purse", "entry", "leases", "cover"}
    assert kinds == {"epoch", "now", "rate", "record", "owner", "records", "asks"} | paid
    lasting = {name for name in names if redis.number("TTL", name) < 0}
    assert lasting == {"fal-proxy:epoch", "fal-proxy:now", "fal-proxy:purse:total:total:caller"}
    longest = max(redis.number("TTL", name) for name in names if ":purse:" not in name)
    assert longest <= 26 * 3600
    assert redis.number("TTL", "fal-proxy:purse:day:2026-11-09:caller") == pytest.approx(39 * 3600, abs=120)
    assert NOON % 86400 == 12 * 3600
