"""What holds for every answer and every request, as hypothesis makes them up, of a whole call of the engine.

The wire is a connection of ours in memory: every byte, split and end is chosen, and nothing ever has to be waited for.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import NamedTuple

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fal_proxy.errors import UpstreamError
from fal_proxy.upstream.call import Call
from fal_proxy.upstream.connection import Connection
from fal_proxy.upstream.dial import Origin
from support.answers import EDITS, Edits, Made, answers, edited

ORIGIN = Origin("http", "fal.test", 80, trusted=True)
NEVER_SECONDS = 5.0  # no call waits: everything that upstream will ever say has been said
CUTS = st.lists(st.integers(0, 2000), max_size=8)


class Wire(Connection):
    """An open connection that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False

    @property
    def open(self) -> bool:
        """Say that it is open until it was aborted."""
        return not self.aborted

    def write(self, data: bytes) -> None:
        """Keep what is written."""
        self.written += data

    def abort(self) -> None:
        """Note the end."""
        self.aborted = True


class Outcome(NamedTuple):
    """What a call came to."""

    status: int | None
    fields: list[tuple[bytes, bytes]]
    body: bytes
    error: UpstreamError | None
    kept: bool


async def _exchange(pieces: list[bytes], end: str, method: bytes = b"GET") -> Outcome:
    """Make a call that is answered by `pieces`, all before anybody reads, and then `end`."""
    kept: list[bool] = []
    wire = Wire()
    call = Call(wire, ORIGIN, lambda _origin, _connection, clean: kept.append(clean), reused=False)
    call.start(method, b"/", [], length=0)
    for piece in pieces:
        call.on_bytes(piece)
    if end == "fin":
        call.on_end()
    if end != "open":
        call.on_lost("upstream reset the connection")
    head, body, error = None, b"", None
    try:
        head = await call.head(NEVER_SECONDS)
        while data := await call.read(NEVER_SECONDS):
            body += data
    except UpstreamError as raised:
        error = raised
    call.release()
    return Outcome(head.status if head else None, head.headers if head else [], body, error, kept == [True])


def outcome(pieces: list[bytes], end: str, method: bytes = b"GET") -> Outcome:
    """Return what a call comes to. Raises TimeoutError when it hangs."""

    async def bounded() -> Outcome:
        async with asyncio.timeout(NEVER_SECONDS / 2):
            return await _exchange(pieces, end, method)

    return asyncio.run(bounded())


def split(wire: bytes, cuts: list[int]) -> list[bytes]:
    """Return the bytes in pieces."""
    places = sorted({0, len(wire), *(cut % (len(wire) + 1) for cut in cuts)})
    return [wire[start:stop] for start, stop in itertools.pairwise(places)]


@settings(deadline=None, max_examples=200)
@given(made=answers(), cuts=CUTS)
def test_a_valid_answer_is_the_same_call_however_it_is_split(made: Made, cuts: list[int]) -> None:
    found = outcome(split(made.wire, cuts), "fin" if made.closes else "open")
    assert found == Outcome(made.status, made.fields, made.body, None, kept=not made.closes)


@settings(deadline=None, max_examples=200)
@given(made=answers(), cuts=CUTS, at=st.integers(0, 2000), end=st.sampled_from(["fin", "reset"]))
def test_an_answer_that_breaks_off_is_never_whole(made: Made, cuts: list[int], at: int, end: str) -> None:
    wire = made.wire[: at % len(made.wire)]
    found = outcome(split(wire, cuts), end)
    assert not found.kept
    if made.closes and end == "fin" and found.status is not None:
        assert made.body.startswith(found.body), "an orderly close is the end of such a body, wherever it comes"
    elif found.error is None:
        # Only what comes behind the last body byte may be missing of an answer that is whole.
        assert found.body == made.body
        assert wire == made.wire
    else:
        assert found.error.written
        assert made.body.startswith(found.body)


@settings(deadline=None, max_examples=600)
@given(
    made=answers(),
    edits=EDITS,
    cuts=CUTS,
    end=st.sampled_from(["fin", "reset"]),
    method=st.sampled_from([b"GET", b"HEAD", b"POST"]),
)
def test_whatever_arrives_is_an_answer_or_an_upstream_error(
    made: Made, edits: Edits, cuts: list[int], end: str, method: bytes
) -> None:
    wire = edited(made.wire, edits)
    found = outcome(split(wire, cuts), end, method)
    assert not found.kept, "it has ended"
    assert found.error is None or found.error.written
    if found.status is not None:
        assert 200 <= found.status <= 599
    at_once = outcome([wire] if wire else [], end, method)
    assert (found[:3], type(found.error)) == (at_once[:3], type(at_once.error)), "split or not"


NAME = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12).map(lambda name: b"x-" + name.encode())
VALUE = st.binary(max_size=30)


class _Request:
    """What a server finds in the bytes of a request (httptools' callbacks)."""

    def __init__(self, wire: bytes) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.complete = 0
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(wire)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1


async def _request(fields: list[tuple[bytes, bytes]], pieces: list[bytes], *, chunked: bool) -> bytes:
    wire = Wire()
    call = Call(wire, ORIGIN, lambda *_: None, reused=False)
    first, rest = (pieces[0], pieces[1:]) if pieces else (b"", [])
    call.start(b"POST", b"/path", fields, length=None if chunked else sum(map(len, pieces)), body=first)
    for piece in rest:
        call.write(piece)
    call.finish()
    assert call.request_done
    return wire.written


@settings(deadline=None, max_examples=200)
@given(
    fields=st.lists(st.tuples(NAME, VALUE), max_size=6),
    pieces=st.lists(st.binary(max_size=200), max_size=6),
    chunked=st.booleans(),
)
def test_a_request_is_read_as_it_was_given_or_refused_unwritten(
    fields: list[tuple[bytes, bytes]], pieces: list[bytes], chunked: bool
) -> None:
    if any(byte in value for _, value in fields for byte in (b"\r", b"\n", b"\0")):
        with pytest.raises(ValueError, match="line breaks"):
            asyncio.run(_request(fields, pieces, chunked=chunked))
        return
    try:
        found = _Request(asyncio.run(_request(fields, pieces, chunked=chunked)))
    except httptools.HttpParserError:
        # Control characters in a value: our own server, which alone can hand them to us, refuses them as well.
        assert any((byte < 0x20 and byte != 0x09) or byte == 0x7F for _, value in fields for byte in value)
        return
    assert found.complete == 1
    assert found.body == b"".join(pieces)
    assert found.fields[0] == (b"host", b"fal.test")
    own = found.fields[1 : 1 + len(fields)]
    assert [(name, value.strip(b" \t")) for name, value in own] == [(n, v.strip(b" \t")) for n, v in fields]
    assert len(found.fields) == len(fields) + 2, "and the framing, once"
