"""The parser of answers: what HTTP/1.1 forbids is refused, whatever it allows is read the same however it is split."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fal_proxy.errors import UpstreamInvalid
from fal_proxy.upstream.answer import MAX_FRAMING_BYTES, MAX_HEAD_BYTES, Answer
from support.answers import EDITS, Made, answers, edited

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


def length(value: bytes) -> bytes:
    """Return an answer of five bytes whose Content-Length is written in some way."""
    return OK + b"content-length: " + value + b"\r\n\r\n12345"


def coding(value: bytes) -> bytes:
    """Return a chunked answer whose Transfer-Encoding is written in some way."""
    return OK + b"transfer-encoding: " + value + b"\r\n\r\n1\r\na\r\n0\r\n\r\n"


INVALID = [
    ("two lengths", length(b"5\r\ncontent-length: 6")),
    ("the same length twice", length(b"5\r\ncontent-length: 5")),
    ("a list of lengths", length(b"5, 5")),
    ("a signed length", length(b"+5")),
    ("a negative length", length(b"-5")),
    ("a length with a space inside", length(b"1 5")),
    ("a hexadecimal length", length(b"0x5")),
    ("a length with a letter", length(b"5a")),
    ("an empty length", length(b"")),
    ("a length beyond 64 bits", length(b"9" * 30)),
    ("length and chunked", length(b"5\r\ntransfer-encoding: chunked")),
    ("chunked and length", coding(b"chunked\r\ncontent-length: 5")),
    ("gzip, then chunked", coding(b"gzip, chunked")),
    ("gzip and chunked on two lines", coding(b"gzip\r\ntransfer-encoding: chunked")),
    ("chunked twice", coding(b"chunked, chunked")),
    ("chunked on two lines", coding(b"chunked\r\ntransfer-encoding: chunked")),
    ("identity", coding(b"identity")),
    ("chunked with a parameter", coding(b"chunked;q=1")),
    ("almost chunked", coding(b"xchunked")),
    ("chunked behind a control character", coding(b"\x0bchunked")),
    ("an empty coding", coding(b"")),
    ("chunked on HTTP/1.0", coding(b"chunked").replace(b"1.1", b"1.0")),
    ("a bare LF after the status line", b"HTTP/1.1 200 OK\ncontent-length: 0\r\n\r\n"),
    ("a bare LF after a field", OK + b"content-length: 0\n\r\n"),
    ("a bare LF at the end of the head", OK + b"content-length: 0\r\n\n"),
    ("a bare CR in a field", OK + b"x: a\rb\r\n\r\n"),
    ("a space before the colon", OK + b"content-length : 0\r\n\r\n"),
    ("a space before the name", OK + b" content-length: 0\r\n\r\n"),
    ("a folded field", OK + b"x: a\r\n b\r\ncontent-length: 0\r\n\r\n"),
    ("a field without a colon", OK + b"content-length\r\n\r\n"),
    ("a field without a name", OK + b": x\r\n\r\n"),
    ("NUL in a value", OK + b"x: a\0b\r\n\r\n"),
    ("NUL in a name", OK + b"x\0y: a\r\n\r\n"),
    ("HTTP/2.0", b"HTTP/2.0 200 OK\r\n\r\n"),
    ("HTTP/0.9", b"HTTP/0.9 200 OK\r\n\r\n"),
    ("HTTP/1.2", b"HTTP/1.2 200 OK\r\n\r\n"),
    ("a lower-case protocol", b"http/1.1 200 OK\r\n\r\n"),
    ("status 099", b"HTTP/1.1 099 X\r\n\r\n"),
    ("status 600", b"HTTP/1.1 600 X\r\n\r\n"),
    ("status 1000", b"HTTP/1.1 1000 X\r\n\r\n"),
    ("status of two digits", b"HTTP/1.1 20 X\r\n\r\n"),
    ("a signed status", b"HTTP/1.1 +200 X\r\n\r\n"),
    ("two spaces before the status", b"HTTP/1.1  200 OK\r\n\r\n"),
    ("101", b"HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"),
    ("101 without an upgrade", b"HTTP/1.1 101 S\r\n\r\n"),
    ("a request", b"GET / HTTP/1.1\r\n\r\n"),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00"),
    ("HTML", b"<html>hello</html>"),
    ("a chunk size with a sign", CHUNKED + b"+1\r\na\r\n"),
    ("a chunk size with 0x", CHUNKED + b"0x1\r\na\r\n"),
    ("a chunk size with a space", CHUNKED + b"1 \r\na\r\n"),
    ("an empty chunk size", CHUNKED + b"\r\na\r\n"),
    ("a chunk size beyond 64 bits", CHUNKED + b"f" * 17 + b"\r\na\r\n"),
    ("a bare LF after a chunk size", CHUNKED + b"1\na\r\n"),
    ("a bare LF in a chunk extension", CHUNKED + b"1;x\ny\r\na\r\n"),
    ("a bare LF after a chunk", CHUNKED + b"1\r\na\n0\r\n\r\n"),
    ("a chunk longer than its size", CHUNKED + b"1\r\nab\r\n0\r\n\r\n"),
    ("a trailer without a colon", CHUNKED + b"0\r\nbad\r\n\r\n"),
    ("a trailer that changes the framing", CHUNKED + b"0\r\ncontent-length: 5\r\n\r\n"),
]

ACCEPTED = [
    ("blanks around a length are no part of it", length(b" \t5 "), b"12345"),
    ("codings are case-insensitive", coding(b"Chunked"), b"a"),
    ("a reason phrase is optional", b"HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", b""),
    ("empty lines before the status line are skipped", b"\r\n\r\n" + length(b"5"), b"12345"),
    ("an interim answer may be of any unknown kind", b"HTTP/1.1 150 X\r\n\r\n" + length(b"5"), b"12345"),
    ("a chunk size may have leading zeros", CHUNKED + b"0001\r\na\r\n000\r\n\r\n", b"a"),
    ("llhttp knows two more protocol names of the same form", b"ICE/1.0 200 OK\r\ncontent-length: 1\r\n\r\na", b"a"),
]


@pytest.mark.parametrize("split", [False, True], ids=["at-once", "byte-by-byte"])
@pytest.mark.parametrize(("reason", "wire"), INVALID, ids=[row[0] for row in INVALID])
def test_what_breaks_http_is_refused(reason: str, wire: bytes, split: bool) -> None:
    answer = Answer(b"GET")
    with pytest.raises(UpstreamInvalid) as raised:
        feed(answer, wire, range(1, len(wire)) if split else [])
    assert raised.value.written, reason
    assert raised.value.detail


@pytest.mark.parametrize(("reason", "wire", "body"), ACCEPTED, ids=[row[0] for row in ACCEPTED])
def test_what_is_lenient_is_lenient_on_purpose(reason: str, wire: bytes, body: bytes) -> None:
    answer = Answer(b"GET")
    answer.feed(wire)
    assert answer.done, reason
    assert answer.take() == body


def test_content_of_an_interim_answer_is_dropped_with_the_connection() -> None:
    answer = Answer(b"GET")
    answer.feed(b"HTTP/1.1 150 X\r\ncontent-length: 4\r\n\r\nevil" + length(b"5"))
    assert answer.take() == b"12345"
    assert answer.done
    assert not answer.reusable


def test_trailers_are_no_header_fields() -> None:
    answer = Answer(b"GET")
    answer.feed(CHUNKED + b"1\r\na\r\n0\r\nx-late: 1\r\n\r\n")
    assert answer.head is not None
    assert answer.head.headers == [(b"transfer-encoding", b"chunked")]


def test_a_head_may_be_as_large_as_the_limit_and_no_larger() -> None:
    for size, fits in ((MAX_HEAD_BYTES - 100, True), (MAX_HEAD_BYTES + 1, False)):
        for step in (1 << 20, 1000):
            wire = OK + b"x: " + b"a" * size + b"\r\ncontent-length: 0\r\n\r\n"
            answer = Answer(b"GET")
            if fits:
                feed(answer, wire, range(step, len(wire), step))
                assert answer.done
            else:
                with pytest.raises(UpstreamInvalid):
                    feed(answer, wire, range(step, len(wire), step))


def test_a_large_body_of_small_chunks_is_no_framing_flood() -> None:
    answer = Answer(b"GET")
    answer.feed(CHUNKED)
    for _ in range(10):
        answer.feed(b"1;ext\r\na\r\n" * (MAX_FRAMING_BYTES // 20))
        assert answer.take()
    answer.feed(b"0\r\n\r\n")
    assert answer.done
    assert answer.reusable


def test_taking_body_bytes_empties_the_buffer() -> None:
    answer = Answer(b"GET")
    answer.feed(CHUNKED + b"1\r\na\r\n1\r\nb\r\n")
    assert answer.buffered_bytes == 2
    assert answer.take() == b"ab"
    assert answer.buffered_bytes == 0
    assert answer.take() == b""


def feed(answer: Answer, wire: bytes, cuts: range | list[int]) -> None:
    """Feed an answer in pieces."""
    start = 0
    for cut in [*cuts, len(wire)]:
        if cut > start:
            answer.feed(wire[start:cut])
            start = cut


@settings(deadline=None, max_examples=300)
@given(made=answers(), cuts=st.lists(st.integers(0, 2000), max_size=8))
def test_a_valid_answer_reads_the_same_however_it_is_split(made: Made, cuts: list[int]) -> None:
    answer = Answer(b"GET")
    feed(answer, made.wire, sorted({cut for cut in cuts if cut < len(made.wire)}))
    assert answer.done != made.closes
    assert answer.reusable != made.closes
    assert answer.head is not None
    assert (answer.head.status, answer.head.headers) == (made.status, made.fields)
    assert answer.take() == made.body
    assert answer.end()


@settings(deadline=None, max_examples=600)
@given(
    made=answers(),
    edits=EDITS,
    cuts=st.lists(st.integers(0, 2000), max_size=4),
    method=st.sampled_from([b"GET", b"HEAD", b"POST"]),
)
@example(made=Made(CHUNKED + b"0\r\n\r\n" + OK, 200, [], b"", closes=False), edits=[], cuts=[50], method=b"GET")
def test_whatever_arrives_is_an_answer_or_invalid(
    made: Made, edits: list[tuple[int, int, bytes]], cuts: list[int], method: bytes
) -> None:
    answer = Answer(method)
    try:
        feed(answer, edited(made.wire, edits), sorted(cuts))
    except UpstreamInvalid:
        assert not answer.done
    buffered = answer.buffered_bytes
    assert len(answer.take()) == buffered
    assert answer.end() == answer.done
