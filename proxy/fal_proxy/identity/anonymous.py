"""The anonymous caller: a signed cookie for browsers, the network for everyone else. No state on this side."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

from itsdangerous import BadSignature, TimestampSigner

from fal_proxy.environment import Secret
from fal_proxy.exchange import Caller
from fal_proxy.headers import values
from fal_proxy.identity import Presented
from fal_proxy.identity.network import TrustedProxies
from fal_proxy.request import Request

COOKIE = "fal_proxy_anon"
HOST_COOKIE = f"__Host-{COOKIE}"  # where our public side is https
LIFETIME_SECONDS = 30 * 24 * 3600
_SALT = b"fal-proxy anonymous cookie"
_MAX_COOKIE_CHARS = 256
_NETWORK = "anonymous::network-"
_ALWAYS = 2**63


class _Recognised(NamedTuple):
    """Whom a head and its sender's address show, and between which of the signer's seconds, both included."""

    caller: Caller
    begins: int
    ends: int


class Anonymous:
    """Recognise whoever presents no credential."""

    def __init__(
        self,
        signing_secrets: Sequence[Secret],
        plan: str,
        trusted_proxies: TrustedProxies,
        is_https: Callable[[Request], bool],
    ) -> None:
        """Take the signing secrets oldest first; `is_https` says whether our public side is, for the cookie's form."""
        self._signer = TimestampSigner(
            [secret.reveal() for secret in signing_secrets], salt=_SALT, digest_method=hashlib.sha256
        )
        self._plan = plan
        self._trusted_proxies = trusted_proxies
        self._is_https = is_https

    async def identify(self, presented: Presented) -> Caller | None:
        """Return the cookie's caller, else the network's; a browser without a good cookie is given one."""
        if presented.credential is not None:
            return None
        request = presented.request
        caller = self._recognise(request)
        if not (caller.by_network and is_browser(request)):
            return caller
        subject = secrets.token_urlsafe(16)
        owners = (caller.network, _by_cookie(subject))
        cookie = self._issue(subject, https=self._is_https(request))
        return replace(caller, proves=frozenset(owners), owners=owners, set_cookie=cookie)

    def carried(self, request: Request) -> Collection[str]:
        """Return the cookie's identity, if there is a good one, and the network's."""
        caller = self._recognise(request)
        return (caller.network,) if caller.by_network else (caller.id, caller.network)

    async def close(self) -> None:
        """Hold nothing open."""

    def _recognise(self, request: Request) -> Caller:
        """Return the caller of a good cookie, else the network."""
        name = (self, request.peer, https := self._is_https(request))
        known: _Recognised | None = request.notes.get(name)
        if known is None or not known.begins <= self._signer.get_timestamp() <= known.ends:
            known = self._look(request, https=https)
            if not (known.caller.by_network and request.lines(b"cookie")):  # a bad one may become good: clocks differ
                request.note(name, known)
        return known.caller

    def _look(self, request: Request, *, https: bool) -> _Recognised:
        network = f"{_NETWORK}{self._trusted_proxies.client_network(request.peer, request.headers)}"
        if (found := self._read(request, https=https)) is None:
            caller = Caller(network, "anonymous", self._plan, ambient=True, by_network=True, network=network)
            return _Recognised(replace(caller, proves=frozenset([network])), 0, _ALWAYS)
        subject, signed_at = found
        caller = Caller(_by_cookie(subject), "anonymous", self._plan, ambient=True, network=network)
        caller = replace(caller, proves=frozenset([caller.id, network]), owners=(caller.id,))
        return _Recognised(caller, signed_at, signed_at + LIFETIME_SECONDS)

    def _read(self, request: Request, *, https: bool) -> tuple[str, int] | None:
        """Return the subject of a good cookie and when it was signed."""
        name = HOST_COOKIE if https else COOKIE
        for line in values(request.headers, b"cookie"):
            for part in line.decode("latin-1").split(";"):
                key, _, value = part.strip().partition("=")
                if key == name and len(value) <= _MAX_COOKIE_CHARS:
                    try:
                        subject, signed = self._signer.unsign(value, max_age=LIFETIME_SECONDS, return_timestamp=True)
                    except BadSignature:
                        continue
                    return subject.decode("ascii"), int(signed.timestamp())
        return None

    def _issue(self, subject: str, *, https: bool) -> bytes:
        name = HOST_COOKIE if https else COOKIE
        value = self._signer.sign(subject).decode("ascii")
        attributes = f"Max-Age={LIFETIME_SECONDS}; Path=/; HttpOnly; SameSite=Lax" + ("; Secure" if https else "")
        return f"{name}={value}; {attributes}".encode("ascii")


def _by_cookie(subject: str) -> str:
    return f"anonymous::cookie-{subject}"


def is_network(identity: str) -> bool:
    """Say whether an identity is a network: many people at once, who do not share what each asked for."""
    return identity.startswith(_NETWORK)


def is_browser(request: Request) -> bool:
    """Say whether a page sent this: browsers set Origin or Sec-Fetch-Site, which pages cannot forge."""
    return any(name in (b"origin", b"sec-fetch-site") for name, _ in request.headers)
