"""The public keys of one issuer, and JWK Sets as such. Knows keys and where they come from, nothing of claims."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from fal_proxy.identity.published import PublishedKeys
from fal_proxy.upstream.own_calls import OwnCalls, is_askable

REFRESH_SECONDS = 300.0
MAX_KEYS = 100
_RSA_BITS = range(2048, 8193)


class Fit(NamedTuple):
    """What kind of key an algorithm needs (RFC 7518 §3.1, RFC 8037 §3.1, RFC 9864 §2)."""

    kty: str
    curve: str | None


# All that may be configured. `none` proves nothing, and HS* would turn a public key into a shared secret.
ALGORITHMS = {
    **{name: Fit("RSA", None) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")},
    "ES256": Fit("EC", "P-256"),
    "ES384": Fit("EC", "P-384"),
    "ES512": Fit("EC", "P-521"),
    "EdDSA": Fit("OKP", "Ed25519"),
    "Ed25519": Fit("OKP", "Ed25519"),
}
_PUBLIC_MEMBERS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}


class PublicKey(NamedTuple):
    """One key and the only algorithms that it may be used with."""

    kid: str | None
    algorithms: frozenset[str]
    key: RSAKey | ECKey | OKPKey

    def verifies(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """Say whether the signature is this key's over these bytes."""
        try:
            return bool(JWSRegistry.algorithms[algorithm].verify(signed, signature, self.key))
        except (JoseError, ValueError):
            return False


class IssuerKeys:
    """The issuer's current keys."""

    def __init__(
        self,
        calls: OwnCalls,
        issuer: str,
        jwks_url: str,
        algorithms: Sequence[str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take `jwks_url` empty to discover it from `issuer`; `calls` is closed with this."""
        self._issuer = issuer
        self._jwks_url = jwks_url
        usable = frozenset(algorithms)
        self._keys = PublishedKeys(
            calls,
            "the token issuer's",
            self._where,
            lambda data: read_keys(data, usable),
            REFRESH_SECONDS,
            clock=clock,
        )

    async def find(self, kid: str | None, algorithm: str) -> PublicKey | None:
        """Return the one key that a token's header means, None without one or with several.

        Raises Refusal `identity_unavailable` while no keys could ever be fetched.
        """
        keys = await self._keys.current()
        if kid is not None and all(key.kid != kid for key in keys):
            keys = await self._keys.anew()
        fitting = [key for key in keys if algorithm in key.algorithms and kid in (None, key.kid)]
        return fitting[0] if len(fitting) == 1 else None

    async def close(self) -> None:
        """End what is under way and close connections."""
        await self._keys.close()

    async def _where(self) -> str:
        """Return the address of the keys (OpenID Connect Discovery 1.0 §4)."""
        if self._jwks_url:
            return self._jwks_url
        url = self._issuer.removesuffix("/") + "/.well-known/openid-configuration"
        document = read_object(await self._keys.read(url))
        if document.get("issuer") != self._issuer:
            # §4.3: otherwise one issuer could speak for another.
            raise ValueError("the discovery document is of another issuer")
        found = document.get("jwks_uri")
        if not isinstance(found, str) or not is_askable(found):
            raise ValueError("the discovery document names no usable jwks_uri")
        return found


def read_object(data: bytes) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError for anything else."""
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError("is no JSON object") from error


def read_keys(data: bytes, algorithms: frozenset[str]) -> list[PublicKey]:
    """Return the usable keys of a JWK Set; what we do not know is left out (RFC 7517 §5). Raises ValueError."""
    entries = read_object(data).get("keys")
    if isinstance(entries, list) and len(entries) <= MAX_KEYS:
        return [key for entry in entries if (key := _read_key(entry, algorithms)) is not None]
    raise ValueError(f"is no JWK Set of at most {MAX_KEYS} keys")


def _read_key(entry: Any, algorithms: frozenset[str]) -> PublicKey | None:
    if not isinstance(entry, dict):
        return None
    kty, kid = entry.get("kty"), entry.get("kid")
    if not isinstance(kty, str) or kty not in _PUBLIC_MEMBERS or not isinstance(kid, str | None):
        return None
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    usable = frozenset(
        name
        for name in algorithms
        if ALGORITHMS[name] == Fit(kty, None if kty == "RSA" else entry.get("crv")) and entry.get("alg", name) == name
    )
    parts = {name: part.rstrip("=") for name in _PUBLIC_MEMBERS[kty] if isinstance(part := entry.get(name), str)}
    if not usable or len(parts) < len(_PUBLIC_MEMBERS[kty]):  # the padding that some add is not RFC 7515's
        return None
    key = _import(kty, {"kty": kty, **parts})
    return PublicKey(kid, usable, key) if key is not None else None


def _import(kty: str, parts: dict[str, Any]) -> RSAKey | ECKey | OKPKey | None:
    """Build the key from its public members alone, so that a published private key stays a public one here."""
    try:
        if kty == "RSA":
            modulus = base64.urlsafe_b64decode(parts["n"] + "==")
            return RSAKey.import_key(parts) if int.from_bytes(modulus).bit_length() in _RSA_BITS else None
        return ECKey.import_key(parts) if kty == "EC" else OKPKey.import_key(parts)
    except (JoseError, ValueError, TypeError):
        return None
