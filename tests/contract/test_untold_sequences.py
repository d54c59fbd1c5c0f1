"""Whatever happens in whatever order, lost calls and answers included: what is told of each payer is what they are charged."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract.bench import Bench
from fal_proxy.errors import StoreUnavailable
from fal_proxy.exchange import Payer
from fal_proxy.stores import Budget, Outcome, Question
from fal_proxy.stores.memory import MemoryStore
from support.redis import RedisServer, Unsteady

ADA = Payer("free", "ada", "key", "fal-ai/flux/dev")
ADAS_COOKIE = Payer("free", "cookie", "anonymous")
ADA_ELSEWHERE = Payer("paid", "ada", "key")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what could not be sent be sent again at once."""
    monkeypatch.setattr("fal_proxy.stores.redis.PROBE_SECONDS", 0.0)


payers = st.sampled_from([ADA, ADAS_COOKIE, ADA_ELSEWHERE])
number = st.integers(0, 9)
amounts = st.integers(1, 9)
step = st.one_of(
    st.tuples(st.just("admit"), payers, amounts),
    st.tuples(st.just("submitted"), number),
    st.tuples(st.just("settle"), number, st.sampled_from(Outcome), amounts, st.none() | payers),
    st.tuples(st.just("onto"), number, number),
    st.tuples(st.just("untold")),
    st.tuples(st.just("pass"), st.sampled_from([1, 50, 89, 3599, 7200])),
)
fates = st.lists(st.sampled_from(["unheard", "unsent", "well"]), min_size=10, max_size=40)


def budget_of(payer: Payer) -> Budget:
    """Return the budget that a payer's reservations are made in."""
    return Budget("/".join(payer[:2]), 10**12, "total")


class Played:
    """A store, what was asked of it, and what was told of each payer."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.store = bench, bench.store
        self.told: Counter[tuple[str, str]] = Counter()
        self._numbers: list[int] = []
        self._entries: list[Payer] = []

    async def move(self, kind: str, *values: Any) -> None:
        """Do one thing."""
        if kind == "pass":
            self.bench.now += values[0]
        elif kind == "untold":
            await self.tell()
        elif kind == "admit":
            name = f"entry-{len(self._entries)}"
            await self.bench.admit(
                budgets=(budget_of(values[0]),), amount=values[1] * 7, entry_id=name, payer=values[0]
            )
            self._entries.append(values[0])
        elif self._entries:
            await self._move_entry(kind, values[0] % len(self._entries), *values[1:])

    async def _move_entry(self, kind: str, number: int, *values: Any) -> None:
        name, payer = f"entry-{number}", self._entries[number][:2]
        if kind == "submitted":
            await self.bench.submit(number, "me", entry_id=name)
        elif kind == "settle":
            self.told[payer] += await self.store.settle(name, values[0], values[1] * 9, by=values[2])
        else:
            other = values[0] % len(self._entries)
            if other != number and self._entries[other][:2] == payer:
                self.told[payer] += await self.store.settle(name, Outcome.AS_RESERVED, onto=f"entry-{other}")

    async def tell(self) -> None:
        """Take what is untold, as the settler does."""
        try:
            changes = await self.store.untold(self._numbers)
        except StoreUnavailable:
            return
        for change in changes:
            assert change.payer is not None
            self.told[change.payer[:2]] += change.microusd
        self._numbers = [change.number for change in changes]


@pytest.mark.parametrize("kind", ["memory", "redis"])
@given(moves=st.lists(step, min_size=10, max_size=40), fate=fates)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_happens_all_that_is_told_is_what_is_charged(
    kind: str, moves: list[tuple[Any, ...]], fate: list[str], redis: RedisServer
) -> None:
    store: MemoryStore | Unsteady = MemoryStore(clock=lambda: played.bench.now)
    if kind == "redis":
        redis.command("FLUSHALL")
        store = Unsteady(redis.url, clock=lambda: played.bench.now)
        store.fate = fate
    played = Played(Bench(store))
    for move in [("admit", ADA, 3), ("admit", ADA, 5), *moves]:
        await played.move(*move)
    if isinstance(store, Unsteady):
        store.fate = []
        await store.heard()
    for _ in range(4):
        played.bench.now += 7200
        await played.tell()
    for payer in (ADA, ADAS_COOKIE, ADA_ELSEWHERE):
        usage = (await store.standing(Question(budgets=(budget_of(payer),)))).budgets[0]
        assert (played.told[payer[:2]], 0) == (usage.spent_microusd, usage.reserved_microusd), payer
    await store.close()
