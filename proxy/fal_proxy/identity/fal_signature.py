"""fal's signature over a webhook: what is signed, by which keys, and whether it is good. Pure but for fetching the keys.

Four fields; the message is the first three, as they were sent, and the SHA-256 of the raw body in lower-case hex, with
line feeds between and none at the end. It is an Ed25519 signature by one of the keys that fal publishes, no HMAC.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from fal_proxy.headers import Headers, values
from fal_proxy.identity.jwks import PublicKey, read_keys
from fal_proxy.identity.published import FETCH_SECONDS, MAX_BYTES, PublishedKeys
from fal_proxy.upstream.dial import Route
from fal_proxy.upstream.own_calls import OwnCalls

REQUEST_ID, USER_ID, TIMESTAMP, SIGNATURE = SIGNED = (
    b"x-fal-webhook-request-id",
    b"x-fal-webhook-user-id",
    b"x-fal-webhook-timestamp",
    b"x-fal-webhook-signature",
)
TOLERANCE_SECONDS = 300
REFRESH_SECONDS = 3600.0  # fal allows a day
_FORMS = {
    REQUEST_ID: re.compile(rb"[A-Za-z0-9._~\-]{1,128}"),
    USER_ID: re.compile(rb"[!-~]{1,255}"),
    TIMESTAMP: re.compile(rb"[0-9]{1,12}"),
    SIGNATURE: re.compile(rb"[0-9A-Fa-f]{128}"),
}
_ALGORITHMS = frozenset(["Ed25519", "EdDSA"])  # two names of the same, of which a key may carry either
_HOST, _PATH = b"rest.fal.ai", b"/.well-known/jwks.json"


class Signed(NamedTuple):
    """The four fields of a webhook, well-formed."""

    request_id: str
    user_id: str
    timestamp: str
    signature: bytes

    def is_timely(self, now: float) -> bool:
        """Say whether it was signed around now, in unix seconds."""
        return abs(now - int(self.timestamp)) <= TOLERANCE_SECONDS

    def message(self, body: bytes) -> bytes:
        """Return what is signed."""
        digest = hashlib.sha256(body).hexdigest()
        return f"{self.request_id}\n{self.user_id}\n{self.timestamp}\n{digest}".encode()


def read_signed(headers: Headers) -> Signed | None:
    """Return the fields of a webhook's signature, None unless each is there once and well-formed."""
    found: list[bytes] = []
    for name, form in _FORMS.items():
        lines = values(headers, name)
        if len(lines) != 1 or not form.fullmatch(lines[0]):
            return None
        found.append(lines[0])
    request_id, user_id, timestamp, signature = (value.decode("ascii") for value in found)
    return Signed(request_id, user_id, timestamp, bytes.fromhex(signature))


def is_good(signed: Signed, body: bytes, keys: Iterable[PublicKey]) -> bool:
    """Say whether one of the keys made the signature."""
    message = signed.message(body)
    return any(key.verifies(next(iter(key.algorithms)), message, signed.signature) for key in keys)


def read_fal_keys(data: bytes) -> tuple[PublicKey, ...]:
    """Return the Ed25519 keys of fal's JWK Set. Raises ValueError for anything that is no such set, or holds none."""
    keys = tuple(read_keys(data, _ALGORITHMS))
    if not keys:
        raise ValueError("holds no Ed25519 key")
    return keys


def fal_keys_of(
    route: Route, calls: OwnCalls | None = None, *, clock: Callable[[], float] = time.monotonic
) -> PublishedKeys[tuple[PublicKey, ...]]:
    """Return fal's keys, fetched when they are first needed; close them."""
    calls = calls or OwnCalls(seconds=FETCH_SECONDS, max_bytes=MAX_BYTES, connections=1)
    url = route.address(_HOST, _PATH).decode("ascii")

    async def where() -> str:
        return url

    return PublishedKeys(calls, "fal's webhook", where, read_fal_keys, REFRESH_SECONDS, clock=clock)
