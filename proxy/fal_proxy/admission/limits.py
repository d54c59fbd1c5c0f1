"""What one plan grants, compiled from its settings: rates by class of request, concurrency, budgets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple, cast, get_args

from fal_proxy.admission.rates import RatePerWindow, parse_rates
from fal_proxy.exchange import Kind
from fal_proxy.settings import Plan
from fal_proxy.stores import Period

RateClass = Literal["submit", "read", "upload"]
CLASSES: tuple[RateClass, ...] = get_args(RateClass)
_CLASS_OF: dict[Kind, RateClass] = {
    Kind.RUN: "submit",
    Kind.STREAM: "submit",
    Kind.SUBMIT: "submit",
    Kind.REALTIME: "submit",
    Kind.STATUS: "read",
    Kind.STATUS_STREAM: "read",
    Kind.RESULT: "read",
    Kind.CANCEL: "read",
    Kind.TOKEN: "read",
    Kind.WMA: "read",  # but what opens a session has a lease, and that says otherwise
    Kind.UPLOAD_INITIATE: "upload",
}
_BUDGET = re.compile(r"(?P<usd>[0-9]{1,9}(?:\.[0-9]{1,6})?)/(?P<period>" + "|".join(get_args(Period)) + ")")


class BudgetLimit(NamedTuple):
    """So much per period; a period that ends starts anew."""

    limit_microusd: int
    period: Period


@dataclass(frozen=True, slots=True)
class Limits:
    """One plan's limits, ready for use."""

    rates: dict[RateClass, tuple[RatePerWindow, ...]]
    concurrent: int
    sessions: int
    budget: BudgetLimit | None
    total_budget: BudgetLimit | None


def class_of(kind: Kind) -> RateClass | None:
    """Return which rates a kind counts against, None for none."""
    return _CLASS_OF.get(kind)


def compile_limits(plan: Plan) -> Limits:
    """Return the plan's limits. Raises ValueError for a malformed one."""
    if plan.concurrent < 1:
        raise ValueError("concurrent must be at least 1")
    if plan.realtime_sessions < 0:
        raise ValueError("realtime_sessions must be zero or more")
    return Limits(
        {name: parse_rates(getattr(plan, name)) for name in CLASSES},
        plan.concurrent,
        plan.realtime_sessions,
        parse_budget(plan.budget),
        parse_budget(plan.total_budget),
    )


def parse_budget(text: str) -> BudgetLimit | None:
    """Return the budget that `AMOUNT/PERIOD` spells, AMOUNT in USD, None for an empty text. Raises ValueError."""
    if not text:
        return None
    match = _BUDGET.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no budget such as 1.00/day; periods: {', '.join(get_args(Period))}")
    return BudgetLimit(int(Fraction(match["usd"]) * 1_000_000), cast("Period", match["period"]))
