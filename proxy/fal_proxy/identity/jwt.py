"""JWT bearers of one issuer (RFC 7519, OpenID Connect). What a token says of its own keys is never followed.

A token is judged in three steps, cheapest first: its form, its claims, its signature. Only what would be accepted if
its signature holds can make us ask the issuer for keys. Where keys come from is the business of `jwks`.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, NoReturn

from fal_proxy.errors import FalProxyError
from fal_proxy.exchange import Caller
from fal_proxy.identity import DEFAULT_PLAN, Presented, is_plain_name
from fal_proxy.identity.jwks import IssuerKeys, PublicKey
from fal_proxy.identity.published import FETCH_SECONDS, MAX_BYTES
from fal_proxy.request import Request
from fal_proxy.settings import JwtSource
from fal_proxy.upstream.own_calls import OwnCalls

MAX_TOKEN_CHARS = 8 * 1024
LEEWAY_SECONDS = 30  # clocks differ
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")

_log = logging.getLogger("fal_proxy.identity")


class TokenRefused(FalProxyError):
    """A token that is not accepted; the text is the reason and holds nothing of the token."""


class Token(NamedTuple):
    """A token taken apart, nothing of it believed yet."""

    algorithm: str
    kid: str | None
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


class Proved(NamedTuple):
    """Whom a signature was found to prove; nothing follows from it once the issuer's keys are other ones."""

    text: str
    token: Token
    key: PublicKey
    caller: Caller


class JwtBearers:
    """Recognise the bearers of our issuer's tokens."""

    def __init__(self, settings: JwtSource, keys: IssuerKeys, *, clock: Callable[[], float] = time.time) -> None:
        """Take the settings and the issuer's keys, which are closed with this."""
        self._settings = settings
        self._keys = keys
        self._clock = clock

    @classmethod
    def of(cls, settings: JwtSource) -> JwtBearers:
        """Return the source that `[identity.jwt]` describes, with a client of its own for the issuer's keys."""
        calls = OwnCalls(seconds=FETCH_SECONDS, max_bytes=MAX_BYTES, connections=2)
        return cls(settings, IssuerKeys(calls, settings.issuer, settings.jwks_url, settings.algorithms))

    async def identify(self, presented: Presented) -> Caller | None:
        """Return the token's subject, None for what is no acceptable token. Raises Refusal `identity_unavailable`."""
        credential = presented.credential
        if credential is None or credential.count(".") != 2:
            return None
        before: Proved | None = presented.request.notes.get(self)
        try:
            proved = await self.accept(credential, before)
        except TokenRefused as refused:
            _log.debug("token refused: %s", refused)
            return None
        if proved is not before:
            presented.request.note(self, proved)
        return proved.caller

    async def accept(self, text: str, before: Proved | None = None) -> Proved:
        """Return whom a token proves. Raises TokenRefused, Refusal `identity_unavailable`.

        Of the token that was found good `before` only the times are judged anew, and whether its key is still the issuer's.
        """
        known = before if before is not None and before.text == text else None
        token = take_apart(text) if known is None else known.token
        if token.algorithm not in self._settings.algorithms:
            raise TokenRefused("its algorithm is not accepted")
        judge_claims(token.claims, self._settings, self._clock())
        caller = self._named(token.claims) if known is None else known.caller
        key = await self._keys.find(token.kid, token.algorithm)
        if key is None:
            raise TokenRefused("no key of the issuer, or not exactly one, fits its kid and algorithm")
        if known is not None and known.key is key:
            return known
        if not key.verifies(token.algorithm, token.signed, token.signature):
            raise TokenRefused("its signature does not hold")
        return Proved(text, token, key, caller)

    def _named(self, claims: dict[str, Any]) -> Caller:
        subject, plan = claims.get("sub"), claims.get(self._settings.plan_claim, DEFAULT_PLAN)
        if not is_plain_name(subject):
            raise TokenRefused("sub is no plain text of 1 to 255 characters")
        if not is_plain_name(plan):
            raise TokenRefused(f"{self._settings.plan_claim} is no plain text of 1 to 255 characters")
        return Caller(f"jwt:{self._settings.issuer}:{subject}", "jwt", plan, ambient=False)

    def carried(self, request: Request) -> Collection[str]:
        """Return nothing: what this source knows by, it is asked about."""
        return ()

    async def close(self) -> None:
        """Close what fetches keys."""
        await self._keys.close()


def take_apart(text: str) -> Token:
    """Return the parts of a compact JWS (RFC 7515 §7.1). Raises TokenRefused for any other form."""
    if len(text) > MAX_TOKEN_CHARS:
        raise TokenRefused(f"it is longer than {MAX_TOKEN_CHARS} characters")
    segments = text.split(".")
    if len(segments) != 3:
        raise TokenRefused("it has not three parts")
    header, claims = (_read_object(_decode(segment)) for segment in segments[:2])
    signature = _decode(segments[2])
    # Nothing critical is understood here, so anything critical is refused (RFC 7515 §4.1.11). `jwk`, `jku`, `x5u`
    # and `x5c` are the sender's word about whom to believe: they are not even looked at.
    if "crit" in header:
        raise TokenRefused("it has critical header parameters")
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or not isinstance(kid, str | None):
        raise TokenRefused("alg or kid is no text")
    if kid is None and "kid" in header:
        raise TokenRefused("alg or kid is no text")
    return Token(algorithm, kid, claims, f"{segments[0]}.{segments[1]}".encode("ascii"), signature)


def judge_claims(claims: dict[str, Any], settings: JwtSource, now: float) -> None:
    """Raise TokenRefused unless the token is of our issuer, for us, and of now (RFC 7519 §4.1)."""
    if claims.get("iss") != settings.issuer:
        raise TokenRefused("iss is not our issuer")
    audience = claims.get("aud")
    listed = audience if isinstance(audience, list) else [audience]
    if settings.audience not in listed or not all(isinstance(name, str) for name in listed):
        raise TokenRefused("aud is not our audience")
    expires, begins, issued = (_seconds(claims, name) for name in ("exp", "nbf", "iat"))
    if expires is None:
        raise TokenRefused("exp is missing")
    if now >= expires + LEEWAY_SECONDS:
        raise TokenRefused("it has expired")
    if begins is not None and now < begins - LEEWAY_SECONDS:
        raise TokenRefused("it is not valid yet")
    if issued is not None and now < issued - LEEWAY_SECONDS:
        raise TokenRefused("it was issued in the future")


def _seconds(claims: dict[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    # bool is a subclass of int; NaN compares as false; beyond 2^53 a number is no date.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        raise TokenRefused(f"{name} is no number")
    return value


def _decode(segment: str) -> bytes:
    """Decode base64url as RFC 7515 §2 wants it: no padding, no other characters, and only one spelling of the bytes."""
    if not _BASE64URL.fullmatch(segment) or len(segment) % 4 == 1:
        raise TokenRefused("it is not base64url")
    data = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    if base64.urlsafe_b64encode(data).rstrip(b"=") != segment.encode("ascii"):
        raise TokenRefused("it is not base64url")
    return data


def _read_object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except TokenRefused:
        raise
    except (ValueError, RecursionError):
        raise TokenRefused("it holds no JSON") from None
    if not isinstance(value, dict):
        raise TokenRefused("it holds no JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # RFC 7519 §4: reject duplicate names, or be one of two parsers that read the same token differently.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise TokenRefused("a name appears twice in it")
    return found


def _no_constant(name: str) -> NoReturn:
    raise TokenRefused(f"{name} is no JSON")
