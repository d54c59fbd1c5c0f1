"""Which address a request came from, and which network that makes. Believes forwarding fields of trusted hops only."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from fal_proxy.headers import Headers, values

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class Networks:
    """Addresses and networks that the operator lists."""

    def __init__(self, networks: Sequence[str]) -> None:
        """Parse addresses and networks; raise ValueError for what is neither."""
        self._networks: list[IPNetwork] = [ipaddress.ip_network(network, strict=False) for network in networks]

    def holds(self, address: IPAddress | None) -> bool:
        """Say whether an address is listed; a local socket has none."""
        return address is not None and any(
            address.version == network.version and address in network for network in self._networks
        )


class TrustedProxies:
    """The hops in front of us whose X-Forwarded-For we believe, counted from the right."""

    def __init__(self, networks: Sequence[str]) -> None:
        """Parse addresses and networks; raise ValueError for what is neither."""
        self._networks = Networks(networks)

    def client_network(self, peer: str, headers: Headers) -> str:
        """Return the caller's network, /32 or /64, as text; "local" for a local socket."""
        address = self._client_address(peer, headers)
        if address is None:
            return "local"
        bits = 32 if address.version == 4 else 64
        return str(ipaddress.ip_network((address, bits), strict=False))

    def trusts(self, peer: str) -> bool:
        """Say whether the socket's other end is one of these hops."""
        return self._networks.holds(address_of(peer))

    def _client_address(self, peer: str, headers: Headers) -> IPAddress | None:
        address = address_of(peer)
        hops = [hop for line in values(headers, b"x-forwarded-for") for hop in line.split(b",")]
        while self._networks.holds(address) and hops:
            hop = address_of(hops.pop().decode("latin-1"))
            if hop is None:
                break
            address = hop
        return address


def address_of(text: str) -> IPAddress | None:
    """Return an address as sockets and proxies write it: with a zone, a port, brackets, as IPv4 inside IPv6."""
    text = text.strip().partition("%")[0]
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
