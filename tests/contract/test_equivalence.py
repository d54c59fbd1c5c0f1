"""The two stores are one: any sequence of operations has the same outcome on both."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract.bench import NOON
from fal_proxy.stores import Ask, Budget, Concurrency, Outcome, Owns, Period, Question, Rate, Record, Store, Verdict
from fal_proxy.stores.memory import MemoryStore
from fal_proxy.stores.redis import RedisStore
from support.redis import RedisServer

PERIODS: list[Period] = ["hour", "day", "week", "month", "total"]
RATES = [Rate("a", 3, 60), Rate("a", 9, 3600), Rate("b", 2, 7)]
SLOTS = [Concurrency("a", 2), Concurrency("b", 4)]
BUDGETS = [Budget("a", 100, period) for period in PERIODS]
MARKS = ("a", "b")
ALL = Question(tuple(RATES), tuple(SLOTS), tuple(BUDGETS), MARKS)

number = st.integers(0, 9)
step = st.one_of(
    st.tuples(st.just("admit"), st.sets(st.sampled_from(RATES)), st.sets(st.sampled_from(SLOTS)), number, number),
    st.tuples(st.just("admit"), st.just(set()), st.sets(st.sampled_from(SLOTS)), number, number),
    st.tuples(st.just("read"), number, st.booleans()),
    st.tuples(st.just("submitted"), number),
    st.tuples(st.just("settle"), number, st.sampled_from(Outcome), st.integers(0, 60)),
    st.tuples(st.just("completed"), number),
    st.tuples(st.just("hasten"), number),
    st.tuples(st.just("due"), st.integers(0, 3)),
    st.tuples(st.just("extend"), st.sampled_from(["a", "b"]), st.sampled_from([0, 7.5, 60])),
    st.tuples(st.sampled_from(["mark", "unmark"]), st.sampled_from(MARKS)),
    st.tuples(st.just("forget"), st.sets(st.sampled_from(RATES)), number),
    st.tuples(st.just("pass"), st.sampled_from([0.5, 7.0, 10.0, 59.0])),
    st.tuples(st.just("wait"), st.sampled_from([1200, 3600, 86400])),
)


async def taken(store: Store, name: str, entry: str, move: tuple[Any, ...]) -> object:
    """Take one step; return what it answered."""
    kind, *values = move
    if kind == "admit":
        rates, slots, amount, budgets = values
        chosen = tuple(budget for place, budget in enumerate(BUDGETS) if budgets & (1 << place))
        marks = MARKS[amount % 3 :]
        return await store.admit(
            Ask(
                None,
                tuple(sorted(rates, key=str)),
                tuple(sorted(slots, key=str)),
                chosen,
                amount * 7,
                "1",
                name,
                marks=marks,
            )
        )
    if kind == "read":
        app = "app" if values[1] else "other"
        return await store.admit(Ask(owns=Owns(f"request-{values[0]}", app, frozenset({"me"}), False)))
    if kind == "submitted" and entry:
        await store.submitted(Record(f"request-{values[0]}", ("app",), ("me",), entry, "1", "/", "key"))
    if kind == "settle" and entry:
        await store.settle(entry, values[1], values[2])
    if kind == "completed":
        await store.completed(f"request-{values[0]}")
    if kind == "hasten":
        await store.hasten(f"request-{values[0]}")
    if kind in ("mark", "unmark"):
        await (store.mark if kind == "mark" else store.unmark)(values[0])
        return await store.marks()
    if kind == "forget":
        budgets = tuple(budget for place, budget in enumerate(BUDGETS) if values[1] & (1 << place))
        await store.forget(Question(tuple(values[0]), (), budgets))
    if kind == "extend":
        return await store.extend(*values)
    if kind == "due":
        return [(due.record, due.attempt) for due in await store.due(values[0])]
    return None


@given(st.lists(step, max_size=40))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_memory_and_redis_answer_alike(redis: RedisServer, moves: list[tuple[Any, ...]]) -> None:
    redis.command("FLUSHALL")
    now = NOON
    stores: list[Store] = [MemoryStore(clock=lambda: now), RedisStore(redis.url, clock=lambda: now)]
    entries: list[str] = []
    jobs: set[str] = set()
    for at, move in enumerate(moves):
        entry = entries[move[1] % len(entries)] if entries and move[0] in ("submitted", "settle") else ""
        if move[0] == "submitted" and entry in jobs:
            entry = ""  # one reservation is one job's: an answer names one request id
        if move[0] == "submitted" and entry and await stores[0].find(f"request-{move[1]}") is None:
            jobs.add(entry)
        for store in stores:
            # When a request is taken for lost differs on purpose: here every process is alive, and no request is long.
            await store.renew(entries)
            if move[0] == "wait":
                for name in entries:
                    if name not in jobs:
                        await store.settle(name, Outcome.RELEASED)
        if move[0] in ("pass", "wait"):
            now += move[1]
        answers = [await taken(store, f"entry-{at}", entry, move) for store in stores]
        if move[0] == "admit" and isinstance(answers[0], Verdict) and answers[0].denied is None:
            entries.append(f"entry-{at}")
        assert answers[0] == answers[1], move
        standings = [await store.standing(ALL) for store in stores]
        assert standings[0] == standings[1], move
        found = [[await store.find(f"request-{name}") for name in range(10)] for store in stores]
        assert found[0] == found[1], move
    for store in stores:
        await store.close()
