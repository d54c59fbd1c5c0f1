"""The gate's refusals in words: which limit, whose it is, and when to come again."""

from __future__ import annotations

import math

from fal_proxy.admission.blocks import blocked
from fal_proxy.admission.terms import RateTerms
from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller
from fal_proxy.stores import Ask, Denial, Verdict

UNAVAILABLE_RETRY_SECONDS = 1
_OF_CLASS = {"submit": "runs, streams and submits", "read": "reads", "upload": "uploads"}


def unavailable() -> Refusal:
    """Return the refusal of a request that the store cannot answer for."""
    detail = "the proxy cannot count right now, and what cannot be counted is not sent; repeat it in a moment"
    return Refusal("store_unavailable", detail, headers=(_retry_after(UNAVAILABLE_RETRY_SECONDS),))


def unknown() -> Refusal:
    """Return the refusal of what does not exist or is not the caller's; which of the two is not told."""
    return Refusal("unknown_request", "there is no such request, or it is not yours, or not under this app")


def refusal(verdict: Verdict, ask: Ask, caller: Caller, own: RateTerms) -> Refusal:
    """Return the refusal of what the store denied; `own` are the caller's rates of the class."""
    denied, at = verdict.denied, verdict.at
    if denied is Denial.MARKED:
        return blocked(ask.marks[at])
    if denied is Denial.UNKNOWN_REQUEST:
        return unknown()
    if denied is Denial.RATE:
        seconds = math.ceil(verdict.retry_seconds or 0)
        who = "of your network " if at >= len(own.each) or caller.by_network else ""
        rate = f"{ask.rates[at].limit}/{own.words[at % len(own.each)]}"
        detail = f"the limit {who}is {rate} {_OF_CLASS[own.class_]}; the next is possible in {_duration(seconds)}"
        return Refusal("rate_limited", detail, headers=(_retry_after(seconds), *own.told(verdict.rates)))
    if denied is Denial.CONCURRENCY:
        limit, key = ask.concurrency[at].limit, ask.concurrency[at].key
        who = "your network has" if at or caller.by_network else "you have"
        sessions = key.startswith("sessions:")
        names = ("realtime session", "realtime sessions") if sessions else ("run or job", "runs or jobs")
        jobs = f"{limit} {names[limit != 1]}"
        detail = f"{who} {jobs} in progress, which is the limit; wait for one to end"
        return Refusal("concurrency_limited", detail, headers=(_retry_after(math.ceil(verdict.retry_seconds or 1)),))
    budget = ask.budgets[at]
    own_budget = "the budget of your network" if at or caller.by_network else "your budget"
    whose = {"caller": own_budget, "plan": "the budget of your plan", "all": "the budget of this proxy"}
    name = whose[budget.key.partition(":")[0]]
    per = "in all" if budget.period == "total" else f"per {budget.period}"
    detail = f"{name} of ${_dollars(budget.limit_microusd)} {per} does not cover this request"
    if verdict.retry_seconds is not None:
        detail += f"; it starts anew in {_duration(math.ceil(verdict.retry_seconds))}"
    return Refusal("budget_exhausted", detail)


def _dollars(microusd: int) -> str:
    """Return the amount with two decimals, or as many as it needs."""
    whole, rest = divmod(microusd, 1_000_000)
    return f"{whole}.{f'{rest:06d}'.rstrip('0').ljust(2, '0')}"


def _duration(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{math.ceil(seconds / 60)} min"
    return f"{math.ceil(seconds / 3600)} h"


def _retry_after(seconds: int) -> tuple[bytes, bytes]:
    return (b"retry-after", b"%d" % max(seconds, 1))
