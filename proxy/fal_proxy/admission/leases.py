"""What fal serves past us and the caller pays for by the second: the books of a fal token and of a world model's session.

Such a thing is covered by name until a moment that the store knows. Whatever asks for more of it reserves what it may
add, and is charged, when fal has answered, for what it did add: a token that is refreshed before it is over, or a
heartbeat, pays for the time since the last one. What is covered was charged and what was charged is covered, even when
nobody knows whether fal heard the request. The first seconds of a session stay reserved, and its place taken, until its
heartbeats stop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from fal_proxy.admission import ledger
from fal_proxy.admission.limits import RateClass
from fal_proxy.errors import StoreUnavailable, UpstreamInvalid
from fal_proxy.exchange import Caller, Exchange, Kind, Payer
from fal_proxy.stores import Outcome, Record, Store

if TYPE_CHECKING:
    from fal_proxy.admission.gate import Grant

SESSION_APP = "wma"  # what sessions are owned under, in place of the app that only their opening names


class Lease(msgspec.Struct, frozen=True):
    """What a request asks to be covered."""

    name: str  # empty: fal's answer will name it
    seconds: float
    class_: RateClass
    holds: bool = False  # one of the caller's places, until the lease ends


@dataclass(slots=True)
class LeaseAccount:
    """The books of one admitted request with a lease; `close` settles it, whatever became of it."""

    store: Store
    grant: Grant
    lease: Lease
    exchange: Exchange
    caller: Caller
    charge: Callable[[str, str], int]  # from USD per second and seconds to micro-dollars
    key_id: str
    hold: Callable[[str, str, Payer | None], None]  # an entry until a lease is over; then it is settled, and told
    _name: str = ""
    _over: bool = False
    _closed: bool = False

    async def answered(self, status: int, body: bytes) -> None:
        """Take fal's answer. Raises UpstreamInvalid when a session's owner could not be recorded."""
        if self.exchange.kind is not Kind.WMA or not 200 <= status < 300:
            return
        answer = _decode(body)
        if not self.lease.holds:
            self._over = answer.get("alive") is False
        elif isinstance(session := answer.get("session_id"), str) and session:
            await self._record(session_name(session))

    async def passing(self, data: bytes) -> None:
        """Nothing passes: these answers are read whole."""

    async def ended(self) -> None:
        """Settle a whole answer, before it goes down."""
        await self.close()

    async def close(self) -> None:
        """Settle, once. A store that cannot answer now keeps the reservation, which then ends as reserved."""
        if self._closed:
            return
        self._closed = True
        exchange = self.exchange
        ending = ledger.Ending(exchange.written, exchange.upstream_status, exchange.whole)
        name = self._name or self.lease.name
        try:
            if self._over or ledger.of_submit(ending, None) is Outcome.RELEASED:
                await self._settle(Outcome.RELEASED, 0)
            elif not name or not (self.grant.price or exchange.kind is Kind.WMA):
                await self._settle(Outcome.AS_RESERVED, self.grant.amount_microusd)
            else:
                await self._cover(name)
        except StoreUnavailable:
            pass

    async def _cover(self, name: str) -> None:
        covered = await self.store.extend(name, self.lease.seconds)
        if self.lease.holds:
            self.hold(self.grant.entry_id, name, self.grant.payer)
            return
        price = self.grant.price
        amount = self.charge(price, added(self.lease.seconds, covered)) if price else 0
        await self._settle(Outcome.BILLED, amount)

    async def _settle(self, outcome: Outcome, amount: int) -> None:
        changed = await self.store.settle(self.grant.entry_id, outcome, amount)
        if self.grant.price:
            self.exchange.cost_microusd = changed

    async def _record(self, name: str) -> None:
        # Without its entry: the settler asks fal's queue about the jobs of entries, and this is none.
        record = Record(name, (SESSION_APP,), self.caller.owners, "", "", "", self.key_id)
        try:
            await self.store.submitted(record)
        except StoreUnavailable as error:
            raise UpstreamInvalid("the session's owner could not be recorded", written=True) from error
        self._name = name


def token_name(caller: Caller, app: str) -> str:
    """Return the name of the lease of a caller's fal tokens for an app."""
    return f"token:{app}:{caller.id}"


def session_name(session_id: str) -> str:
    """Return the name of a session's lease, which is also what it is owned by; no request id of fal's queue has a `/`."""
    return f"{SESSION_APP}/{session_id}"


def added(seconds: float, covered: float) -> str:
    """Return how much of the seconds is not covered, to the millisecond: clocks are no more exact."""
    return str(round(max(seconds - covered, 0), 3))


def _decode(body: bytes) -> dict[str, object]:
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}
