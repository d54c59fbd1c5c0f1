"""What one subject meets under one plan: the counters that a request asks about, made ready once per plan.

Whatever does not change between two requests of a plan is here, so that an admission only puts names to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fal_proxy.admission.limits import CLASSES, BudgetLimit, Limits, RateClass
from fal_proxy.exchange import Kind
from fal_proxy.stores import Budget, Concurrency, Rate, RateState


@dataclass(frozen=True, slots=True)
class RateTerms:
    """The rates of one class, and how they are told."""

    class_: RateClass
    each: tuple[tuple[int, int], ...]  # limit and window in seconds
    words: tuple[str, ...]  # of the operator: `minute`, `2 hours`
    policy: bytes  # the value of `ratelimit-policy`
    _left: bytes  # that of `ratelimit`, with a place for each remainder and each second

    def told(self, states: Iterable[RateState]) -> tuple[tuple[bytes, bytes], ...]:
        """Return `ratelimit-policy` and `ratelimit` (draft-ietf-httpapi-ratelimit-headers-10), none without rates."""
        left: list[int] = []
        for state in states:
            left += (state.remaining, math.ceil(state.reset_seconds))
        return ((b"ratelimit-policy", self.policy), (b"ratelimit", self._left % tuple(left))) if left else ()


@dataclass(frozen=True, slots=True)
class Terms:
    """A plan's limits, times a factor."""

    rates: dict[RateClass, RateTerms]
    concurrent: int
    sessions: int
    budget: BudgetLimit | None

    def rates_of(self, subject: str, class_: RateClass) -> list[Rate]:
        """Return the rates that the subject's requests of this class meet."""
        key = f"{class_}:{subject}"
        return [Rate(key, limit, seconds) for limit, seconds in self.rates[class_].each]

    def concurrency_of(self, subject: str, kind: Kind) -> Concurrency:
        """Return the limit of what the subject has in progress, realtime sessions and world models apart from the rest."""
        if kind in (Kind.REALTIME, Kind.WMA):
            return Concurrency("sessions:" + subject, self.sessions)
        return Concurrency("jobs:" + subject, self.concurrent)

    def budget_of(self, subject: str) -> Budget | None:
        """Return the subject's own budget."""
        return None if self.budget is None else Budget("caller:" + subject, *self.budget)


def compile_terms(limits: Limits, factor: int) -> Terms:
    """Return the limits, each `factor` times as large."""
    budget = limits.budget and BudgetLimit(limits.budget.limit_microusd * factor, limits.budget.period)
    rates = {name: _rate_terms(limits, name, factor) for name in CLASSES}
    return Terms(rates, limits.concurrent * factor, limits.sessions * factor, budget)


def _rate_terms(limits: Limits, class_: RateClass, factor: int) -> RateTerms:
    rates = limits.rates[class_]
    each = tuple((rate.limit * factor, rate.window_seconds) for rate in rates)
    return RateTerms(
        class_,
        each,
        tuple(rate.text.partition("/")[2] for rate in rates),
        ", ".join(f'"{class_}-{seconds}";q={limit};w={seconds}' for limit, seconds in each).encode(),
        ", ".join(f'"{class_}-{seconds}";r=%d;t=%d' for _, seconds in each).encode(),
    )
