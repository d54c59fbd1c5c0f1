"""The anonymous caller: a signed cookie for browsers, the network for everyone else. No state on this side."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence

from itsdangerous import BadSignature, TimestampSigner

from fal_proxy.environment import Secret
from fal_proxy.exchange import Caller, Request
from fal_proxy.headers import values
from fal_proxy.identity import Presented
from fal_proxy.identity.network import TrustedProxies

COOKIE = "fal_proxy_anon"
HOST_COOKIE = f"__Host-{COOKIE}"  # where our public side is https
LIFETIME_SECONDS = 30 * 24 * 3600
_SALT = b"fal-proxy anonymous cookie"
_MAX_COOKIE_CHARS = 256


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
        name = HOST_COOKIE if https else COOKIE
        if (subject := self._read(request, name)) is not None:
            return Caller(f"anonymous::cookie-{subject}", "anonymous", self._plan, ambient=True)
        network = self._trusted_proxies.client_network(request.peer, request.headers)
        cookie = self._issue(name, https=https) if is_browser(request) else None
        return Caller(
            f"anonymous::network-{network}", "anonymous", self._plan, ambient=True, by_network=True, set_cookie=cookie
        )

    async def close(self) -> None:
        """Hold nothing open."""

    def _read(self, request: Request, name: str) -> str | None:
        for line in values(request.headers, b"cookie"):
            for part in line.decode("latin-1").split(";"):
                key, _, value = part.strip().partition("=")
                if key == name and len(value) <= _MAX_COOKIE_CHARS:
                    try:
                        return self._signer.unsign(value, max_age=LIFETIME_SECONDS).decode("ascii")
                    except BadSignature:
                        continue
        return None

    def _issue(self, name: str, *, https: bool) -> bytes:
        value = self._signer.sign(secrets.token_urlsafe(16)).decode("ascii")
        attributes = f"Max-Age={LIFETIME_SECONDS}; Path=/; HttpOnly; SameSite=Lax" + ("; Secure" if https else "")
        return f"{name}={value}; {attributes}".encode("ascii")


def is_browser(request: Request) -> bool:
    """Say whether a page sent this: browsers set Origin or Sec-Fetch-Site, which pages cannot forge."""
    return any(name in (b"origin", b"sec-fetch-site") for name, _ in request.headers)
