"""From an origin to an open, judged connection.

The address is judged where the socket opens, not where the name is looked at: a name that resolved to a public
address a moment ago may resolve to loopback now. Private, loopback, link-local, CGNAT and all other special-purpose
addresses are refused unless the operator's own upstream override names the origin. TLS is verified against the name,
never against the address. Nothing here reads proxy variables or netrc.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from fal_proxy.errors import ConnectError, ConnectTimeout
from fal_proxy.settings import origin_of
from fal_proxy.upstream.connection import Connection

Address = tuple[socket.AddressFamily, str, int]

_BASE_PATH = re.compile(r"[A-Za-z0-9\-._~/]*")
_NAME = re.compile(rb"[a-z0-9.\-]+")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_UNICAST = ipaddress.ip_network("2000::/3")  # all that IANA allocates; Python calls much beyond it global


class Origin(NamedTuple):
    """One place to connect to; equal origins share connections. `trusted` waives the address judgement."""

    scheme: str
    host: str
    port: int
    trusted: bool = False

    @property
    def authority(self) -> bytes:
        """Return the Host field for this origin."""
        return _authority(self)


@lru_cache(maxsize=256)
def _authority(origin: Origin) -> bytes:
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    default = 443 if origin.scheme == "https" else 80
    return host.encode() if origin.port == default else f"{host}:{origin.port}".encode()


class Route:
    """Where `https://<host>/<path>` is reached: at the host itself, or below the operator's override."""

    def __init__(self, override: str | None = None) -> None:
        """Take `override` as `http[s]://host[:port][/base]`; raise ValueError when it is not one."""
        self._base: tuple[Origin, bytes] | None = None
        if override:
            parts = urlsplit(override)
            plain = _BASE_PATH.fullmatch(parts.path) and not (parts.query or parts.fragment)
            if origin_of(f"{parts.scheme}://{parts.netloc}") is None or not plain:
                raise ValueError("must be http[s]://host[:port][/base]")
            port = parts.port or (443 if parts.scheme == "https" else 80)
            self._base = (
                Origin(parts.scheme, parts.hostname or "", port, trusted=True),
                parts.path.rstrip("/").encode(),
            )

    def to(self, host: bytes, path_and_query: bytes) -> tuple[Origin, bytes]:
        """Return the origin to dial and the request target to send there."""
        if self._base is None:
            return Origin("https", host.decode(), 443), path_and_query
        origin, base = self._base
        return origin, base + b"/" + host + path_and_query

    def address(self, host: bytes, path_and_query: bytes) -> bytes:
        """Return the URL under which this deployment's fal serves `https://<host>/<path>`."""
        origin, target = self.to(host, path_and_query)
        return origin.scheme.encode() + b"://" + origin.authority + target

    def back(self, url: bytes) -> tuple[bytes, bytes] | None:
        """Return host, path and query of a URL that fal gave out: at its host, or below the override."""
        rest = url.removeprefix(b"https://") if url.startswith(b"https://") else b""
        if self._base is not None:
            origin, base = self._base
            prefix = origin.scheme.encode() + b"://" + origin.authority + base + b"/"
            rest = url.removeprefix(prefix) if url.startswith(prefix) else rest
        host, slash, path = rest.partition(b"/")
        return (host, slash + path) if slash and _NAME.fullmatch(host) else None


def is_public(address: str) -> bool:
    """Say whether an address belongs to the public internet, seen through IPv4-in-IPv6 forms."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = (
            ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
        )
        if inner is not None:
            return is_public(str(inner))
        if ip.teredo is not None or ip not in _UNICAST:
            return False
    return ip.is_global and not ip.is_multicast


def tls_context() -> ssl.SSLContext:
    """Return the verifying context of every upstream connection: system roots, TLS 1.2 or newer, HTTP/1.1 only."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


async def resolve(host: str, port: int) -> list[Address]:
    """Return the addresses of a name in the system's order of preference. Raises OSError."""
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address[0], address[1]) for family, _, _, _, address in infos if isinstance(address[0], str)]


class Dialer:
    """Open connections within a time budget, one judged address after the other."""

    def __init__(
        self,
        connect_seconds: float,
        *,
        context: ssl.SSLContext | None = None,
        resolver: Callable[[str, int], Awaitable[list[Address]]] = resolve,
    ) -> None:
        """Take `context` in place of the system's trust roots, and `resolver` in place of the system's names."""
        self.connect_seconds = connect_seconds  # of what is dialled from now on
        self._context = context
        self._resolve = resolver

    async def connect(self, origin: Origin) -> Connection:
        """Return an open connection. Raises ConnectError or ConnectTimeout; leaves no socket behind."""
        try:
            async with asyncio.timeout(self.connect_seconds):
                return await self._connect(origin)
        except TimeoutError:
            raise ConnectTimeout(f"no connection to {origin.host} within {self.connect_seconds:g} s") from None

    async def _connect(self, origin: Origin) -> Connection:
        try:
            addresses = await self._resolve(origin.host, origin.port)
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that IDNA cannot encode
            raise ConnectError(f"{origin.host} cannot be resolved: {_reason(error)}") from error
        allowed = [address for address in addresses if origin.trusted or is_public(address[1])]
        if addresses and not allowed:
            raise ConnectError(f"{origin.host} resolves to an address that is not public")
        failure: Exception = OSError("no address")
        for position, address in enumerate(allowed):
            try:
                # Leave time for the addresses behind a black hole.
                async with asyncio.timeout(self.connect_seconds / (len(allowed) - position)):
                    return await self._open(origin, address)
            except ssl.SSLCertVerificationError as error:
                raise ConnectError(f"TLS to {origin.host} failed: {error.verify_message}") from error
            except (OSError, TimeoutError) as error:
                failure = error
        if isinstance(failure, TimeoutError):
            raise ConnectTimeout(f"no connection to {origin.host} within {self.connect_seconds:g} s") from failure
        raise ConnectError(f"no connection to {origin.host}: {_reason(failure)}") from failure

    async def _open(self, origin: Origin, address: Address) -> Connection:
        family, host, port = address
        loop = asyncio.get_running_loop()
        if origin.scheme == "https" and self._context is None:
            self._context = await loop.run_in_executor(None, tls_context)
        secure = origin.scheme == "https"
        connection = Connection()
        try:
            await loop.create_connection(
                lambda: connection,
                host,
                port,
                family=family,
                ssl=self._context if secure else None,
                server_hostname=origin.host if secure else None,
            )
        except BaseException:
            connection.abort()
            raise
        return connection


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or 'handshake'}"
    if isinstance(error, socket.gaierror):
        return error.strerror or "unknown name"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)  # the loops' own texts hold the address
    return str(error) or type(error).__name__
