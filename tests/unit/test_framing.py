"""Where a head ends, however it is cut into packets, and where its body will."""

from __future__ import annotations

import itertools

import pytest

from fal_proxy.downstream.framing import MAX_HEAD_BYTES, Head, body_bytes

HEAD = b"POST /x HTTP/1.1\r\nHost: a\r\n\r\n"
BEHIND = b"{}GET / HTTP/1.1\r\n\r\n"


def _head_of(size: int) -> bytes:
    return b"GET / HTTP/1.1\r\nx: " + b"a" * (size - 23) + b"\r\n\r\n"


@pytest.mark.parametrize("packet", range(1, len(HEAD) + 3))
def test_head_ends_at_its_empty_line_whatever_the_packets(packet: int) -> None:
    head, taken = Head(), 0
    stream = HEAD + BEHIND
    for start in range(0, len(stream), packet):
        data = stream[start : start + packet]
        if size := head.take(data):
            taken = start + size
            break
    assert taken == len(HEAD)
    assert head.raw.startswith(HEAD)
    assert not head.begun


def test_head_of_exactly_the_cap_is_taken_and_one_byte_more_is_not() -> None:
    for packet in (1 << 20, 1000, MAX_HEAD_BYTES - 1):
        for size, fits in ((MAX_HEAD_BYTES, True), (MAX_HEAD_BYTES + 1, False)):
            head = Head()
            whole = _head_of(size)
            assert len(whole) == size
            packets = [whole[start : start + packet] for start in range(0, size, packet)]
            done = next((True for data in packets if head.take(data)), False)
            assert (done, head.full) == (fits, not fits)


def test_what_is_kept_of_an_endless_head_is_bounded() -> None:
    head = Head()
    assert head.take(b"a" * 100_000_000) == 0
    assert head.full
    assert len(head._collected) == MAX_HEAD_BYTES


LINES = [
    (b"POST /x HTTP/1.1\r\n", True, "plain"),
    (b"\r\nPOST /x HTTP/1.1\r\n", True, "one empty line before it"),
    (b"\r\n\r\nPOST /x HTTP/1.1\r\n", False, "two of them"),
    (b"\nPOST /x HTTP/1.1\r\n", False, "a bare LF before it"),
    (b"POST  /x HTTP/1.1\r\n", False, "two spaces"),
    (b"POST /x  HTTP/1.1\r\n", False, "two spaces behind the target"),
    (b"POST /x HTTP/1.1 \r\n", False, "a space at the end"),
    (b"POST /x RTSP/1.1\r\n", False, "another protocol that the parser knows"),
    (b"POST /x HTTP/1.1\n", False, "a bare LF"),
]


@pytest.mark.parametrize(("line", "same", "reason"), LINES)
def test_request_line_is_the_parsers_parts_and_nothing_else(line: bytes, same: bool, reason: str) -> None:
    head = Head()
    head.take(line + b"Host: a\r\n\r\n")
    assert head.begins_with(b"POST", b"/x", b"1.1") is same, reason


LENGTH, CODING = b"content-length", b"transfer-encoding"
CLEAR = [
    ([], 0, "neither"),
    ([(LENGTH, b"0")], 0, "none"),
    ([(LENGTH, b"12")], 12, "a length"),
    ([(CODING, b"chunked")], None, "chunks"),
    ([(CODING, b"CHUNKED")], None, "coding names have no case"),
]


@pytest.mark.parametrize(("fields", "length", "reason"), CLEAR)
def test_body_ends_where_its_one_framing_field_says(
    fields: list[tuple[bytes, bytes]], length: int | None, reason: str
) -> None:
    assert body_bytes(fields, "1.1") == length, reason


UNCLEAR = [
    *itertools.permutations([(LENGTH, b"2"), (CODING, b"chunked")]),
    [(LENGTH, b"2"), (LENGTH, b"2")],
    [(CODING, b"chunked"), (CODING, b"chunked")],
    *[[(CODING, value)] for value in (b"gzip, chunked", b"identity", b"chunked,", b"", b'"chunked"', b"\x0bchunked")],
    *[[(LENGTH, value)] for value in (b"", b"+1", b"-1", b"1 1", b"0x2", b"1_0", b"\xd9\xa2", b"2,2", b"1" * 19)],
]


@pytest.mark.parametrize("fields", UNCLEAR)
def test_unclear_end_of_a_body_is_refused(fields: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(ValueError, match=r"field|number|coding"):
        body_bytes(list(fields), "1.1")


def test_chunks_mean_nothing_in_http_1_0() -> None:
    with pytest.raises(ValueError, match="coding"):
        body_bytes([(CODING, b"chunked")], "1.0")
