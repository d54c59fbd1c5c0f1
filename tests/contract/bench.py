"""One store of the contract suite and the moments that a test tells it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from fal_proxy.exchange import Payer
from fal_proxy.stores import (
    Ask,
    Budget,
    Concurrency,
    Denial,
    Owns,
    Question,
    Rate,
    Record,
    Standing,
    Store,
    Usage,
    Verdict,
)

NOON = 1_794_225_600.0  # 2026-11-09T12:00:00Z, a Monday
APP = "fal-ai/flux"


@dataclass
class Bench:
    """A store under test and the moments it is told."""

    store: Store
    now: float = NOON
    _ids: Iterator[int] = field(default_factory=count)

    async def admit(
        self,
        *,
        rates: tuple[Rate, ...] = (),
        concurrency: tuple[Concurrency, ...] = (),
        budgets: tuple[Budget, ...] = (),
        amount: int = 0,
        owns: Owns | None = None,
        entry_id: str | None = None,
        marks: tuple[str, ...] = (),
        payer: Payer | None = None,
    ) -> Verdict:
        """Ask for one admission."""
        name = f"entry-{next(self._ids)}" if entry_id is None else entry_id
        ask = Ask(owns, rates, concurrency, budgets, amount, "0.025", name, marks=marks, payer=payer)
        return await self.store.admit(ask)

    async def submit(self, number: int, *owners: str, apps: tuple[str, ...] = (APP,), entry_id: str = "") -> Record:
        """Record an ownership, as after a submit."""
        record = Record(f"request-{number}", apps, owners, entry_id or f"entry-{number}", "0.025", "/x", "key-1")
        await self.store.submitted(record)
        return record

    async def denied(self, **ask: object) -> Denial | None:
        """Ask for one admission; return only why not."""
        return (await self.admit(**ask)).denied  # type: ignore[arg-type]

    async def usage(self, *budgets: Budget) -> tuple[Usage, ...]:
        """Return what budgets hold."""
        return (await self.standing(budgets=budgets)).budgets

    async def in_use(self, *keys: str) -> tuple[int, ...]:
        """Return how many entries hold slots."""
        return (await self.standing(concurrency=tuple(Concurrency(key, 1) for key in keys))).in_use

    async def standing(
        self,
        rates: tuple[Rate, ...] = (),
        concurrency: tuple[Concurrency, ...] = (),
        budgets: tuple[Budget, ...] = (),
    ) -> Standing:
        """Return where a caller stands."""
        return await self.store.standing(Question(rates, concurrency, budgets))
