"""Event streams on their way down: characters stay whole, bytes stay the same, little is held back."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fal_proxy.relay.events import WholeCharacters


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut data at the given places, in order, each taken modulo the length."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


PLACES = st.lists(st.integers(min_value=0, max_value=10_000))
# Characters of every length in UTF-8, often enough beside each other.
TEXT = st.text(st.one_of(st.sampled_from("aé€😀\u07ff\u0800\uffff\U00010000\U0010ffff"), st.characters(codec="utf-8")))


@given(TEXT, PLACES)
def test_text_cut_anywhere_comes_out_in_pieces_that_each_decode(text: str, places: list[int]) -> None:
    characters = WholeCharacters()
    pieces = [characters.feed(piece) for piece in cut(text.encode(), places)]
    assert "".join(piece.decode() for piece in pieces) == text
    assert characters.rest() == b"", "a whole text leaves nothing behind"


@given(st.binary(), PLACES)
def test_arbitrary_bytes_come_out_as_they_went_in(data: bytes, places: list[int]) -> None:
    characters = WholeCharacters()
    passed = b"".join(characters.feed(piece) for piece in cut(data, places))
    assert passed + characters.rest() == data


@given(st.binary(), PLACES)
def test_never_more_than_three_bytes_are_held_back(data: bytes, places: list[int]) -> None:
    characters = WholeCharacters()
    fed = passed = 0
    for piece in cut(data, places):
        fed += len(piece)
        passed += len(characters.feed(piece))
        assert 0 <= fed - passed <= 3


HELD = [
    (b"data: a\n\n", b"", "ASCII is always whole"),
    (b"\xc3", b"\xc3", "the first of two"),
    (b"x\xe2\x82", b"\xe2\x82", "two of three"),
    (b"\xf0\x9f\x98", b"\xf0\x9f\x98", "three of four"),
    ("é".encode(), b"", "a whole character"),
    (b"\x80\x80\x80\x80", b"", "continuations that continue nothing"),
    (b"\xff", b"", "a byte that begins nothing"),
    (b"\xf8", b"", "a length that UTF-8 does not have"),
    (b"\xc3\xa9\x80", b"", "one continuation too many"),
    (b"\xc3\n", b"", "broken off by upstream itself"),
]


@pytest.mark.parametrize(("data", "held", "reason"), HELD)
def test_only_the_beginning_of_a_character_is_held_back(data: bytes, held: bytes, reason: str) -> None:
    characters = WholeCharacters()
    assert characters.feed(data) == data[: len(data) - len(held)], reason
    assert characters.rest() == held
    assert characters.rest() == b"", "and it is given out once"


def test_held_bytes_come_with_the_rest_of_their_character() -> None:
    characters = WholeCharacters()
    assert [characters.feed(bytes([byte])) for byte in "€!".encode()] == [b"", b"", "€".encode(), b"!"]
