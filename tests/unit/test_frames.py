"""Frames, read and built: the parser of `websockets` is the oracle for what any bytes, cut anywhere, must come to."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Close, Opcode
from websockets.frames import Frame as OracleFrame
from websockets.protocol import CLIENT, OPEN, SERVER, Protocol

from fal_proxy.sockets.frames import (
    BINARY,
    CLOSE,
    CONT,
    NO_CODE,
    PING,
    PONG,
    SENDABLE_CODES,
    TEXT,
    Breach,
    Closing,
    Event,
    Fragment,
    FrameReader,
    Message,
    Ping,
    Pong,
    build,
    closing,
    message,
    shortened,
)

MAX_BYTES = 1 << 20  # more than any stream below: of a frame that is wrong in two ways, the library tells its size
_QUIET = logging.getLogger("tests.frames")
_QUIET.setLevel(logging.CRITICAL)
Plain = tuple[object, ...]


def raw(first: int, data: bytes, *, masked: bool, key: bytes = b"\x9a\x00\xff\x31", shape: int | None = None) -> bytes:
    """Build a frame with any first byte, and its length in any of the three shapes (126: two bytes, 127: eight)."""
    size = len(data)
    shape = (size if size < 126 else 126 if size < 1 << 16 else 127) if shape is None else shape
    long = b"" if shape < 126 else size.to_bytes(2 if shape == 126 else 8, "big")
    body = bytes(value ^ key[at % 4] for at, value in enumerate(data)) if masked else data
    return bytes([first, shape | (0x80 if masked else 0)]) + long + (key if masked else b"") + body


def frame_ends(data: bytes, *, masked: bool) -> list[int]:
    """Return where frames end, as far as they say so."""
    ends, at = [], 0
    while at + 10 <= len(data):
        size, wide = data[at + 1] & 0x7F, 0
        if size > 125:
            wide = 2 if size == 126 else 8
            size = int.from_bytes(data[at + 2 : at + 2 + wide], "big")
        at += 2 + wide + (4 if masked else 0) + size
        ends.append(at)
    return ends


def read(data: bytes, cuts: list[int], *, masked: bool, **bounds: int | None) -> list[Event]:
    """Read bytes in pieces; return all events but those of pieces of messages."""
    bounds.setdefault("max_bytes", MAX_BYTES)
    reader = FrameReader(masked=masked, **bounds)  # type: ignore[arg-type]
    events: list[Event] = []
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for start, end in itertools.pairwise(edges):
        piece = data[start:end]
        if (whole := reader.whole(piece)) is not None:
            events.append(whole)
        else:
            reader.feed(piece)
        while (event := reader.next()) is not None:
            if not isinstance(event, Fragment):
                events.append(event)
    return events


def plain(event: Event) -> Plain:
    """Return what an event says, without how it is framed."""
    if isinstance(event, Message):
        return "message", event.text, event.data
    if isinstance(event, Breach):
        return "breach", event.code
    return type(event).__name__.lower(), *event


def oracle(data: bytes, *, masked: bool) -> list[Plain]:
    """Return what `websockets` makes of the same bytes. It leaves to its users whether text is UTF-8."""
    protocol = Protocol(SERVER if masked else CLIENT, state=OPEN, max_size=MAX_BYTES, logger=_QUIET)
    protocol.receive_data(data)
    found: list[Plain] = []
    parts, text = b"", False
    for frame in protocol.events_received():
        assert isinstance(frame, OracleFrame)
        if frame.opcode is Opcode.PING or frame.opcode is Opcode.PONG:
            found.append((frame.opcode.name.lower(), bytes(frame.data)))
        elif frame.opcode is Opcode.CLOSE:
            end = Close.parse(bytes(frame.data))
            found.append(("closing", int(end.code), end.reason, False))
        else:
            if frame.opcode is not Opcode.CONT:
                parts, text = b"", frame.opcode is Opcode.TEXT
            parts += frame.data
            if frame.fin:
                try:
                    parts.decode("utf-8" if text else "latin-1")
                except UnicodeDecodeError:
                    return [*found, ("breach", 1007)]
                found.append(("message", text, parts))
    if protocol.parser_exc is not None:
        assert protocol.close_sent is not None
        found.append(("breach", int(protocol.close_sent.code)))
    return found


FIRST_BYTES = st.sampled_from(
    [0x80 | op for op in (CONT, TEXT, BINARY, CLOSE, PING, PONG)] * 6
    + [CONT, TEXT, BINARY] * 8
    + [CLOSE, PING, PONG, 0x83, 0x8B, 0x8F, 0x03, 0xC2, 0xA1, 0x92, 0xF0]
)
WORDS = st.one_of(
    st.binary(max_size=6),
    st.sampled_from([b"", b"\xc3", b"\xa9", "é".encode(), b"\xed\xa0\x80", b"a" * 124, b"b" * 125]),
    st.sampled_from([b"\x03\xe8", b"\x03\xe8bye", b"\x03\xed", b"\x0b\xb7", b"\x0b\xb8x", b"\x03", b"\x13\x87\xff"]),
)
LONG = st.builds(lambda size, value: bytes([value]) * size, st.sampled_from([126, 127, 65535, 65536]), st.just(0x61))


class Stream(NamedTuple):
    """Bytes of frames of all kinds, whether they should be masked, and where they are cut."""

    data: bytes
    masked: bool
    cuts: list[int]

    def __repr__(self) -> str:
        long = "" if len(self.data) <= 200 else f"... of {len(self.data)}"
        return f"{self.data[:200]!r}{long}, masked={self.masked}, cuts={self.cuts}"


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    """Return a stream."""
    masked = draw(st.booleans())
    made = b""
    for _ in range(draw(st.integers(1, 9))):
        first = draw(FIRST_BYTES)
        data = draw(st.one_of(WORDS, WORDS, WORDS, LONG)) if first in (0x81, 0x82, 0x01, 0x80) else draw(WORDS)
        shapes = [None, *(shape for shape in (126, 127) if len(data) < 1 << (16 if shape == 126 else 63))]
        shape = draw(st.sampled_from(shapes)) if not first & 0x08 else None
        wrongly = draw(st.integers(0, 30)) == 0
        made += raw(first, data, masked=masked ^ wrongly, key=draw(st.binary(min_size=4, max_size=4)), shape=shape)
    return Stream(made, masked, draw(st.lists(st.integers(0, len(made)), max_size=6)))


@given(streams())
@settings(max_examples=1000, deadline=None)
def test_any_frames_cut_anywhere_come_to_what_the_library_makes_of_them(found: Stream) -> None:
    data, masked, cuts = found
    events = [plain(event) for event in read(data, cuts, masked=masked)]
    assert events == oracle(data, masked=masked)
    assert events == [plain(event) for event in read(data, [], masked=masked)]


@given(st.binary(max_size=60), st.booleans(), st.lists(st.integers(0, 60), max_size=8))
@settings(max_examples=1000, deadline=None)
def test_any_bytes_cut_anywhere_come_to_the_same(data: bytes, masked: bool, cuts: list[int]) -> None:
    ours, theirs = ([plain(event) for event in read(data, at, masked=masked)] for at in (cuts, []))
    assert ours == theirs
    expected = oracle(data, masked=masked)
    # The library looks at reserved bits and lengths of control frames behind the payload, we before it.
    assert expected == ours[: len(expected)] or (ours[-1][0], expected[-1][0]) == ("breach", "breach")
    assert all(event[0] == "breach" for event in ours[len(expected) :])


@given(streams())
@settings(max_examples=300, deadline=None)
def test_every_message_is_one_frame_that_any_reader_reads(found: Stream) -> None:
    data, masked, cuts = found
    for event in read(data, cuts, masked=masked):
        if isinstance(event, Message):
            assert oracle(event.frame, masked=masked) == [plain(event)]
            assert event.frame == raw(
                event.frame[0], event.data, masked=masked, key=event.frame[event.start - 4 : event.start]
            )
            assert event.frame[0] == 0x80 | (TEXT if event.text else BINARY)
            assert event.size == len(event.data)


@given(streams())
@settings(max_examples=300, deadline=None)
def test_what_is_taken_whole_is_what_is_read_in_steps(found: Stream) -> None:
    data, masked, _ = found
    [end, *_] = [*frame_ends(data, masked=masked), len(data)]
    reader, other = (FrameReader(masked=masked, max_bytes=MAX_BYTES) for _ in range(2))
    whole = reader.whole(data[:end])
    other.feed(data[:end])
    event = other.next()
    assert whole is None or whole == event
    if isinstance(event, Message) and event.frame == data[:end] and len(event.frame) in range(6, 1 << 16):
        assert whole == event
    reader.feed(data[:end])
    if whole is None:
        again = reader.next()
        assert (again and plain(again)) == (event and plain(event)), "what was not taken is as if it had not been shown"


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_a_message_in_one_frame_is_handed_on_as_that_very_frame(masked: bool, size: int) -> None:
    frame = raw(0x82, bytes(size), masked=masked)
    [event] = read(frame, [], masked=masked)
    assert isinstance(event, Message)
    assert event.frame is frame, "nothing was copied"
    pieces = read(frame * 3, [1, 7, size // 2, size + 3], masked=masked)
    assert [event.frame for event in pieces if isinstance(event, Message)] == [frame] * 3


BOUNDS: list[tuple[bytes, dict[str, int], int | None, str]] = [
    (raw(0x82, bytes(100), masked=False), {"max_bytes": 100}, None, "just as large as it may be"),
    (raw(0x82, bytes(101), masked=False), {"max_bytes": 100}, 1009, "a byte more"),
    (raw(0x82, bytes(101), masked=False)[:2], {"max_bytes": 100}, 1009, "judged by its head"),
    (b"\x82\x7f" + b"\xff" * 8, {"max_bytes": 100}, 1009, "as large as can be said"),
    (raw(0x02, bytes(60), masked=False) + raw(0x80, bytes(40), masked=False), {"max_bytes": 100}, None, "in two"),
    (raw(0x02, bytes(60), masked=False) + raw(0x80, bytes(41), masked=False)[:2], {"max_bytes": 100}, 1009, "in two"),
    (
        raw(0x02, bytes(99), masked=False) + raw(0x89, bytes(50), masked=False) + raw(0x80, b"x", masked=False),
        {"max_bytes": 100},
        None,
        "a ping between is not part of it",
    ),
    (raw(0x02, b"x", masked=False) + raw(0, b"", masked=False) * 3, {"max_fragments": 4}, None, "four fragments"),
    (raw(0x02, b"x", masked=False) + raw(0, b"", masked=False) * 4, {"max_fragments": 4}, 1008, "five"),
    (
        (raw(0x02, b"x", masked=False) + raw(0x80, b"", masked=False)) * 9,
        {"max_fragments": 4},
        None,
        "counted by message",
    ),
]


@pytest.mark.parametrize(("data", "bounds", "code", "reason"), BOUNDS, ids=[row[3] for row in BOUNDS])
def test_sizes_are_bounded_before_anything_is_collected(
    data: bytes, bounds: dict[str, int], code: int | None, reason: str
) -> None:
    found = [event.code for event in read(data, [], masked=False, **bounds) if isinstance(event, Breach)]
    assert found == ([] if code is None else [code]), reason


ENDS: list[tuple[Callable[[], bytes], str]] = [
    (lambda: closing(1000, "", masked=False), "a close frame"),
    (lambda: raw(0x87, b"", masked=False), "a breach"),
]


@pytest.mark.parametrize(("end", "reason"), ENDS, ids=[row[1] for row in ENDS])
def test_behind_the_end_nothing_is_read(end: Callable[[], bytes], reason: str) -> None:
    reader = FrameReader(masked=False, max_bytes=10)
    reader.feed(end() + raw(0x82, b"x", masked=False))
    assert isinstance(reader.next(), Closing | Breach), reason
    assert reader.next() is None
    reader.feed(raw(0x82, b"x", masked=False))
    assert reader.next() is None
    assert not reader.pending


@pytest.mark.parametrize("masked", [True, False])
@given(data=st.binary(max_size=300), opcode=st.sampled_from([BINARY, PING, PONG]))
def test_what_is_built_is_read_again(masked: bool, data: bytes, opcode: int) -> None:
    data = data[:125] if opcode != BINARY else data
    [event] = read(build(opcode, data, masked=masked), [], masked=masked)
    assert isinstance(event, Message | Ping | Pong)
    assert event.data == data


def test_masks_of_ours_are_fresh() -> None:
    masks = {message(b"x", text=False, masked=True).frame[2:6] for _ in range(50)}
    assert len(masks) > 40


@pytest.mark.parametrize("code", [*range(990, 1020), 2999, 3000, 4999, 5000])
def test_a_code_that_no_frame_may_carry_is_said_without_one(code: int) -> None:
    reason = "é" * 100
    [event] = read(closing(code, reason, masked=True), [], masked=True)
    assert event == (Closing(code, shortened(reason)) if code in SENDABLE_CODES else Closing(NO_CODE))
    assert len(shortened(reason).encode()) == 122, "whole characters of 123 bytes"
