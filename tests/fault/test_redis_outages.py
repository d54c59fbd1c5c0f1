"""Redis refuses, restarts, hangs, forgets, crawls or vanishes: nothing is admitted beyond policy and nobody waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import pytest

from fal_proxy.errors import StoreUnavailable
from fal_proxy.stores import Ask, Budget, Concurrency, Denial, Outcome, Question, Rate, Record, Verdict
from fal_proxy.stores.link import NotSent
from fal_proxy.stores.redis import RedisStore
from support.busy import kept_waiting_seconds
from support.redis import RedisServer, SlowWire, redis_server

LONGEST_CALL = 0.3 + 0.2  # what is promised, and what a busy machine may add
RECOVERY = 1.0 + 0.5
SLOT = Concurrency("caller", 3)
BUDGET = Budget("caller", 100, "total")


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """Run a Redis that keeps its data over a restart."""
    with redis_server(durable=True) as server:
        yield server


@pytest.fixture
async def store(redis: RedisServer) -> AsyncIterator[RedisStore]:
    """Bring a store that has seen its Redis."""
    store = RedisStore(redis.url)
    await store.ping()
    yield store
    await store.close()


def asking(entry_id: str, amount: int = 40) -> Ask:
    """Ask for a slot and some money."""
    return Ask(concurrency=(SLOT,), budgets=(BUDGET,), amount_microusd=amount, entry_id=entry_id)


async def timed(call: Awaitable[Any]) -> Any:
    """Return what a call returns or raises; fail if it took longer than is promised, on a machine that lets us run."""
    started, kept = time.monotonic(), kept_waiting_seconds()
    try:
        return await call
    except StoreUnavailable as failure:
        return failure
    finally:
        assert time.monotonic() - started - (kept_waiting_seconds() - kept) < LONGEST_CALL


async def recovered(store: RedisStore) -> None:
    """Wait until Redis answers again; fail if that takes longer than is promised."""
    started = time.monotonic()
    while isinstance(await timed(store.ping()), StoreUnavailable):
        assert time.monotonic() - started < RECOVERY
        await asyncio.sleep(0.02)


async def held(store: RedisStore, wanted: tuple[int, int, int]) -> None:
    """Wait until the caller's spent and reserved money and slots are these."""
    deadline = time.monotonic() + 2
    while True:
        standing = await store.standing(Question(concurrency=(SLOT,), budgets=(BUDGET,)))
        found = (*standing.budgets[0][:2], standing.in_use[0])
        if found == wanted or time.monotonic() > deadline:
            assert found == wanted
            return
        await asyncio.sleep(0.02)


async def everything(store: RedisStore, suffix: str) -> list[Any]:
    """Call every method at once that must raise while Redis is away; return what came of each."""
    record = Record(f"request-{suffix}", ("app",), ("me",), f"entry-{suffix}", "", "/", "key")
    calls: list[Awaitable[Any]] = [store.admit(asking(f"{suffix}-{number}")) for number in range(50)]
    calls += [store.find("request"), store.due(1), store.standing(Question()), store.renew(["x"]), store.ping()]
    calls += [store.extend("name", 60)]
    return await asyncio.gather(*(timed(call) for call in [*calls, store.submitted(record)]))


async def test_nothing_is_admitted_while_redis_refuses_and_the_count_goes_on_when_it_is_back(
    redis: RedisServer, store: RedisStore
) -> None:
    assert (await store.admit(asking("first"))).denied is None
    redis.stop()
    for turn in range(3):
        outcomes = await everything(store, f"refused-{turn}")
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
        assert not store.available
    redis.start()
    await recovered(store)
    assert store.available
    assert (await store.admit(asking("second"))).denied is None
    assert (await store.admit(asking("third"))).denied is Denial.BUDGET
    await held(store, (0, 80, 2))


async def test_settlements_during_an_outage_are_made_up_for(redis: RedisServer, store: RedisStore) -> None:
    await store.admit(asking("billed"))
    await store.admit(asking("released"))
    redis.stop()
    await timed(store.settle("billed", Outcome.BILLED, 7))
    await timed(store.settle("released", Outcome.RELEASED))
    await timed(store.completed("request"))
    redis.start()
    await recovered(store)
    await held(store, (7, 0, 0))


async def test_ownership_that_could_not_be_recorded_is_recorded_when_redis_is_back(
    redis: RedisServer, store: RedisStore
) -> None:
    await store.admit(asking("entry"))
    redis.stop()
    record = Record("request", ("app",), ("me",), "entry", "", "/", "key")
    assert isinstance(await timed(store.submitted(record)), StoreUnavailable)
    redis.start()
    await recovered(store)
    deadline = time.monotonic() + 1
    while await store.find("request") is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_hanging_redis_delays_nobody_and_admissions_that_it_finds_later_are_undone(
    redis: RedisServer, store: RedisStore
) -> None:
    assert (await store.admit(asking("first"))).denied is None
    redis.pause()
    paused = time.monotonic()
    turn = 0
    while time.monotonic() - paused < 2:
        outcomes = await everything(store, f"paused-{turn}")
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
        turn += 1
        await asyncio.sleep(0.05)
    redis.resume()
    await recovered(store)
    await held(store, (0, 40, 1))
    assert (await store.admit(asking("second"))).denied is None
    assert (await store.admit(asking("third"))).denied is Denial.BUDGET


async def test_admission_that_arrives_after_it_was_given_up_is_refused(redis: RedisServer) -> None:
    async with SlowWire(redis.port) as wire:
        slow, quick = RedisStore(wire.url), RedisStore(redis.url)
        await recovered(slow)  # a machine that stalls is not the question yet
        await recovered(quick)
        wire.request_delay_seconds = 0.6
        assert isinstance(await timed(slow.admit(asking("late"))), StoreUnavailable)
        await quick._run("void", "late")
        await asyncio.sleep(0.6)
        await held(quick, (0, 0, 0))
        await slow.close()
        await quick.close()


