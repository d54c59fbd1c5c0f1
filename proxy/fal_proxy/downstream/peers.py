"""How many connections there may be: from one address, and in all. Refuses to know what they carry."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import resource
import time
from collections.abc import Callable, Sequence

from fal_proxy.identity.network import TrustedProxies, address_of

MAX_PER_PEER = 512  # an IPv4 address or an IPv6 /64
RESERVED_FILES = 256  # for listeners, logs, the journal, the store and our own questions
COMPLAINT_SECONDS = 60.0

_log = logging.getLogger("fal_proxy")


class Place:
    """One connection's place; give it back once with `release`."""

    __slots__ = ("_key", "_peers")

    def __init__(self, peers: Peers, key: str | None) -> None:
        self._peers: Peers | None = peers
        self._key = key

    def release(self) -> None:
        """Give the place back; a second time means nothing."""
        if self._peers is not None:
            self._peers._leave(self._key)
            self._peers = None


class Peers:
    """The connections of one server, counted by address."""

    def __init__(
        self,
        trusted_proxies: Sequence[str] = (),
        max_connections: int | None = None,
        *,
        trusts: Callable[[str], bool] | None = None,
    ) -> None:
        """Take `server.trusted_proxies`, from which many callers come, or what says at any time which they are.

        Without `max_connections` there may be as many as files allow.
        """
        self._trusts = trusts or TrustedProxies(trusted_proxies).trusts
        self._max_connections = connections_that_files_allow() if max_connections is None else max_connections
        self._by_key: dict[str, int] = {}
        self._total = 0
        self._complained_at = float("-inf")

    def enter(self, peer: str | None) -> Place | None:
        """Return a place for a connection from `peer` (None: a local socket), None when there is none left."""
        if self._total >= self._max_connections:
            self._complain(f"there are {self._total} connections, as many as files allow (ulimit -n)")
            return None
        key = self._key_of(peer)
        if key is not None:
            held = self._by_key.get(key, 0)
            if held >= MAX_PER_PEER:
                self._complain(
                    f"{key} holds {held} connections; a proxy in front of this one belongs in server.trusted_proxies"
                )
                return None
            self._by_key[key] = held + 1
        self._total += 1
        return Place(self, key)

    def _leave(self, key: str | None) -> None:
        self._total -= 1
        if key is not None:
            held = self._by_key[key] - 1
            if held:
                self._by_key[key] = held
            else:
                del self._by_key[key]

    def _key_of(self, peer: str | None) -> str | None:
        """Return what an address is counted under, None for one that is not counted."""
        address = address_of(peer) if peer else None
        if peer is None or address is None or self._trusts(peer):
            return None
        if address.version == 4:
            return str(address)
        return str(ipaddress.ip_network((address, 64), strict=False))

    def _complain(self, why: str) -> None:
        """Say so, but not for every connection of a flood."""
        now = time.monotonic()
        if now - self._complained_at >= COMPLAINT_SECONDS:
            self._complained_at = now
            _log.warning("connections are refused: %s", why)


def raise_file_limit() -> None:
    """Let this process open as many files as it may, where the system agrees."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_that_files_allow() -> int:
    """Return how many callers there may be so that each of them can have a connection to upstream too."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1_000_000
    return max((soft - RESERVED_FILES) // 2, soft // 8)
