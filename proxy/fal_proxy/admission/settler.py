"""The settler: asks fal itself about jobs that nobody polls, so that a closed tab strands neither a slot nor money.

It asks for the status, and when that says COMPLETED for the result, whose body it discards. Which jobs are due, and that
no two processes ask about one at once, is the store's to say.
"""

from __future__ import annotations

import asyncio
import logging

from fal_proxy.admission import ledger
from fal_proxy.admission.accounts import Charge
from fal_proxy.admission.jobs import is_completed
from fal_proxy.errors import Refusal, StoreUnavailable, UpstreamError
from fal_proxy.exchange import Payer
from fal_proxy.headers import UNITS_FIELD, Headers, billable_units
from fal_proxy.stores import Cause, Outcome, Record, Store
from fal_proxy.telemetry import Telemetry
from fal_proxy.upstream.answer import Head
from fal_proxy.upstream.dial import Route
from fal_proxy.upstream.engine import Engine
from fal_proxy.upstream.keys import Key, KeyPool

TICK_SECONDS = 1.0
RENEW_SECONDS = 20.0
LOOK_SECONDS = 5.0  # at what is held
AT_ONCE = 16
_HOST = b"queue.fal.run"
_HEAD_SECONDS = 30.0
_BODY_IDLE_SECONDS = 30.0
_STATUS_BYTES = 1024 * 1024
_REASONS = {
    Cause.LEASE_END: "nobody has learnt in time how it ended",
    Cause.LOST: "the process that answered it died",
    Cause.LATE: "the store did not answer in time when it ended",
    Cause.ANOTHER: "its result was told to another identity than the one that pays",
    Cause.APART: "more of a session that had ended meanwhile",
}
_log = logging.getLogger("fal_proxy.settler")


