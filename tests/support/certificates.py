"""Certificates of a CA that exists only while the tests run: good ones, and each kind that must be refused."""

from __future__ import annotations

import functools
import ssl
from datetime import UTC, datetime

import trustme


@functools.cache
def authority() -> trustme.CA:
    """Return the CA that the tests' clients trust."""
    return trustme.CA()


@functools.cache
def stranger() -> trustme.CA:
    """Return a CA that nobody trusts."""
    return trustme.CA()


def server_context(
    *names: str, ca: trustme.CA | None = None, expired: bool = False, tls12: bool = False
) -> ssl.SSLContext:
    """Return the TLS side of a server that shows a certificate for `names`."""
    not_after = datetime(2001, 1, 1, tzinfo=UTC) if expired else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (ca or authority()).issue_cert(*names, not_after=not_after).configure_cert(context)
    if tls12:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def trusting(context: ssl.SSLContext) -> ssl.SSLContext:
    """Add the tests' CA to what a client trusts."""
    authority().configure_trust(context)
    return context
