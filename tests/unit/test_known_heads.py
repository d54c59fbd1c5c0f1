"""Which heads are remembered, and for how long."""

from __future__ import annotations

from fal_proxy.downstream.known_heads import MOST_BYTES, MOST_FIELDS, KnownHeads


def _heads() -> tuple[KnownHeads, list[bytes]]:
    return KnownHeads(), [b"GET /%d HTTP/1.1\r\n\r\n" % number for number in range(3000)]


async def test_no_more_than_so_many_heads_are_kept_and_those_that_come_again_stay() -> None:
    known, heads = _heads()
    for head in heads:
        known.keep(head, object())  # type: ignore[arg-type] # whatever is known of them
        known.find(heads[0])
    assert len(known) <= 1024
    assert known.find(heads[0]) is not None
    assert known.find(heads[1]) is None
    assert known.find(heads[-1]) is not None


async def test_a_head_that_does_not_come_again_is_forgotten() -> None:
    known, heads = _heads()
    for head in heads[:2]:
        known.keep(head, object())  # type: ignore[arg-type]
    known.age()
    assert known.find(heads[0]) is not None
    known.age()
    assert known.find(heads[1]) is None
    assert known.find(heads[0]) is not None
    known.age()
    known.age()
    assert len(known) == 0


async def test_a_large_head_is_not_kept() -> None:
    known, _ = _heads()
    known.keep(b"a" * (MOST_BYTES + 1), object())  # type: ignore[arg-type]
    known.keep(b"a:b\r\n" * MOST_FIELDS + b"\r\n", object())  # type: ignore[arg-type]
    assert len(known) == 0
