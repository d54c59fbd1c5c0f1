"""What both stores promise to whoever operates them: a mark stops what names it, and counters can begin anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from contract.bench import NOON, Bench
from fal_proxy.errors import StoreUnavailable
from fal_proxy.stores import Ask, Budget, Concurrency, Denial, Outcome, Question, Rate, Standing, Verdict
from fal_proxy.stores.fallback import FallbackStore
from fal_proxy.stores.journal import Journal
from fal_proxy.stores.memory import MemoryStore
from fal_proxy.stores.redis import RedisStore
from support.redis import RedisServer

RATE = Rate("caller", 1, 60)
HOURLY = Rate("caller", 9, 3600)
SLOT = Concurrency("caller", 2)
BUDGET = Budget("caller", 100, "day")


async def test_mark_refuses_what_names_it_and_says_which(bench: Bench) -> None:
    await bench.store.mark("b")
    verdict = await bench.admit(marks=("a", "b"))
    assert (verdict.denied, verdict.at, verdict.retry_seconds) == (Denial.MARKED, 1, None)
    assert await bench.denied(marks=("a",)) is None
    assert await bench.denied() is None
    await bench.store.unmark("b")
    assert await bench.denied(marks=("a", "b")) is None


async def test_marked_admission_consumes_nothing_and_comes_before_every_limit(bench: Bench) -> None:
    await bench.store.mark("stopped")
    for _ in range(2):
        refused = await bench.denied(
            marks=("stopped",), rates=(RATE,), concurrency=(SLOT,), budgets=(BUDGET,), amount=100
        )
        assert refused is Denial.MARKED
    standing = await bench.standing((RATE,), (SLOT,), (BUDGET,))
    assert (standing.rates[0].remaining, standing.in_use, standing.budgets[0][:2]) == (1, (0,), (0, 0))


async def test_marks_are_told_with_the_moment_of_the_first(bench: Bench) -> None:
    assert await bench.store.marks() == {}
    await bench.store.mark("a")
    bench.now += 7.5
    await bench.store.mark("a")
    await bench.store.mark("b c:d")
    assert await bench.store.marks() == {"a": NOON, "b c:d": NOON + 7.5}
    assert (await bench.store.standing(Question(marks=("x", "a")))).marked == (False, True)
    await bench.store.unmark("a")
    await bench.store.unmark("a")
    assert await bench.store.marks() == {"b c:d": NOON + 7.5}


async def test_mark_has_no_end(bench: Bench) -> None:
    await bench.store.mark("a")
    bench.now += 400 * 86400
    assert await bench.denied(marks=("a",)) is Denial.MARKED


async def test_forgotten_rates_count_from_zero_and_others_do_not(bench: Bench) -> None:
    await bench.admit(rates=(RATE, HOURLY))
    await bench.store.forget(Question(rates=(RATE, Rate("never hit", 1, 60))))
    assert (await bench.standing((RATE, HOURLY))).rates[0].remaining == 1
    assert (await bench.standing((RATE, HOURLY))).rates[1].remaining == 8
    assert await bench.denied(rates=(RATE,)) is None
    assert await bench.denied(rates=(RATE,)) is Denial.RATE


async def test_forgotten_budget_keeps_what_is_reserved(bench: Bench) -> None:
    await bench.admit(budgets=(BUDGET,), amount=60, entry_id="spent")
    await bench.store.settle("spent", Outcome.AS_RESERVED)
    await bench.admit(budgets=(BUDGET,), amount=40, entry_id="open")
    await bench.store.forget(Question(budgets=(BUDGET, replace(BUDGET, key="never charged"))))
    assert (await bench.usage(BUDGET))[0][:2] == (0, 40)
    await bench.store.settle("open", Outcome.BILLED, 30)
    assert (await bench.usage(BUDGET))[0][:2] == (30, 0)


async def test_later_correction_of_what_was_forgotten_is_no_credit(bench: Bench) -> None:
    await bench.admit(budgets=(BUDGET,), amount=60, entry_id="job")
    await bench.submit(1, "ada", entry_id="job")
    await bench.store.settle("job", Outcome.AS_RESERVED)
    await bench.store.forget(Question(budgets=(BUDGET,)))
    assert await bench.store.settle("job", Outcome.BILLED, 10) == -50
    assert (await bench.usage(BUDGET))[0][:2] == (0, 0)


async def test_marks_and_what_was_forgotten_survive_a_restart(tmp_path: Path) -> None:
    store = MemoryStore(Journal(tmp_path), clock=lambda: NOON)
    for name in ("kept", "taken away"):
        await store.mark(name)
    await store.unmark("taken away")
    await store.admit(Ask(rates=(RATE,), budgets=(BUDGET,), amount_microusd=60, entry_id="spent"))
    await store.settle("spent", Outcome.AS_RESERVED)
    await store.forget(Question((RATE,), (), (BUDGET,)))
    await store.close()
    for restart in range(2):  # the second replays what the first has written as its snapshot
        store = MemoryStore(Journal(tmp_path), clock=lambda: NOON + 1)
        assert await store.marks() == {"kept": NOON}, restart
        assert (await store.admit(Ask(marks=("kept",)))).denied is Denial.MARKED
        standing = await store.standing(Question((RATE,), (), (BUDGET,)))
        assert (standing.rates[0].remaining, standing.budgets[0][:2]) == (1, (0, 0))
        await store.close()


async def test_mark_of_one_process_holds_in_another(redis: RedisServer) -> None:
    redis.command("FLUSHALL")
    here, there = RedisStore(redis.url), RedisStore(redis.url)
    await here.mark("stopped")
    assert (await there.admit(Ask(marks=("stopped",)))).denied is Denial.MARKED
    await there.unmark("stopped")
    assert (await here.admit(Ask(marks=("stopped",)))).denied is None
    for store in (here, there):
        await store.close()


class Shared(MemoryStore):
    """A shared store that can be away."""

    away = False

    async def admit(self, ask: Ask) -> Verdict:
        if self.away:
            raise StoreUnavailable("Redis does not answer")
        return await super().admit(ask)

    async def standing(self, question: Question) -> Standing:
        if self.away:
            raise StoreUnavailable("Redis does not answer")
        return await super().standing(question)


@pytest.mark.parametrize("marked_here", [True, False], ids=["by this process", "by another"])
async def test_what_was_stopped_stays_so_while_the_shared_store_is_away(marked_here: bool) -> None:
    shared = Shared()
    store = FallbackStore(shared)
    if marked_here:
        await store.mark("stopped")
    else:
        await shared.mark("stopped")
        await store.due(1)  # the settler's question, once a second
    shared.away = True
    assert (await store.admit(Ask(marks=("stopped",)))).denied is Denial.MARKED
    assert (await store.admit(Ask(marks=("other",)))).denied is None
    shared.away = False
    await store.unmark("stopped")
    shared.away = True
    assert (await store.admit(Ask(marks=("stopped",)))).denied is None
