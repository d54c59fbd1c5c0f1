"""Where connections may go: the judgement of addresses, the order of attempts, and the budget for all of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator

import pytest

from fal_proxy.errors import ConnectError, ConnectTimeout
from fal_proxy.upstream.connection import Connection
from fal_proxy.upstream.dial import Address, Dialer, Origin, Route, is_public, resolve
from support.peers import PATIENCE, Peer, Serve

REFUSED = [
    ("private 10/8", "10.0.0.1"),
    ("private 172.16/12", "172.31.255.255"),
    ("private 192.168/16", "192.168.0.1"),
    ("loopback", "127.0.0.1"),
    ("loopback beyond .1", "127.255.0.3"),
    ("link-local, cloud metadata", "169.254.169.254"),
    ("carrier-grade NAT", "100.64.0.1"),
    ("this network", "0.0.0.0"),
    ("benchmarking", "198.18.0.1"),
    ("documentation", "192.0.2.1"),
    ("multicast", "224.0.0.1"),
    ("multicast that Python calls global", "239.1.1.1"),
    ("reserved", "240.0.0.1"),
    ("broadcast", "255.255.255.255"),
    ("IPv6 unspecified", "::"),
    ("IPv6 loopback", "::1"),
    ("IPv4-mapped private", "::ffff:10.0.0.1"),
    ("IPv4-mapped loopback in hex", "::ffff:7f00:1"),
    ("IPv4-compatible loopback", "::127.0.0.1"),
    ("IPv4-translated loopback", "::ffff:0:127.0.0.1"),
    ("NAT64 of a private address", "64:ff9b::10.0.0.1"),
    ("NAT64 of cloud metadata", "64:ff9b::a9fe:a9fe"),
    ("local-use NAT64", "64:ff9b:1::a00:1"),
    ("6to4 of a private address", "2002:a00:1::1"),
    ("Teredo", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
    ("unique local", "fd00::1"),
    ("link-local", "fe80::1"),
    ("link-local with a zone", "fe80::1%eth0"),
    ("site-local", "fec0::1"),
    ("IPv6 multicast", "ff02::1"),
    ("IPv6 global multicast", "ff0e::1"),
    ("IPv6 documentation", "2001:db8::1"),
    ("discard-only", "100::1"),
    ("segment routing", "5f00::1"),
    ("unallocated", "4000::1"),
]
PUBLIC = [
    "1.1.1.1",
    "34.36.0.1",
    "2606:4700:4700::1111",
    "2a00:1450:4001::1",
    "::ffff:1.1.1.1",
    "64:ff9b::1.1.1.1",
    "2002:101:101::1",
]


def names(*addresses: Address) -> Callable[[str, int], Awaitable[list[Address]]]:
    """Return a resolver that knows one answer."""

    async def resolver(host: str, port: int) -> list[Address]:
        return list(addresses)

    return resolver


def v4(host: str, port: int = 443) -> Address:
    """Return an IPv4 address."""
    return (socket.AF_INET, host, port)


class Recording(Dialer):
    """A dialer that opens nothing and remembers what it would have opened."""

    tried: list[str]

    async def _open(self, origin: Origin, address: Address) -> Connection:
        self.tried = [*getattr(self, "tried", []), address[1]]
        raise OSError(111, f"Connect call failed {address}")


async def idle(peer: Peer) -> None:
    """Wait for the other side to leave."""
    await peer.wait_gone()


@pytest.fixture
def black_hole() -> Iterator[Address]:
    """Yield an address where connects neither succeed nor fail."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, socket.socket() as filler:
        filler.connect(listener.getsockname())
        yield v4("127.0.0.1", listener.getsockname()[1])


