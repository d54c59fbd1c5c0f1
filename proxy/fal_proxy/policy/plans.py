"""Plans, compiled once at start: what the settings say in words, ready to be asked per request."""

from __future__ import annotations

from dataclasses import dataclass

from fal_proxy.errors import Refusal
from fal_proxy.exchange import Kind, Target
from fal_proxy.headers import OPTIONAL_UP
from fal_proxy.policy.endpoints import Globs
from fal_proxy.settings import Plan

# Kinds that spend money name an endpoint and need a glob; reads follow the request they belong to.
_GLOBBED = frozenset([Kind.RUN, Kind.STREAM, Kind.SUBMIT, Kind.REALTIME])


@dataclass(frozen=True, slots=True)
class CompiledPlan:
    """One plan, ready for use."""

    name: str
    globs: Globs
    methods: frozenset[str]
    allow_headers: frozenset[bytes]
    known: bool = True  # to the settings
    realtime_token: bool = False


def compile_plan(name: str, plan: Plan) -> CompiledPlan:
    """Return the plan ready for use. Raises ValueError for a malformed glob or a header that cannot be opened."""
    allowed = frozenset(header.lower().encode("latin-1", "replace") for header in plan.allow_headers)
    for header in sorted(allowed - OPTIONAL_UP):
        raise ValueError(f"{header.decode('latin-1')!r} is not one of {b', '.join(sorted(OPTIONAL_UP)).decode()}")
    globs, methods = Globs(plan.endpoints), frozenset(plan.methods)
    return CompiledPlan(name, globs, methods, allowed, realtime_token=plan.realtime_token)


def closed_plan(name: str) -> CompiledPlan:
    """Return the plan of a caller whose plan the settings do not know: it opens nothing."""
    return CompiledPlan(name, Globs(()), frozenset(["POST"]), frozenset(), known=False)


def permit(target: Target, plan: CompiledPlan, *, storage_mode: str, realtime_mode: str, wma: bool = False) -> None:
    """Raise Refusal unless the plan opens the target: endpoint_denied or mode_off."""
    kind = target.kind
    if not plan.known:
        raise Refusal("endpoint_denied", f"there is no plan called {plan.name!r}")
    if kind in _GLOBBED and not plan.globs.match(target.endpoint_id):
        raise Refusal("endpoint_denied", f"plan {plan.name!r} does not open {target.endpoint_id}")
    if kind in (Kind.TOKEN, Kind.REALTIME) and realtime_mode == "off":
        raise Refusal("mode_off", "realtime is off (realtime.mode)")
    if realtime_mode == "token":
        if kind is Kind.REALTIME:
            raise Refusal("mode_off", "sockets go to fal itself here, with a token of fal's (realtime.mode)")
        if kind is Kind.TOKEN and not plan.realtime_token:
            raise Refusal("mode_off", f"plan {plan.name!r} hands out no fal tokens (realtime_token)")
    if kind is Kind.WMA and not wma:
        raise Refusal("mode_off", "world models are off (realtime.wma)")
    if kind is Kind.UPLOAD_TOKEN and storage_mode != "relay":
        raise Refusal("mode_off", "this proxy hands out no storage tokens (storage.mode)")
    if kind is Kind.UPLOAD_INITIATE and storage_mode == "off":
        raise Refusal("mode_off", "uploads are off (storage.mode)")
