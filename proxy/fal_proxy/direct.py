"""What callers do with fal itself and we only open: fal's tokens (realtime.mode = "token") and world models.

Judges their requests as strictly as what they open is wide, builds their bodies anew, and says what they cost: seconds
of `realtime.usd_per_second`, ahead. Dials nothing and settles nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from fal_proxy.admission.gate import Gate
from fal_proxy.admission.leases import SESSION_APP, Lease, added, session_name, token_name
from fal_proxy.admission.refusals import unknown
from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller, Kind, Target
from fal_proxy.policy import sessions, tokens
from fal_proxy.policy.inputs import InputRules
from fal_proxy.policy.plans import CompiledPlan
from fal_proxy.policy.pricing import Prices, charge_for
from fal_proxy.policy.target import endpoint_of
from fal_proxy.relay.inbound import Inbound

KINDS = frozenset([Kind.TOKEN, Kind.WMA])
# Clients send a heartbeat every 5 s. What is paid ahead is lost when they stop; when it is over, so is the session here.
SESSION_SECONDS = 20.0


class Judged(NamedTuple):
    """A request that may go up: where to, with which body, at which price, and what it keeps covered."""

    target: Target
    body: bytes
    amount_microusd: int
    price: str
    lease: Lease | None


@dataclass(frozen=True, slots=True)
class Direct:
    """The rules of one deployment."""

    gate: Gate
    inputs: InputRules
    prices: Prices
    usd_per_second: Fraction | None
    token_seconds: int
    wma: bool

    async def judge(self, target: Target, caller: Caller, plan: CompiledPlan, inbound: Inbound) -> Judged:
        """Judge a request of these KINDS. Raises Refusal: input_denied, endpoint_denied, body_too_large,
        unknown_request, store_unavailable.
        """
        if target.query is not None:
            raise Refusal("input_denied", "this target takes no query")
        if target.kind is Kind.TOKEN:
            return await self._judge_token(target, caller, plan, await _whole(inbound, tokens.MAX_BYTES))
        given = sessions.read_session_request(target.path, await _whole(inbound, sessions.MAX_BYTES))
        body = msgspec.json.encode(given)
        if isinstance(given, sessions.Heartbeat):
            return await self._judge_heartbeat(target, plan, session_name(given.session_id), body)
        endpoint_id = endpoint_of(given.app_id)
        if not plan.globs.match(endpoint_id):
            raise Refusal("endpoint_denied", f"plan {plan.name!r} does not open {endpoint_id}")
        if self.inputs.applies(endpoint_id) or self.prices.needs_input(endpoint_id):
            raise _unseen(endpoint_id)
        target = replace(target, endpoint_id=endpoint_id)
        if isinstance(given, sessions.Ice):
            return Judged(target, body, 0, "", None)
        lease = Lease("", SESSION_SECONDS, "submit", holds=True)
        return Judged(target, body, *self._price(plan, SESSION_SECONDS, 0), lease)

    async def _judge_token(self, target: Target, caller: Caller, plan: CompiledPlan, body: bytes) -> Judged:
        app, asked_seconds = tokens.read_asked(body)
        apps = tokens.opened_by(app)
        # Of a bare alias fal is not told the owner, so no glob can be held against it: one owner's whole alias must be
        # open, or no plan but `*/alias/**`, which opens strangers' apps everywhere else too, could use the clients.
        if not any(plan.globs.cover(each) for each in apps):
            alias = "/".join(segment or "<owner>" for segment in apps[0])
            raise Refusal("endpoint_denied", f"a token for {app} opens {alias}/**, and plan {plan.name!r} does not")
        if any(self.inputs.reach(each) or self.prices.reads_inputs_of(each) for each in apps):
            raise _unseen(app)
        seconds = min(asked_seconds or self.token_seconds, self.token_seconds)
        name = token_name(caller, app)
        covered = await self.gate.covered(name) if self.gate.has_budget(plan.name) else 0
        amount, price = self._price(plan, seconds, covered)
        return Judged(target, tokens.rebuilt(target.path, app, seconds), amount, price, Lease(name, seconds, "submit"))

    async def _judge_heartbeat(self, target: Target, plan: CompiledPlan, name: str, body: bytes) -> Judged:
        covered = await self.gate.covered(name)
        if not covered:
            raise unknown()  # it is over, or never was; the gate says the same of somebody else's
        target = replace(target, endpoint_id=SESSION_APP, request_id=name)
        return Judged(target, body, *self._price(plan, SESSION_SECONDS, covered), Lease(name, SESSION_SECONDS, "read"))

    def _price(self, plan: CompiledPlan, seconds: float, covered: float) -> tuple[int, str]:
        """Return what the seconds that are not covered cost, and the price of one; nothing where nobody counts."""
        if not self.gate.has_budget(plan.name):
            return 0, ""
        if self.usd_per_second is None:
            raise Refusal(
                "endpoint_denied", "realtime has no price here, and budgets need one (realtime.usd_per_second)"
            )
        price = str(self.usd_per_second)
        return charge_for(price, added(seconds, covered)), price


async def _whole(inbound: Inbound, most_bytes: int) -> bytes:
    body = await inbound.read_first(most_bytes)
    if not inbound.complete or len(body) > most_bytes:
        raise Refusal("body_too_large", f"the body of this target has at most {most_bytes} bytes")
    return body


def _unseen(app: str) -> Refusal:
    return Refusal("endpoint_denied", f"inputs of {app} are judged here, and what is sent past us cannot be")
