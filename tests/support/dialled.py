"""How tests dial an upstream of theirs over TLS: every name is found there, and their CA is trusted."""

from __future__ import annotations

import socket

from fal_proxy.upstream.dial import Address, Dialer, Origin, tls_context
from support.certificates import trusting
from support.peers import PATIENCE, Upstream

NAME = "fal.test"


def dialer(upstream: Upstream, seconds: float = PATIENCE) -> Dialer:
    """Return a dialer that trusts the tests' CA and finds every name at the upstream."""
    address: Address = (socket.AF_INET, "127.0.0.1", upstream.port)

    async def resolver(host: str, port: int) -> list[Address]:
        return [address]

    return Dialer(seconds, context=trusting(tls_context()), resolver=resolver)


def origin(upstream: Upstream, host: str = NAME) -> Origin:
    """Return the upstream under a name."""
    return Origin("https", host, upstream.port, trusted=True)
