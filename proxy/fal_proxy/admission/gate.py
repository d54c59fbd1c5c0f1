"""The gate: one question to the store per request, and what its answer means in words and header fields.

A caller meets their own counters; behind an anonymous caller stands a network with counters of its own, a plan's factor
larger. A caller who is known by network only meets just these. Budgets of the plan and of the deployment are one
counter for everybody. All of it is one atomic step; a refusal consumes nothing.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from itertools import count
from typing import Any

import msgspec

from fal_proxy.admission.blocks import blocked, marks_of
from fal_proxy.admission.jobs import app_of
from fal_proxy.admission.leases import Lease
from fal_proxy.admission.ledger import is_reserving
from fal_proxy.admission.limits import CLASSES, BudgetLimit, Limits, class_of
from fal_proxy.admission.refusals import refusal, unavailable
from fal_proxy.admission.terms import RateTerms, Terms, compile_terms
from fal_proxy.errors import StoreUnavailable
from fal_proxy.exchange import Caller, Kind, Payer, Target
from fal_proxy.stores import Ask, Budget, Concurrency, Outcome, Owns, Question, Rate, Record, Store

Subjects = tuple[tuple[str, Terms], ...]
_OWNED = frozenset([Kind.STATUS, Kind.STATUS_STREAM, Kind.RESULT, Kind.CANCEL, Kind.WMA])


class Grant(msgspec.Struct, frozen=True):
    """What an admitted request carries on: its entry, the fields that tell what is left, and the job it asks about."""

    entry_id: str = ""
    price: str = ""
    amount_microusd: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    record: Record | None = None
    payer: Payer | None = None


class Demand(msgspec.Struct, frozen=True):
    """What one caller's requests for one target ask of the store, each of them the same; without a kind nothing is counted."""

    kind: Kind | None = None
    app: str = ""
    request_id: str = ""  # of the job that is asked about
    own: RateTerms | None = None  # the caller's own rates, which are told
    rates: tuple[Rate, ...] = ()
    concurrency: tuple[Concurrency, ...] = ()
    budgets: tuple[Budget, ...] = ()
    payer: Payer | None = None  # of what is reserved, if anything is
    records: bool = False  # an ownership will have to be recorded


_NO_DEMAND = Demand()


