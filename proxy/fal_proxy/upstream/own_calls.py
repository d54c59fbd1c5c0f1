"""Calls of our own, to services that the operator names and to fal's platform API: small questions with small answers,
soon or not at all.

A general HTTP client with its habits switched off: no proxy variables or netrc, no cookies kept, no redirects, no
decompression. It sees a fal key only where `platform_api` asks with one, and nothing of it is ever relayed: that is the
engine's.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2

from fal_proxy._version import __version__
from fal_proxy.errors import FalProxyError
from fal_proxy.upstream.dial import tls_context

_OURS = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": f"fal-proxy/{__version__}",
}


# The system's roots are a megabyte and 20 ms: one for all purposes, however often settings make new clients.
_context = cache(tls_context)


class OwnCallError(FalProxyError):
    """No usable answer; the text says why and holds nothing that was sent or received."""


class OwnAnswer(NamedTuple):
    """One whole answer."""

    status: int
    body: bytes
    date: str = ""  # the field of that name: what their clock says


class OwnCalls:
    """One client for one purpose, so that two purposes share neither connections nor limits."""

    def __init__(self, *, seconds: float, max_bytes: int, connections: int) -> None:
        """Take the time for a whole call, the largest answer and the number of connections at once."""
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._client = httpx2.AsyncClient(
            headers=_OURS,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # one caller's cookie is never another's
            timeout=seconds,
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            verify=_context(),
            trust_env=False,
            follow_redirects=False,
        )

    async def get(self, url: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> OwnAnswer:
        """Return the answer to one GET. Raises OwnCallError; no status is an error, but only a 200 needs its body."""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._get(url, headers)
        except TimeoutError:
            raise OwnCallError(f"no answer within {self._seconds:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise OwnCallError(f"no answer: {type(error).__name__}") from error

    async def _get(self, url: str, headers: Sequence[tuple[bytes, bytes]]) -> OwnAnswer:
        async with self._client.stream("GET", url, headers=list(headers)) as response:
            body, date = bytearray(), response.headers.get("date", "")
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > self._max_bytes:
                    if response.status_code != 200:
                        return OwnAnswer(response.status_code, b"", date)
                    raise OwnCallError(f"the answer exceeds {self._max_bytes} bytes")
            return OwnAnswer(response.status_code, bytes(body), date)

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()


def is_askable(url: str) -> bool:
    """Say whether a URL is https, or http that does not leave this machine: nothing else may carry keys or proofs."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and not any(char in url for char in ' \\"<>#')
    if not host or not plain or "@" in parts.netloc:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
