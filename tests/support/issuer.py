"""A token issuer on loopback, OpenID Connect in shape, and a hand that signs anything. Shares no code with the proxy."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from fal_proxy.server import Listener, bind, serving
from support.services import Asked, Reply, Service

DISCOVERY = "/.well-known/openid-configuration"
JWKS = "/keys"
AUDIENCE = "fal-proxy"


class Signer(NamedTuple):
    """A key pair: how it signs, and its public half as JWK and as PEM."""

    algorithm: str
    sign: Callable[[bytes], bytes]
    jwk: dict[str, Any]
    pem: bytes

    def public(self, kid: str | None, **changes: Any) -> dict[str, Any]:
        """Return the entry of a JWK Set."""
        entry = {**self.jwk, "use": "sig", "alg": self.algorithm, **({} if kid is None else {"kid": kid}), **changes}
        return {name: value for name, value in entry.items() if value is not None}


@functools.cache
def rsa_signer(index: int = 0, bits: int = 2048) -> Signer:
    """Return the nth RS256 pair."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    numbers = key.public_key().public_numbers()
    jwk = {"kty": "RSA", "n": _integer(numbers.n, bits // 8), "e": _integer(numbers.e, 3)}
    return Signer(
        "RS256", lambda data: key.sign(data, padding.PKCS1v15(), hashes.SHA256()), jwk, _pem(key.public_key())
    )


@functools.cache
def ec_signer(curve: type[ec.EllipticCurve] = ec.SECP256R1, algorithm: str = "ES256") -> Signer:
    """Return a pair on a curve; always with SHA-256."""
    key = ec.generate_private_key(curve())
    numbers = key.public_key().public_numbers()
    size = (key.key_size + 7) // 8

    def sign(data: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(size) + s.to_bytes(size)

    name = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}[key.curve.name]
    jwk = {"kty": "EC", "crv": name, "x": _integer(numbers.x, size), "y": _integer(numbers.y, size)}
    return Signer(algorithm, sign, jwk, _pem(key.public_key()))


@functools.cache
def ed_signer() -> Signer:
    """Return an Ed25519 pair."""
    key = ed25519.Ed25519PrivateKey.generate()
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": encoded(raw)}
    return Signer("EdDSA", key.sign, jwk, _pem(key.public_key()))


class Issuer:
    """What the issuer publishes; a test changes it as it likes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.keys: list[Any] = [rsa_signer().public("rsa"), ec_signer().public("ec"), ed_signer().public("ed")]
        self.document: dict[str, Any] = {"issuer": url, "jwks_uri": url + JWKS}
        self.overrides: dict[str, Reply] = {}
        self.service = Service(self._answer)

    @property
    def fetches(self) -> int:
        """How often the keys were asked for."""
        return sum(asked.path == JWKS for asked in self.service.asked)

    def claims(self, now: float, **changes: Any) -> dict[str, Any]:
        """Return good claims, changed; None removes one."""
        claims = {"iss": self.url, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 300, **changes}
        return {name: value for name, value in claims.items() if value is not None}

    def _answer(self, asked: Asked) -> Reply:
        if asked.path in self.overrides:
            return self.overrides[asked.path]
        published = {DISCOVERY: self.document, JWKS: {"keys": self.keys}}.get(asked.path)
        return Reply(404) if published is None else Reply(200, json.dumps(published).encode())


@contextlib.asynccontextmanager
async def issuing() -> AsyncIterator[Issuer]:
    """Run an issuer on loopback."""
    sock = bind("127.0.0.1", 0)
    issuer = Issuer(Listener(None, sock).url)
    async with serving(Listener(issuer.service, sock)):
        try:
            yield issuer
        finally:
            issuer.service.gate.set()


def token(header: Any, claims: Any, sign: Callable[[bytes], bytes]) -> str:
    """Return a compact JWS; header and claims are JSON values, or bytes as they shall stand."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
    signed = ".".join(encoded(part) for part in parts)
    return f"{signed}.{encoded(sign(signed.encode()))}"


def encoded(data: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _integer(number: int, size: int) -> str:
    return encoded(number.to_bytes(size))


def _pem(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
