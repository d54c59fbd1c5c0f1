"""What fal posts when a job has ended: judged from the cheapest question to the dearest, filed, and only then answered.

    capability → four fields → time → body and its request id → our record of the job → filed already? → signature → file

A stranger costs one AEAD, whoever knows an address one hash. Nothing changes for what is refused. The signature is the
last question, so that nobody makes us compute or fetch keys for what could not be filed anyway: a webhook that comes twice
is answered without it. One that overtakes the answer to its submit is refused, since nobody owns its job yet: fal repeats.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from fal_proxy.address_guard import AddressGuard
from fal_proxy.admission.jobs import app_of
from fal_proxy.admission.refusals import unavailable, unknown
from fal_proxy.callbacks import WEBHOOKS
from fal_proxy.errors import ClientGone, Refusal, StoreUnavailable
from fal_proxy.exchange import Kind, Receipt
from fal_proxy.gateway import Arrival, Gateway
from fal_proxy.headers import Headers, values
from fal_proxy.identity.anonymous import is_network
from fal_proxy.identity.capability import Callback, Seals
from fal_proxy.identity.fal_signature import SIGNED, Signed, is_good, read_signed
from fal_proxy.identity.jwks import PublicKey
from fal_proxy.identity.published import PublishedKeys
from fal_proxy.relay.inbound import Inbound
from fal_proxy.stores.mailbox import Event, Mailbox

_KEPT = (*SIGNED, b"content-type")  # of fal's fields: who is told of the event may want to judge it too
_CONTENT_TYPE_BYTES = 255


class Told(msgspec.Struct):
    """What is read of a webhook's body here."""

    request_id: str
    status: str


