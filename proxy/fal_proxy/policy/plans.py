"""Plans, compiled once at start: what the settings say in words, ready to be asked per request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fal_proxy.errors import Refusal
from fal_proxy.headers import OPTIONAL_UP
from fal_proxy.policy.endpoints import Globs
from fal_proxy.settings import Plan


@dataclass(frozen=True, slots=True)
class CompiledPlan:
    """One plan, ready for use."""

    name: str
    globs: Globs
    methods: frozenset[str]
    allow_headers: frozenset[bytes]


def compile_plan(name: str, plan: Plan) -> CompiledPlan:
    """Return the plan ready for use. Raises ValueError for a malformed glob or a header that cannot be opened."""
    allowed = frozenset(header.lower().encode("latin-1", "replace") for header in plan.allow_headers)
    for header in sorted(allowed - OPTIONAL_UP):
        raise ValueError(f"{header.decode('latin-1')!r} is not one of {b', '.join(sorted(OPTIONAL_UP)).decode()}")
    return CompiledPlan(name, Globs(plan.endpoints), frozenset(plan.methods), allowed)


def plan_of(plans: Mapping[str, CompiledPlan], name: str) -> CompiledPlan:
    """Return the caller's plan. Raises Refusal `endpoint_denied` for a plan that the settings do not know."""
    plan = plans.get(name)
    if plan is None:
        raise Refusal("endpoint_denied", f"there is no plan called {name!r}")
    return plan