@pytest.fixture
def refusing() -> Address:
    """Return an address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return v4("127.0.0.1", listener.getsockname()[1])


@pytest.mark.parametrize(("reason", "address"), REFUSED, ids=[row[0] for row in REFUSED])
async def test_an_address_that_is_not_public_is_not_dialled(reason: str, address: str) -> None:
    assert not is_public(address), reason
    dialer = Recording(PATIENCE, resolver=names((socket.AF_UNSPEC, address, 443)))
    with pytest.raises(ConnectError, match="not public") as raised:
        await dialer.connect(Origin("https", "fal.test", 443))
    assert not hasattr(dialer, "tried")
    assert address not in raised.value.detail
    assert not raised.value.written


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_public_in_every_notation(address: str) -> None:
    assert is_public(address)


async def test_of_mixed_addresses_only_the_public_ones_are_tried_in_order() -> None:
    addresses = ["127.0.0.1", "1.1.1.1", "10.0.0.1", "8.8.8.8", "169.254.169.254"]
    dialer = Recording(PATIENCE, resolver=names(*map(v4, addresses)))
    with pytest.raises(ConnectError) as raised:
        await dialer.connect(Origin("https", "fal.test", 443))
    assert dialer.tried == ["1.1.1.1", "8.8.8.8"]
    assert not any(address in raised.value.detail for address in addresses)


async def test_loopback_is_refused_for_fal_and_open_to_the_operators_override(serve: Serve) -> None:
    upstream = serve(idle)
    dialer = Dialer(PATIENCE, resolver=names(v4("127.0.0.1", upstream.port)))
    with pytest.raises(ConnectError):
        await dialer.connect(Origin("http", "fal.test", upstream.port))
    assert upstream.peers == []
    connection = await dialer.connect(Origin("http", "fal.test", upstream.port, trusted=True))
    assert connection.usable
    connection.abort()
    await upstream.left()


async def test_behind_a_refusing_address_the_next_one_is_used(serve: Serve, refusing: Address) -> None:
    upstream = serve(idle)
    dialer = Dialer(PATIENCE, resolver=names(refusing, v4("127.0.0.1", upstream.port)))
    connection = await dialer.connect(Origin("http", "fal.test", 80, trusted=True))
    assert connection.usable
    connection.abort()
    await upstream.left()


async def test_behind_a_black_hole_the_next_address_is_used_within_the_budget(
    serve: Serve, black_hole: Address
) -> None:
    upstream = serve(idle)
    dialer = Dialer(0.3, resolver=names(black_hole, v4("127.0.0.1", upstream.port)))
    connection = await dialer.connect(Origin("http", "fal.test", 80, trusted=True))
    assert connection.usable
    connection.abort()
    await upstream.left()


async def test_black_holes_only_cost_the_whole_budget_and_no_more(black_hole: Address) -> None:
    loop = asyncio.get_running_loop()
    dialer = Dialer(0.2, resolver=names(black_hole, black_hole, black_hole))
    began = loop.time()
    with pytest.raises(ConnectTimeout) as raised:
        await dialer.connect(Origin("http", "fal.test", 80, trusted=True))
    assert 0.15 < loop.time() - began < 0.5
    assert not raised.value.written


async def test_a_name_that_takes_too_long_is_a_connect_timeout() -> None:
    async def resolver(host: str, port: int) -> list[Address]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(ConnectTimeout):
        await Dialer(0.05, resolver=resolver).connect(Origin("https", "fal.test", 443))


async def test_a_refused_connection_is_told_without_its_address(refusing: Address) -> None:
    dialer = Dialer(PATIENCE, resolver=names(refusing))
    with pytest.raises(ConnectError) as raised:
        await dialer.connect(Origin("http", "fal.test", 80, trusted=True))
    assert raised.value.detail == "no connection to fal.test: Connection refused"


UNRESOLVABLE = [
    ("an unknown name", socket.gaierror(socket.EAI_NONAME, "Name or service not known")),
    ("a failing resolver", OSError(5, "Input/output error")),
    ("a label that IDNA cannot encode", UnicodeError("label too long")),
]


@pytest.mark.parametrize(("reason", "error"), UNRESOLVABLE, ids=[row[0] for row in UNRESOLVABLE])
async def test_a_name_that_cannot_be_resolved_is_a_connect_error(reason: str, error: Exception) -> None:
    async def resolver(host: str, port: int) -> list[Address]:
        raise error

    with pytest.raises(ConnectError, match=r"fal\.test cannot be resolved") as raised:
        await Dialer(PATIENCE, resolver=resolver).connect(Origin("https", "fal.test", 443))
    assert not raised.value.written, reason


async def test_a_name_without_addresses_is_a_connect_error() -> None:
    with pytest.raises(ConnectError, match="no address"):
        await Dialer(PATIENCE, resolver=names()).connect(Origin("https", "fal.test", 443))


async def test_the_systems_resolver_knows_localhost_and_refuses_an_impossible_name() -> None:
    assert v4("127.0.0.1", 80) in await resolve("localhost", 80)
    with pytest.raises(ConnectError):
        await Dialer(PATIENCE).connect(Origin("https", "a" * 64 + ".test", 443))


@pytest.mark.parametrize(
    ("origin", "authority"),
    [
        (Origin("https", "queue.fal.run", 443), b"queue.fal.run"),
        (Origin("http", "queue.fal.run", 80), b"queue.fal.run"),
        (Origin("http", "queue.fal.run", 443), b"queue.fal.run:443"),
        (Origin("https", "::1", 8443), b"[::1]:8443"),
    ],
)
def test_the_host_field_names_the_port_only_when_it_is_not_the_default(origin: Origin, authority: bytes) -> None:
    assert origin.authority == authority


def test_without_an_override_a_host_is_reached_by_tls_and_judged() -> None:
    assert Route().to(b"fal.run", b"/a?b") == (Origin("https", "fal.run", 443, trusted=False), b"/a?b")


@pytest.mark.parametrize(
    ("override", "origin", "target"),
    [
        ("http://127.0.0.1:9", Origin("http", "127.0.0.1", 9, trusted=True), b"/fal.run/a?b"),
        ("https://up.test/base/", Origin("https", "up.test", 443, trusted=True), b"/base/fal.run/a?b"),
        ("http://up.test", Origin("http", "up.test", 80, trusted=True), b"/fal.run/a?b"),
    ],
)
def test_an_override_holds_every_host_below_its_base(override: str, origin: Origin, target: bytes) -> None:
    assert Route(override).to(b"fal.run", b"/a?b") == (origin, target)


@pytest.mark.parametrize("override", ["up.test", "ftp://up.test", "http://", "http://up.test?x", "http://up.test#x"])
def test_an_override_that_is_no_base_url_is_refused(override: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        Route(override)
