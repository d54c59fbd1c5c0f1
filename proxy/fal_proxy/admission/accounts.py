"""One exchange's account: what its answer says about a job or a bill, and the settlement when it ends.

The relay tells it what passes; nothing here changes what passes. An ownership is recorded before the answer that names
the request id goes down.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fal_proxy.admission import ledger
from fal_proxy.admission.gate import Grant
from fal_proxy.admission.jobs import StatusEvents, app_of, is_completed, read_submitted
from fal_proxy.errors import StoreUnavailable, UpstreamInvalid
from fal_proxy.exchange import Caller, Exchange, Kind, Payer, Target
from fal_proxy.stores import Outcome, Record, Store

_PASSED_BYTES = 1024 * 1024
Charge = Callable[[str, str], int]  # from the price of the day and fal's units to micro-dollars


class Account(msgspec.Struct, eq=False):
    """The books of one admitted exchange; `close` settles it, whatever became of it."""

    store: Store
    grant: Grant
    exchange: Exchange
    caller: Caller
    target: Target
    charge: Charge
    key_id: str  # of the fal key that the request goes up with
    _recorded: bool = False
    _closed: bool = False
    _passed: bytes = b""
    _events: StatusEvents | None = None  # of a status stream

    async def answered(self, status: int, body: bytes) -> None:
        """Take an answer that was read whole. Raises UpstreamInvalid when a job's owner could not be recorded."""
        if self.target.kind is Kind.SUBMIT:
            if 200 <= status < 300:
                await self._record(body)
        elif self.target.kind in (Kind.STATUS, Kind.CANCEL):
            await self.passing(body)

    async def passing(self, data: bytes) -> None:
        """Take a piece of another answer; what it completes is noted before its last byte goes down."""
        status = self.exchange.upstream_status
        if status is None or not 200 <= status < 300:
            return
        if self.target.kind is Kind.STATUS_STREAM:
            self._events = self._events or StatusEvents()
            if self._events.feed(data):
                await self._completed()
        elif len(self._passed) + len(data) <= _PASSED_BYTES:
            self._passed += data
            if self.target.kind is Kind.STATUS and b"COMPLETED" in self._passed and is_completed(self._passed):
                await self._completed()
            elif self.target.kind is Kind.CANCEL and ledger.of_cancel(status, self._passed) is not None:
                await self._release()

    async def ended(self) -> None:
        """Settle a whole answer, before its last byte goes down."""
        await self.close()

    async def close(self) -> None:
        """Settle, once. A store that cannot answer now keeps the reservation: its lease ends it as reserved."""
        if self._closed:
            return
        self._closed = True
        exchange = self.exchange
        ending = ledger.Ending(exchange.written, exchange.upstream_status, exchange.whole, exchange.units is not None)
        kind = self.target.kind
        try:
            if kind in (Kind.RUN, Kind.STREAM, Kind.REALTIME):
                await self._settle(self.grant.entry_id, self.grant.price, ledger.of_call(ending))
            elif kind is Kind.SUBMIT and not self._recorded:
                outcome = ledger.of_submit(ending, None)
                await self._settle(self.grant.entry_id, self.grant.price, outcome or Outcome.AS_RESERVED)
            elif kind is Kind.RESULT and (record := self.grant.record) is not None:
                outcome = ledger.of_result(ending, completed=record.completed, has_request_id=exchange.named)
                if outcome is not None:
                    await self._settle(record.entry_id, record.price, outcome, self._asking())
        except StoreUnavailable:
            pass

    async def _record(self, body: bytes) -> None:
        submitted = read_submitted(body, self.target.endpoint_id)
        if submitted is None:
            return  # nobody can ask about this job, so there is nothing to own: it stays charged as reserved
        self.exchange.request_id = submitted.request_id
        apps = tuple(dict.fromkeys([app_of(self.target.endpoint_id), submitted.app]))
        path = f"/{submitted.app}/requests/{submitted.request_id}"
        owners = self.caller.owners
        record = Record(submitted.request_id, apps, owners, self.grant.entry_id, self.grant.price, path, self.key_id)
        try:
            await self.store.submitted(record)
        except StoreUnavailable as error:
            raise UpstreamInvalid("the job's owner could not be recorded", written=True) from error
        self._recorded = True

    async def _completed(self) -> None:
        try:
            await self.store.completed(self.target.request_id)
        except StoreUnavailable:
            pass  # the settler asks again

    async def _release(self) -> None:
        if (record := self.grant.record) is not None:
            try:
                await self._settle(record.entry_id, record.price, Outcome.RELEASED, self._asking())
            except StoreUnavailable:
                pass  # the settler learns it from fal

    def _asking(self) -> Payer:
        """Return who asks about a job, which somebody else may pay for: another identity of the same person."""
        return Payer(self.exchange.plan or "", self.caller.shown)

    async def _settle(self, entry_id: str, price: str, outcome: Outcome, by: Payer | None = None) -> None:
        amount = 0
        if outcome is Outcome.BILLED:
            amount = self.charge(price, self.exchange.units or "0") if price else 0
        changed = await self.store.settle(entry_id, outcome, amount, by=by)
        if changed or (price and (outcome is Outcome.BILLED or self.grant.entry_id)):
            self.exchange.cost_microusd = changed