@dataclass(frozen=True, slots=True)
class Receiving:
    """`POST <mount>/webhooks/<capability>`.

    Its guard counts what is refused as made up, by address, and ends the computing of signatures for an address that has
    sent too much of it. What is good is not counted: all of fal's webhooks come from a few addresses.
    """

    gateway: Gateway
    seals: Seals[Callback]
    keys: PublishedKeys[tuple[PublicKey, ...]]
    mailbox: Mailbox
    clock: Callable[[], float] = time.time
    guard: AddressGuard = field(default_factory=AddressGuard)

    async def receive(self, arrival: Arrival) -> None:
        """Answer one webhook; fal sees the status and repeats unless it is 2xx."""
        arrival.reply.exchange.kind = Kind.WEBHOOK
        receipt = Receipt.UNAVAILABLE
        try:
            callback = self._open(arrival)
            signed = self._read_fields(arrival)
            told, body = await self._read_body(arrival, signed)
            receipt = await self._file(arrival, callback, signed, told, body)
        except ClientGone:
            receipt = Receipt.MALFORMED  # a body without its end
            raise
        except StoreUnavailable as error:
            raise unavailable() from error
        except _Refused as refused:
            receipt = refused.receipt
            self._count_made_up(arrival, receipt)
            raise refused.refusal from None
        finally:
            self.gateway.telemetry.metrics.received(receipt)
        await arrival.reply.own(200, b"{}")

    def _open(self, arrival: Arrival) -> Callback:
        request = arrival.request
        sealed = request.path[len(self.gateway.mount) + len(WEBHOOKS) + 2 :]
        callback = self.seals.find(sealed)
        if callback is None or request.query is not None:
            raise _Refused(Receipt.NO_CAPABILITY, "not_found", "there is no such webhook")
        arrival.reply.exchange.endpoint_id = callback.endpoint_id
        try:
            self.seals.judge_end(callback)
        except Refusal as refusal:
            raise _Refused(Receipt.EXPIRED, refusal.error_type, refusal.detail) from None
        if request.method != "POST":
            allow = ((b"allow", b"POST"),)
            raise _Refused(Receipt.MALFORMED, "method_not_allowed", "a webhook is a POST", headers=allow)
        return callback

    def _read_fields(self, arrival: Arrival) -> Signed:
        signed = read_signed(arrival.request.headers)
        if signed is None:
            raise _Refused(
                Receipt.MALFORMED, "bad_request", "the four x-fal-webhook fields are not there, once and plain"
            )
        if not signed.is_timely(self.clock()):
            raise _Refused(Receipt.UNTIMELY, "unidentified", "the webhook was not signed within the last five minutes")
        most = self.gateway.max_body_bytes
        if arrival.announced is not None and arrival.announced > most:
            raise _Refused(
                Receipt.TOO_LARGE, "body_too_large", f"the body exceeds {most} bytes (server.max_body_bytes)"
            )
        return signed

    async def _read_body(self, arrival: Arrival, signed: Signed) -> tuple[Told, bytes]:
        most = self.gateway.max_body_bytes
        inbound = Inbound(arrival.receive, most, arrival.announced, arrival.server.on_departure)
        try:
            body = await inbound.read_first(most)
        except Refusal as refusal:
            large = refusal.error_type == "body_too_large"
            raise _Refused(
                Receipt.TOO_LARGE if large else Receipt.MALFORMED, refusal.error_type, refusal.detail
            ) from None
        try:
            told = msgspec.json.decode(body, type=Told)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise _Refused(Receipt.MALFORMED, "bad_request", "the body is none of a webhook") from None
        if told.request_id != signed.request_id:
            raise _Refused(Receipt.MALFORMED, "bad_request", "field and body name two request ids")
        return told, body

    async def _file(self, arrival: Arrival, callback: Callback, signed: Signed, told: Told, body: bytes) -> Receipt:
        """Judge what only our own books and fal's keys can say. Raises StoreUnavailable."""
        store = self.gateway.gate.store
        record = await store.find(signed.request_id)
        if record is None or record.owners != callback.owners or app_of(callback.endpoint_id) not in record.apps:
            refusal = unknown()
            raise _Refused(Receipt.UNKNOWN_REQUEST, refusal.error_type, refusal.detail)
        if await self.mailbox.filed(signed.request_id):
            return Receipt.DUPLICATE
        await self._judge_signature(arrival, signed, body)
        event = Event(
            request_id=signed.request_id,
            endpoint_id=callback.endpoint_id,
            owners=tuple(owner for owner in callback.owners if not is_network(owner)),
            ok=told.status == "OK",
            headers=_kept(arrival.request.headers),
            body=body,
            forward_url=callback.forward_url,
        )
        if await self.mailbox.file(event) is None:
            return Receipt.DUPLICATE
        try:
            await store.hasten(signed.request_id)
        except StoreUnavailable:
            pass  # the settler asks by itself, somewhat later
        return Receipt.FILED

    async def _judge_signature(self, arrival: Arrival, signed: Signed, body: bytes) -> None:
        try:
            self.guard.judge(self._address(arrival))
        except Refusal as refusal:
            raise _Refused(Receipt.UNJUDGED, refusal.error_type, refusal.detail, headers=refusal.headers) from None
        try:
            keys = await self.keys.current()
            if is_good(signed, body, keys):
                return
            newer = await self.keys.anew()
        except Refusal as refusal:
            raise _Refused(Receipt.UNAVAILABLE, refusal.error_type, refusal.detail, headers=refusal.headers) from None
        if newer is keys or not is_good(signed, body, newer):
            raise _Refused(Receipt.FORGED, "unidentified", "no key of fal's made this signature")

    def _count_made_up(self, arrival: Arrival, receipt: Receipt) -> None:
        """Count what nobody but a stranger sends. Raises Refusal `rate_limited`."""
        if receipt in (Receipt.NO_CAPABILITY, Receipt.MALFORMED, Receipt.UNTIMELY, Receipt.FORGED):
            self.guard.hit(self._address(arrival))

    def _address(self, arrival: Arrival) -> str:
        return self.gateway.trusted_proxies.client_network(arrival.request.peer, arrival.request.headers)


class _Refused(Exception):
    """What became of a webhook that is refused, and what its sender is told."""

    def __init__(
        self, receipt: Receipt, error_type: str, detail: str, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        super().__init__(detail)
        self.receipt = receipt
        self.refusal = Refusal(error_type, detail, headers=headers)


def _kept(headers: Headers) -> tuple[tuple[str, str], ...]:
    """Return the fields that are kept with the event, as they came."""
    found = ((name, value) for name in _KEPT for value in values(headers, name)[:1])
    return tuple((name.decode(), value.decode("latin-1")) for name, value in found if len(value) <= _CONTENT_TYPE_BYTES)