@pytest.mark.parametrize("how", ["flushed", "another epoch"])
async def test_redis_that_forgot_denies_until_a_process_begins_anew(
    how: str, redis: RedisServer, store: RedisStore
) -> None:
    await store.admit(asking("spent", 100))
    redis.command("FLUSHALL")
    if how == "another epoch":
        redis.command("SET", "fal-proxy:epoch", "of somebody else")
    for turn in range(2):
        outcomes = await everything(store, f"flushed-{turn}")
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    assert not store.available
    await timed(store.settle("spent", Outcome.RELEASED))
    assert redis.number("DBSIZE") == (1 if how == "another epoch" else 0)
    anew = RedisStore(redis.url)
    assert (await anew.admit(asking("anew", 100))).denied is None
    assert isinstance(await timed(store.ping()), StoreUnavailable)
    await anew.close()


async def test_redis_that_restarts_without_its_data_denies() -> None:
    with redis_server() as redis:
        store = RedisStore(redis.url)
        await store.ping()
        redis.stop()
        redis.start()
        deadline = time.monotonic() + RECOVERY
        while time.monotonic() < deadline:
            assert isinstance(await timed(store.admit(asking("entry"))), StoreUnavailable)
            await asyncio.sleep(0.05)
        await store.close()


async def test_slow_redis_delays_nobody_and_reserves_nothing(redis: RedisServer) -> None:
    async with SlowWire(redis.port) as wire:
        store = RedisStore(wire.url)
        await store.ping()
        wire.delay_seconds = 0.4
        outcomes = await everything(store, "slow")
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
        wire.delay_seconds = 0.0
        await recovered(store)
        await held(store, (0, 0, 0))
        await store.close()


async def test_half_open_connections_delay_nobody_and_are_not_used_again(redis: RedisServer) -> None:
    async with SlowWire(redis.port) as wire:
        store = RedisStore(wire.url)
        # So that there are connections to vanish; whether all of them answer in time is not the question.
        await asyncio.gather(*(store.ping() for _ in range(20)), return_exceptions=True)
        await recovered(store)
        wire.vanish()
        outcomes = await everything(store, "vanished")
        assert any(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
        admitted = sum(isinstance(outcome, Verdict) and outcome.denied is None for outcome in outcomes)
        assert admitted <= 2
        await recovered(store)
        await held(store, (0, 40 * admitted, admitted))
        await store.close()


async def test_unresolvable_name_delays_nobody() -> None:
    store = RedisStore("redis://redis.invalid:6379")
    for _ in range(3):
        assert isinstance(await timed(store.ping()), StoreUnavailable)
    await store.close()


async def test_wrong_password_is_an_unavailable_store(redis: RedisServer) -> None:
    redis.command("CONFIG", "SET", "requirepass", "right")
    store = RedisStore(redis.url.replace("redis://", "redis://:wrong@"))
    assert isinstance(await timed(store.ping()), NotSent)
    await store.close()


async def cancelled_under_load(store: RedisStore, turns: int) -> int:
    """Ask for distinguishable things and cancel half of it anywhere; return how many ended by themselves.

    A machine that stalls for longer than the store's deadline is refused, which is an answer to nobody else.
    """
    read = 0
    for number in range(30):
        record = Record(f"request-{number}", ("app",), (f"owner-{number}",), "none", "", f"/{number}", "key")
        await store.submitted(record)

    async def one(number: int) -> None:
        nonlocal read
        record = await store.find(f"request-{number}")
        assert record is not None
        assert (record.request_id, record.path) == (f"request-{number}", f"/{number}")
        standing = await store.standing(
            Question(rates=tuple(Rate(f"n{number}", number + 1, 60) for _ in range(number)))
        )
        assert [state.remaining for state in standing.rates] == [number + 1] * number
        read += 1

    for turn in range(turns):
        tasks = [asyncio.create_task(one(number)) for number in range(30)]
        for rounds in range(turn % 23):
            await asyncio.sleep(0 if rounds % 2 else 0.0005)
        for task in tasks[turn % 2 :: 2]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, StoreUnavailable):
                read += 1
            elif outcome is not None and not isinstance(outcome, asyncio.CancelledError):
                raise outcome
        if any(isinstance(outcome, StoreUnavailable) for outcome in outcomes):
            await recovered(store)
    return read


async def test_no_reply_reaches_the_wrong_caller_when_calls_are_cancelled(store: RedisStore) -> None:
    assert await cancelled_under_load(store, 150) >= 150 * 15


async def test_no_reply_reaches_the_wrong_caller_when_handshakes_are_cancelled(redis: RedisServer) -> None:
    redis.command("CONFIG", "SET", "requirepass", "right")
    async with SlowWire(redis.port) as wire:
        store = RedisStore(wire.url.replace("redis://", "redis://:right@") + "/0?client_name=us")
        wire.delay_seconds = 0.005
        for turn in range(40):
            tasks = [asyncio.create_task(store.find("nobody's")) for _ in range(8)]
            await asyncio.sleep(0.001 * (turn % 20))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert await store.find("nobody's") is None
        await store.close()


async def test_admission_whose_caller_left_is_undone(store: RedisStore) -> None:
    for turn in range(60):
        task = asyncio.create_task(store.admit(asking(f"left-{turn}", 100)))
        for _ in range(turn % 12):
            await asyncio.sleep(0)
        left = task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not left or not task.cancelled():
            await store.settle(f"left-{turn}", Outcome.RELEASED)
        await held(store, (0, 0, 0))