class Gate:
    """Admission for one deployment."""

    def __init__(
        self,
        store: Store,
        limits: Mapping[str, Limits],
        total_budget: BudgetLimit | None,
        *,
        network_factor: int,
        ownership: bool,
    ) -> None:
        self.store = store
        self._terms = {
            plan: (compile_terms(limit, 1), compile_terms(limit, network_factor)) for plan, limit in limits.items()
        }
        everybodys = [("all", total_budget)]
        self._shared = {
            plan: tuple([Budget(key, *cap) for key, cap in [(f"plan:{plan}", limit.total_budget), *everybodys] if cap])
            for plan, limit in limits.items()
        }
        self._ownership = ownership
        self._process = secrets.token_hex(8) + "-"  # entries of no two processes are called the same
        self._count = count()

    def has_budget(self, plan: str) -> bool:
        """Say whether money is counted for the plan's callers, so that every endpoint needs a price."""
        return bool(self._terms[plan][0].budget or self._shared[plan])

    def demand(self, caller: Caller, plan: str, target: Target, lease: Lease | None = None) -> Demand:
        """Return what a caller's requests for a target ask of the store: it may be kept for the next one."""
        class_ = lease.class_ if lease else class_of(target.kind)
        if class_ is None:
            return _NO_DEMAND
        reserving = is_reserving(target.kind) or lease is not None
        holds = lease is None or lease.holds
        subjects = self._subjects(caller, plan)
        rates: list[Rate] = []
        concurrency: list[Concurrency] = []
        budgets: list[Budget] = []
        for subject, terms in subjects:
            rates += terms.rates_of(subject, class_)
            if reserving and holds:
                concurrency.append(terms.concurrency_of(subject, target.kind))
            if reserving and (budget := terms.budget_of(subject)) is not None:
                budgets.append(budget)
        if reserving:
            budgets += self._shared[plan]
        return Demand(
            target.kind,
            app_of(target.endpoint_id) if target.request_id else "",
            target.request_id,
            subjects[0][1].rates[class_],
            tuple(rates),
            tuple(concurrency),
            tuple(budgets),
            Payer(plan, caller.shown, caller.source, target.endpoint_id) if reserving else None,
            records=target.kind is Kind.SUBMIT or (lease is not None and lease.holds),
        )

    async def admit(self, caller: Caller, demand: Demand, amount_microusd: int = 0, price: str = "") -> Grant:
        """Admit and reserve, or raise Refusal: blocked, unknown_request, rate_limited, concurrency_limited,
        budget_exhausted, store_unavailable.
        """
        kind, own, payer = demand.kind, demand.own, demand.payer
        if kind is None or own is None:
            await self.judge_blocked(caller)
            return Grant()
        ask = Ask(
            self._owns(caller, demand) if demand.request_id else None,
            demand.rates,
            demand.concurrency,
            demand.budgets,
            amount_microusd,
            price,
            f"{self._process}{next(self._count):x}" if payer is not None else "",
            demand.records,
            len(own.each),
            marks_of(caller, paid=kind.traits.paid) if self.store.may_be_marked else (),
            payer,
        )
        try:
            verdict = await self.store.admit(ask)
            record = verdict.record
            if demand.request_id and not self._ownership:
                record = await self.store.find(demand.request_id)  # nobody is kept from it, but it is still settled
        except StoreUnavailable as error:
            raise unavailable() from error
        if verdict.denied is not None:
            raise refusal(verdict, ask, caller, own)
        told = own.told(verdict.rates[: len(own.each)])
        return Grant(ask.entry_id, price, amount_microusd, told, record, payer)

    async def lease(self, caller: Caller, plan: str, grant: Grant) -> None:
        """Charge what was granted once more, because it goes on; it is told when the grant's own entry is settled.

        Raises Refusal: blocked, budget_exhausted, store_unavailable.
        """
        subjects = self._subjects(caller, plan)
        owned = [budget for subject, terms in subjects if (budget := terms.budget_of(subject)) is not None]
        budgets = (*owned, *self._shared[plan])
        costs = bool(budgets and grant.amount_microusd)
        entry_id = f"{self._process}{next(self._count):x}" if costs else ""
        ask = Ask(
            budgets=budgets if costs else (),
            amount_microusd=grant.amount_microusd if costs else 0,
            entry_id=entry_id,
            marks=marks_of(caller, paid=True) if self.store.may_be_marked else (),
            payer=grant.payer,
        )
        try:
            verdict = await self.store.admit(ask)
            if verdict.denied is None and costs:
                await self.store.settle(entry_id, Outcome.AS_RESERVED, onto=grant.entry_id)
        except StoreUnavailable as error:
            if not costs:
                return  # nothing would have to be counted, and what was stopped is heard of with the next renewal
            raise unavailable() from error
        if verdict.denied is not None:
            raise refusal(verdict, ask, caller, subjects[0][1].rates["submit"])

    async def judge_blocked(self, caller: Caller) -> None:
        """Judge what is counted nowhere, and so works while the store is away. Raises Refusal blocked."""
        if not self.store.may_be_marked:
            return
        names = marks_of(caller, paid=False)
        try:
            standing = await self.store.standing(Question(marks=names))
        except StoreUnavailable:
            return
        for name, is_marked in zip(names, standing.marked, strict=True):
            if is_marked:
                raise blocked(name)

    async def marks(self) -> Mapping[str, float]:
        """Return what is stopped, and since when. Raises Refusal store_unavailable."""
        try:
            return await self.store.marks()
        except StoreUnavailable as error:
            raise unavailable() from error

    async def mark(self, name: str, *, stopped: bool) -> None:
        """Stop what a mark names, or let it go on. Raises Refusal store_unavailable."""
        try:
            await (self.store.mark(name) if stopped else self.store.unmark(name))
        except StoreUnavailable as error:
            raise unavailable() from error

    async def forget(self, caller: Caller, plan: str) -> None:
        """Let the caller's own rates, and what is spent of the caller's own budget, begin at zero.

        Raises Refusal store_unavailable.
        """
        subject, terms = self._subjects(caller, plan)[0]
        rates = [rate for name in CLASSES for rate in terms.rates_of(subject, name)]
        budget = terms.budget_of(subject)
        try:
            await self.store.forget(Question(tuple(rates), (), () if budget is None else (budget,)))
        except StoreUnavailable as error:
            raise unavailable() from error

    async def covered(self, name: str) -> float:
        """Return for how many seconds from now a lease is paid. Raises Refusal store_unavailable."""
        try:
            return await self.store.extend(name, 0)
        except StoreUnavailable as error:
            raise unavailable() from error

    async def is_spent(self, name: str, seconds: int) -> bool:
        """Say whether what may be used once was used; it is remembered for `seconds`. Raises Refusal store_unavailable."""
        try:
            standing = await self.store.standing(Question(rates=(Rate("once:" + name, 1, seconds),)))
        except StoreUnavailable as error:
            raise unavailable() from error
        return standing.rates[0].remaining == 0

    async def spend(self, name: str, seconds: int) -> bool:
        """Use what may be used once; False for whoever comes second. Raises Refusal store_unavailable."""
        try:
            verdict = await self.store.admit(Ask(rates=(Rate("once:" + name, 1, seconds),)))
        except StoreUnavailable as error:
            raise unavailable() from error
        return verdict.denied is None

    async def standing(self, caller: Caller, plan: str) -> dict[str, Any]:
        """Return where the caller stands, as `/me` shows it, blocked or not. Raises Refusal store_unavailable."""
        subject, terms = self._subjects(caller, plan)[0]
        rates = [(name, rate) for name in CLASSES for rate in terms.rates_of(subject, name)]
        budget = terms.budget_of(subject)
        budgets = () if budget is None else (budget,)
        held = tuple([terms.concurrency_of(subject, kind) for kind in (Kind.RUN, Kind.REALTIME)])
        question = Question(tuple(rate for _, rate in rates), held, budgets)
        try:
            standing = await self.store.standing(question)
        except StoreUnavailable as error:
            raise unavailable() from error
        shown: dict[str, list[dict[str, Any]]] = {name: [] for name in CLASSES}
        for (name, rate), state in zip(rates, standing.rates, strict=True):
            left = {"remaining": state.remaining, "reset_seconds": math.ceil(state.reset_seconds)}
            shown[name].append({"limit": rate.limit, **left})
        money = None
        for budget, usage in zip(budgets, standing.budgets, strict=True):
            used = {"spent_microusd": usage.spent_microusd, "reserved_microusd": usage.reserved_microusd}
            money = {"limit_microusd": budget.limit_microusd, **used, "resets_at": usage.resets_at}
        return {
            "limits": shown,
            "concurrent": {"limit": held[0].limit, "in_use": standing.in_use[0]},
            "realtime": {"limit": held[1].limit, "in_use": standing.in_use[1]},
            "budget": money,
        }

    def _owns(self, caller: Caller, demand: Demand) -> Owns | None:
        if not self._ownership or demand.kind not in _OWNED:
            return None
        return Owns(demand.request_id, demand.app, caller.proves, caller.source == "anonymous")

    def _subjects(self, caller: Caller, plan: str) -> Subjects:
        """Return whose counters a caller meets, each with its terms; the caller's own come first."""
        own, network = self._terms[plan]
        if caller.by_network:
            return ((caller.id, network),)
        return ((caller.id, own), (caller.network, network)) if caller.network else ((caller.id, own),)
