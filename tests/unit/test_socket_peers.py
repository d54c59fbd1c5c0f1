"""How many connections one address, and all of them, may hold."""

from __future__ import annotations

import logging
import resource

import pytest

from fal_proxy.downstream.peers import (
    MAX_PER_PEER,
    RESERVED_FILES,
    Peers,
    Place,
    connections_that_files_allow,
)

MANY = 100_000


def _fill(peers: Peers, peer: str, count: int = MAX_PER_PEER) -> list[Place]:
    places = [peers.enter(peer) for _ in range(count)]
    assert None not in places
    return [place for place in places if place is not None]


SAME = [
    ("203.0.113.9", "203.0.113.9", "one address"),
    ("203.0.113.9", "::ffff:203.0.113.9", "the same address, mapped into IPv6"),
    ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "one /64"),
    ("fe80::1%eth0", "fe80::2%eth0", "one /64 of a link"),
]


@pytest.mark.parametrize(("first", "second", "reason"), SAME)
def test_addresses_of_one_holder_share_their_places(first: str, second: str, reason: str) -> None:
    peers = Peers(max_connections=MANY)
    _fill(peers, first)
    assert peers.enter(second) is None, reason


DIFFERENT = [
    ("203.0.113.9", "203.0.113.10", "another address"),
    ("2001:db8:1:2::1", "2001:db8:1:3::1", "another /64"),
]


@pytest.mark.parametrize(("first", "second", "reason"), DIFFERENT)
def test_full_address_takes_no_place_from_others(first: str, second: str, reason: str) -> None:
    peers = Peers(max_connections=MANY)
    _fill(peers, first)
    assert peers.enter(second) is not None, reason


@pytest.mark.parametrize("peer", ["10.0.0.1", None], ids=["a trusted proxy", "a local socket"])
def test_who_brings_many_callers_is_not_counted_by_address(peer: str | None) -> None:
    peers = Peers(["10.0.0.0/8"], max_connections=MANY)
    assert all(peers.enter(peer) for _ in range(MAX_PER_PEER + 1))


def test_all_together_are_bounded_trusted_or_not() -> None:
    peers = Peers(["10.0.0.0/8"], max_connections=3)
    assert [peers.enter(peer) is not None for peer in ("10.0.0.1", "10.0.0.1", None, "203.0.113.9")] == [
        True,
        True,
        True,
        False,
    ]


def test_released_place_is_free_again_and_a_second_release_means_nothing() -> None:
    peers = Peers(max_connections=MANY)
    place, *_ = _fill(peers, "203.0.113.9")
    place.release()
    place.release()
    assert peers.enter("203.0.113.9") is not None
    assert peers.enter("203.0.113.9") is None


def test_flood_of_connections_is_complained_of_once_and_names_the_setting(caplog: pytest.LogCaptureFixture) -> None:
    peers = Peers(max_connections=MANY)
    _fill(peers, "203.0.113.9")
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            peers.enter("203.0.113.9")
    (record,) = caplog.records
    assert "203.0.113.9 holds 512 connections" in record.getMessage()
    assert "server.trusted_proxies" in record.getMessage()


def test_every_caller_leaves_a_file_for_its_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft in (1024, 20_000, 1_048_576):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert 0 < 2 * connections_that_files_allow() + RESERVED_FILES <= soft