class Settler:
    """One per process; `run` until cancelled."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        route: Route,
        keys: KeyPool,
        charge: Charge,
        mark: Headers,
        telemetry: Telemetry | None = None,
    ) -> None:
        """Take `mark`: the fields that say who we are. `telemetry` is told of every settlement."""
        self._store = store
        self._engine = engine
        self._route = route
        self._keys = keys
        self._charge = charge
        self._mark = mark
        self._telemetry = telemetry
        self._open: set[str] = set()
        self._renewed = 0.0
        self._held: dict[str, tuple[str, Payer | None]] = {}  # entries by id, and the lease that each ends with
        self._told: list[int] = []  # of what was untold, but the store has not heard of it yet
        self._looked = 0.0
        self._turned: float | None = None

    def since_turn_seconds(self) -> float | None:
        """Return how long ago the last turn came to its end, None before the first."""
        return None if self._turned is None else asyncio.get_running_loop().time() - self._turned

    def opened(self, entry_id: str) -> None:
        """Keep an entry alive while its request is being answered here."""
        if entry_id:
            self._open.add(entry_id)

    def closed(self, entry_id: str) -> None:
        """Stop keeping it alive."""
        self._open.discard(entry_id)

    def hold(self, entry_id: str, name: str, payer: Payer | None) -> None:
        """Keep an entry, and its place, until the lease of this name is over: no request of ours lasts as long."""
        self._held[entry_id] = (name, payer)

    async def run(self) -> None:
        """Ask and renew until cancelled."""
        try:
            await self._store.ping()  # a shared store takes note of what it holds before the first request
        except StoreUnavailable:
            pass
        while True:
            try:
                await self.turn()
                self._turned = asyncio.get_running_loop().time()
            except StoreUnavailable:
                pass  # the store says so itself, and the next turn asks again
            except Exception:  # noqa: BLE001 -- one fault must not end the settling of everything else
                _log.exception("fault of the settler")
            await asyncio.sleep(TICK_SECONDS)

    async def turn(self) -> None:
        """Renew what is being answered, ask about what is due, tell what nobody told. Raises StoreUnavailable."""
        now = asyncio.get_running_loop().time()
        if self._open and now - self._renewed >= RENEW_SECONDS:
            self._renewed = now
            await self._store.renew(sorted(self._open))
        if self._held and now - self._looked >= LOOK_SECONDS:
            self._looked = now
            await self._look()
        due = await self._store.due(AT_ONCE)
        if due:
            await asyncio.gather(*(self._settle(job.record, job.payer) for job in due))
        await self.tell()

    async def tell(self) -> None:
        """Tell what nobody has told. Raises StoreUnavailable."""
        while changes := await self._store.untold(self._told):
            for change in changes:
                self._tell(change.payer, change.microusd, change.request_id, reason=_REASONS[change.cause])
            self._told = [change.number for change in changes]
        self._told = []

    async def _look(self) -> None:
        """Renew what is held and goes on, in whichever process its lease was extended; settle what is over."""
        held = list(self._held.items())  # more may come meanwhile
        left = await asyncio.gather(*(self._store.extend(name, 0) for _, (name, _) in held))
        over = [(entry_id, payer) for (entry_id, (_, payer)), still in zip(held, left, strict=True) if not still]
        for entry_id, payer in over:
            changed = await self._store.settle(entry_id, Outcome.AS_RESERVED)
            del self._held[entry_id]
            if changed:
                self._tell(payer, changed, reason="its heartbeats have stopped")
        await self._store.renew(list(self._held))

    async def _settle(self, record: Record, payer: Payer | None) -> None:
        try:
            key = self._keys.of_job(record.key_id)
            head, body, whole = await self._get(record.path.encode() + b"/status", key, keep=True)
            named = bool(head.lines(b"x-fal-request-id"))
            key.answered(head.status, body if whole else b"", from_job=named, paid=False)
            if not 200 <= head.status < 300 or not is_completed(body):
                return
            await self._store.completed(record.request_id)
            head, _, whole = await self._get(record.path.encode(), key, keep=False)
            units = billable_units(head.lines(UNITS_FIELD))
            ending = ledger.Ending(written=True, status=head.status, whole=whole, billed=units is not None)
            named = bool(head.lines(b"x-fal-request-id"))
            outcome = ledger.of_result(ending, completed=True, has_request_id=named)
            if outcome is not None:
                billed = outcome is Outcome.BILLED and record.price and units
                amount = self._charge(record.price, units) if billed and units else 0
                changed = await self._store.settle(record.entry_id, outcome, amount)
                payer = payer or Payer(endpoint_id=record.apps[0])
                self._tell(payer, changed if record.price else None, record.request_id, head.status, units)
        except (UpstreamError, StoreUnavailable, Refusal):  # a Refusal: no key is usable
            pass  # its next turn comes

    def _tell(
        self,
        payer: Payer | None,
        changed_microusd: int | None,
        request_id: str = "",
        status: int | None = None,
        units: str | None = None,
        *,
        reason: str = "",
    ) -> None:
        """Leave a line: without it nobody could add up what callers were charged."""
        if self._telemetry is None:
            return
        exchange = self._telemetry.begin()
        exchange.settled, exchange.request_id, exchange.reason = True, request_id, reason
        exchange.status, exchange.units, exchange.cost_microusd = status, units, changed_microusd
        if payer is not None:
            exchange.payer, exchange.plan, exchange.endpoint_id = payer, payer.plan, payer.endpoint_id
        self._telemetry.finish(exchange)

    async def _get(self, path: bytes, key: Key, *, keep: bool) -> tuple[Head, bytes, bool]:
        """Return head, body (if kept) and whether the answer was whole. Raises UpstreamError before the head."""
        origin, target = self._route.to(_HOST, path)
        call = await self._engine.open(origin)
        parts: list[bytes] = []
        size = 0
        try:
            fields = [(b"accept", b"application/json"), *self._mark, key.field]
            call.start(b"GET", target, fields, length=0)
            head = await call.head(_HEAD_SECONDS)
            try:
                while data := await call.read(_BODY_IDLE_SECONDS):
                    size += len(data)
                    if keep and size <= _STATUS_BYTES:
                        parts.append(data)
            except UpstreamError:
                return head, b"".join(parts), False
            return head, b"".join(parts), True
        finally:
            call.release()
