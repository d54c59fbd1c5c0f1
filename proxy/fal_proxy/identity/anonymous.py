"""The anonymous caller: a signed cookie for browsers, the network for everyone else. No state on this side."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

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
        https = self._is_https(request)
        network = self._network(request)
        if (subject := self._read(request, https=https)) is not None:
            known = Caller(_by_cookie(subject), "anonymous", self._plan, ambient=True, network=network)
            return replace(known, proves=frozenset([known.id, network]), owners=(known.id,))
        caller = Caller(network, "anonymous", self._plan, ambient=True, by_network=True, network=network)
        if not is_browser(request):
            return replace(caller, proves=frozenset([network]))
        subject = secrets.token_urlsafe(16)
        owners = (network, _by_cookie(subject))
        return replace(caller, proves=frozenset(owners), owners=owners, set_cookie=self._issue(subject, https=https))

    def carried(self, request: Request) -> Collection[str]:
        """Return the cookie's identity, if there is a good one, and the network's."""
        subject = self._read(request, https=self._is_https(request))
        return (self._network(request),) if subject is None else (_by_cookie(subject), self._network(request))

    async def close(self) -> None:
        """Hold nothing open."""

    def _network(self, request: Request) -> str:
        return f"{_NETWORK}{self._trusted_proxies.client_network(request.peer, request.headers)}"

    def _read(self, request: Request, *, https: bool) -> str | None:
        name = HOST_COOKIE if https else COOKIE
        for line in values(request.headers, b"cookie"):
            for part in line.decode("latin-1").split(";"):
                key, _, value = part.strip().partition("=")
                if key == name and len(value) <= _MAX_COOKIE_CHARS:
                    try:
                        return self._signer.unsign(value, max_age=LIFETIME_SECONDS).decode("ascii")
                    except BadSignature:
                        continue
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
