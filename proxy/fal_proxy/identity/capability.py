"""Capabilities: what a request shows that can show nothing else: a browser's bare PUT, the CDN's bearer, fal's webhook.

A capability is sealed, not only signed: it holds the address that fal gave for an upload, and whoever could read that
would pass us by; or who may hear of a job. Each purpose has keys of its own, so that one kind is never another. Knows no
limits and no sockets.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from itsdangerous import BadData, Signer
from itsdangerous.encoding import base64_decode, base64_encode

from fal_proxy.environment import Secret
from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller

UPLOAD_SECONDS = 3600  # a capability's life; fal's own address may end sooner, and fal says so
MAX_CAPABILITY_BYTES = 8192
_NONCE_BYTES = 12
T = TypeVar("T", bound="Sealed")


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """What every capability says: when it ends."""

    what: ClassVar[str] = "upload"  # it is for, in words

    ends: float


class Callback(Sealed, frozen=True, kw_only=True, array_like=True):
    """That fal may tell us of one submit's end. Short, since it travels in a URL inside a URL."""

    what: ClassVar[str] = "webhook"

    owners: tuple[str, ...]  # of the request id, as they are recorded; nobody: whoever knows the id
    endpoint_id: str
    forward_url: str  # the app's own server; empty: none


class Capability(Sealed, frozen=True, kw_only=True):
    """One that was given to a caller."""

    id: str
    caller: str
    source: str
    plan: str
    network: str
    by_network: bool

    def known(self) -> Caller:
        """Return the caller that it was given to; a page had to be asked for it, so nothing is attached by itself."""
        return Caller(
            self.caller,
            self.source,
            self.plan,
            ambient=False,
            by_network=self.by_network,
            network=self.network,
            proves=frozenset([self.caller]),
        )


class Upload(Capability, frozen=True, kw_only=True):
    """The bytes of one file, whole or in parts."""

    host: str
    path: str
    query: str | None
    content_type: str
    multipart: bool
    max_bytes: int
    upload_id: str = ""  # the CDN's, of an upload with its bearer
    key_id: str = ""  # of the fal key whose bearer began it


class Bearer(Capability, frozen=True, kw_only=True):
    """Uploads to the CDN in the Python client's way."""


class Seals(Generic[T]):
    """Makes capabilities of one kind and reads them back."""

    def __init__(
        self,
        kind: type[T],
        purpose: bytes,
        signing_secrets: Sequence[Secret],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take the signing secrets oldest first; the last one seals. `purpose` is the salt."""
        self._kind = kind
        self._clock = clock
        derive = [
            Signer(secret.reveal(), salt=purpose, key_derivation="hmac", digest_method=hashlib.sha256).derive_key()
            for secret in signing_secrets
        ]
        self._keys = [AESGCM(key) for key in reversed(derive)]

    def holder(self, caller: Caller, seconds: float = UPLOAD_SECONDS) -> dict[str, Any]:
        """Return the fields that every capability of this caller's has."""
        return {
            "id": secrets.token_urlsafe(9),
            "caller": caller.id,
            "source": caller.source,
            "plan": caller.plan,
            "network": caller.network,
            "by_network": caller.by_network,
            "ends": self.until(seconds),
        }

    def until(self, seconds: float) -> float:
        """Return the end of a capability that lives so long."""
        return self._clock() + seconds

    def seal(self, capability: T) -> str:
        """Return the capability as one segment of a URL."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._keys[0].encrypt(nonce, msgspec.json.encode(capability), None)
        return base64_encode(nonce + sealed).decode("ascii")

    def find(self, text: bytes) -> T | None:
        """Return what a capability says, over or not; None for anything that is not one of ours of this kind."""
        if len(text) > MAX_CAPABILITY_BYTES:
            return None
        try:
            sealed = base64_decode(text)
        except BadData:
            return None
        for key in self._keys:
            try:
                plain = key.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)
            except (InvalidTag, ValueError):
                continue
            return msgspec.json.decode(plain, type=self._kind)
        return None

    def open(self, text: bytes) -> T:
        """Return what a capability allows. Raises Refusal: not_found for none of ours, capability_expired."""
        found = self.find(text)
        if found is None:
            raise Refusal("not_found", f"there is no such {self._kind.what}")
        self.judge_end(found)
        return found

    def judge_end(self, capability: T) -> None:
        """Raise Refusal capability_expired for one that is over."""
        if capability.ends <= self._clock():
            raise Refusal("capability_expired", f"the time for this {capability.what} is over; start it anew")
