"""The trusted header: a reverse proxy of the operator's own names the caller in a field that it owns.

The field counts for nothing unless the socket's other end is one of the listed networks (never an address that a
field claims) and, if one is configured, a shared secret comes with it.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection

from fal_proxy.environment import Secret
from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller
from fal_proxy.headers import values
from fal_proxy.identity import DEFAULT_PLAN, Presented, is_plain_name
from fal_proxy.identity.network import Networks, address_of
from fal_proxy.request import Request
from fal_proxy.settings import HeaderSource


class TrustedHeader:
    """Recognise whoever the reverse proxy in front of us names."""

    def __init__(self, settings: HeaderSource, secret: Secret | None) -> None:
        """Take the settings, and the secret that `secret_header` must equal; raise ValueError for bad networks."""
        self._name = settings.name.lower().encode("latin-1")
        self._twins = _folded(self._name)
        self._networks = Networks(settings.from_)
        self._secret_name = settings.secret_header.lower().encode("latin-1")
        self._secret = secret

    async def identify(self, presented: Presented) -> Caller | None:
        """Return the caller that a trusted peer names. Raises Refusal `unidentified` for a contradictory field."""
        if presented.credential is not None or not self._is_trusted(presented):
            return None
        lines = [(name, value) for name, value in presented.request.headers if _folded(name) == self._twins]
        if not lines:
            return None
        if len(lines) > 1 or lines[0][0] != self._name:
            # One of them is the client's: a proxy in front that sets the one spelling may pass the other.
            raise Refusal("unidentified", f"{self._name.decode()} comes twice, or in another spelling")
        value = lines[0][1].strip()
        if not value:
            return None
        try:
            subject = value.decode("utf-8")
        except UnicodeDecodeError:
            subject = ""
        if not is_plain_name(subject):
            raise Refusal("unidentified", f"{self._name.decode()} is no plain text of 1 to 255 characters")
        return Caller(f"header::{subject}", "header", DEFAULT_PLAN, ambient=True)

    def carried(self, request: Request) -> Collection[str]:
        """Return nothing: what this source knows by, it is asked about."""
        return ()

    async def close(self) -> None:
        """Hold nothing open."""

    def _is_trusted(self, presented: Presented) -> bool:
        request = presented.request
        if not self._networks.holds(address_of(request.peer)):
            return False
        if not self._secret_name:
            return True
        lines = values(request.headers, self._secret_name)
        expected = b"" if self._secret is None else self._secret.reveal().encode()
        return len(lines) == 1 and expected != b"" and hmac.compare_digest(lines[0], expected)


def _folded(name: bytes) -> bytes:
    """Return what a name becomes where `-` and `_` are the same, as in CGI variables."""
    return name.replace(b"_", b"-")
