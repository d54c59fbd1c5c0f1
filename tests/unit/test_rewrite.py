"""Queue URLs in path form: exactly three fields change, in exactly their beginning, however the bytes come."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fal_proxy.relay import rewrite
from fal_proxy.relay.rewrite import PointedBack, point_back

BASE = b"https://proxy.example/api/fal/proxy/queue.fal.run/"
QUEUE = "https://queue.fal.run/"
NAMES = ("status_url", "response_url", "cancel_url")
Text = tuple[bytes, bytes]  # as fal sends it, and as the caller is to see it


def same(text: str | bytes) -> Text:
    raw = text.encode() if isinstance(text, str) else text
    return raw, raw


def joined(*parts: Text) -> Text:
    return b"".join(before for before, _ in parts), b"".join(after for _, after in parts)


@st.composite
def spelled(draw: st.DrawFn, text: str) -> bytes:
    """Spell a text as JSON may: each character as it is, or escaped."""
    spellings = []
    for char in text:
        code = f"{ord(char):04x}" if ord(char) < 0x10000 else ""
        plain = json.dumps(char, ensure_ascii=False)[1:-1]
        choices = [plain, plain, plain, *([f"\\u{code}", f"\\u{code.upper()}"] if code else [])]
        spellings.append(draw(st.sampled_from([*choices, "\\/"] if char == "/" else choices)))
    return "".join(spellings).encode()


TEXTS = st.text(st.one_of(st.sampled_from('a"\\/{}[]:,é€😀\n\r\t '), st.characters(codec="utf-8")), max_size=8)
BLANKS = st.text(st.sampled_from(" \t\r\n"), max_size=2)
HTTPS = st.sampled_from([QUEUE, "HTTPS://Queue.FAL.run/", "https://queue.fal.run:443/"])
OTHER_URLS = st.sampled_from(
    [
        "http://queue.fal.run/a",
        "https://queue.fal.run",
        "https://queue.fal.run?x=/",
        "https://queue.fal.run:4430/a",
        "https://queue.fal.run.evil.example/a",
        "https://evil.example/queue.fal.run/a",
        "https://fal.run/a",
        " https://queue.fal.run/a",
        "",
    ]
)


@st.composite
def strings(draw: st.DrawFn, text: str) -> Text:
    return joined(same('"'), same(draw(spelled(text))), same('"'))


@st.composite
def queue_urls(draw: st.DrawFn) -> Text:
    """A URL on the queue, and what it is to become: only its beginning changes."""
    rest = draw(spelled(draw(TEXTS)))
    return joined(same('"'), (draw(spelled(draw(HTTPS))), BASE), same(rest), same('"'))


SCALARS = st.one_of(
    st.sampled_from(["null", "true", "false", "0", "-1.5e+300", "NaN"]).map(same),
    st.one_of(TEXTS, OTHER_URLS, st.just(QUEUE + "a")).flatmap(strings),
)


def _containers(children: st.SearchStrategy[Text]) -> st.SearchStrategy[Text]:
    names = st.one_of(st.sampled_from(NAMES), TEXTS).flatmap(strings)
    return st.one_of(
        st.lists(children, max_size=3).map(lambda items: joined(same("["), *_separated(items), same("]"))),
        st.lists(st.tuples(names, children), max_size=3).map(
            lambda pairs: joined(
                same("{"), *_separated([joined(name, same(":"), value) for name, value in pairs]), same("}")
            )
        ),
    )


def _separated(items: Sequence[Text]) -> list[Text]:
    return [part for number, item in enumerate(items) for part in ([same(",")] if number else []) + [item]]


VALUES = st.recursive(SCALARS, _containers, max_leaves=6)


@st.composite
def members(draw: st.DrawFn) -> Text:
    name = draw(st.one_of(st.sampled_from(NAMES), st.sampled_from(["status", "Status_url", "url"]), TEXTS))
    # A URL on the queue inside of anything is generated as it is to stay; here, under the right name, it changes.
    value = draw(queue_urls()) if name in NAMES and draw(st.booleans()) else None
    if value is None:
        value = draw(VALUES if name not in NAMES else st.one_of(OTHER_URLS.flatmap(strings), _containers(VALUES)))
    blanks = [same(draw(BLANKS)) for _ in range(4)]
    return joined(blanks[0], draw(strings(name)), blanks[1], same(":"), blanks[2], value, blanks[3])


@st.composite
def objects(draw: st.DrawFn) -> Text:
    parts = _separated(draw(st.lists(members(), max_size=5)))
    return joined(same(draw(BLANKS)), same("{"), *(parts or [same(draw(BLANKS))]), same("}"), same(draw(BLANKS)))


@given(objects())
def test_exactly_the_beginnings_of_three_fields_change(text: Text) -> None:
    before, after = text
    json.loads(before)  # the test's own objects are JSON
    assert point_back(before, BASE) == after


# Text that looks like JSON and like events, and mostly is neither.
SOUP = st.lists(
    st.one_of(
        st.sampled_from(
            [*(bytes([byte]) for byte in b'{}[]:,"\\\n\r '), b"data:", b'"status_url":', b'"https://queue.fal.run/a"']
        ),
        st.sampled_from([b"https:\\/\\/queue.fal.run/", b"\xf0\x9f", "é".encode()]),
        st.binary(max_size=3),
    ),
    max_size=30,
).map(b"".join)
_BEGINNING = rb"https:(?:\\?/){2}queue\.fal\.run\\?/"


def _differs_in_beginnings_only(before: bytes, after: bytes) -> bool:
    pattern = _BEGINNING.join(re.escape(part) for part in after.split(BASE))
    return re.fullmatch(pattern, before) is not None


@given(SOUP)
def test_whatever_the_text_nothing_but_beginnings_of_queue_urls_is_replaced(text: bytes) -> None:
    assert _differs_in_beginnings_only(text, point_back(text, BASE))
    whole = b'{"a":' + text + b',"status_url":"' + QUEUE.encode() + b'1"}'
    assert _differs_in_beginnings_only(whole, point_back(whole, BASE))


URL = QUEUE.encode()
UNTOUCHED = [
    (b'["status_url","%bx"]' % URL, "no object"),
    (b'"%bx"' % URL, "a text"),
    (b'{"status_url":"%bx"' % URL, "cut"),
    (b'{"status_url":"%bx"}{}' % URL, "more than one value"),
    (b'{"status_url":"%bx",}' % URL, "an object that goes on without another member"),
    (b'{"status_url" "%bx"}' % URL, "no colon"),
    (b'{"status_url":"%b\nx"}' % URL, "a line end inside of a text, which JSON forbids"),
    (b'{"a":{"status_url":"%bx"}}' % URL, "a name inside of another object"),
    (b'{"a":"{\\"status_url\\":\\"%bx\\"}"}' % URL, "quoted in a text"),
    (b'{"status_url":["%bx"]}' % URL, "a list of URLs"),
    (b'{"STATUS_URL":"%bx"}' % URL, "another name: JSON knows case"),
    (b'{"status_url":null}', "no text"),
    (b'{"status_url\\x":"%bx"}' % URL, "an escape that JSON does not have"),
    (b"", "nothing"),
]


@pytest.mark.parametrize(("text", "reason"), UNTOUCHED, ids=[row[-1] for row in UNTOUCHED])
def test_what_is_no_url_of_the_answers_own_stays(text: bytes, reason: str) -> None:
    assert point_back(text, BASE) == text, reason


def test_an_answer_that_is_nested_without_end_is_read_without_a_fault() -> None:
    text = b'{"a":' + b"[" * 100_000
    assert point_back(text, BASE) == text


# Events


@st.composite
def event_lines(draw: st.DrawFn) -> list[Text]:
    """One event as its lines without their ends; JSON may be spread over several lines of data."""
    before, after = draw(objects().filter(lambda text: b"\n" not in text[0] and b"\r" not in text[0]))
    lines = [joined(same(draw(st.sampled_from(["data:", "data: "]))), (before, after))]
    if before == after and draw(st.booleans()):
        lines = [same(b"data: " + line) for line in before.split(b",", 1)]  # whatever this means, nothing changes
    elif draw(st.booleans()):
        lines = [same("data: {"), same('data:"x":1,'), joined(same("data:  "), (before.strip()[1:], after.strip()[1:]))]
    extra = st.sampled_from([": ping", "event: status", "id: 1", "data", "datax: {", f': {{"status_url":"{QUEUE}x"}}'])
    lines = [*map(same, draw(st.lists(extra, max_size=2))), *lines]
    return lines if draw(st.integers(0, 4)) else [same(": é ping")]


@st.composite
def event_streams(draw: st.DrawFn) -> list[Text]:
    """Events with their ends, each line's end drawn for itself; an LF right behind a CR would be one line end."""
    events, last = [], ""
    for lines in draw(st.lists(event_lines(), max_size=5)):
        parts: list[Text] = []
        for line in [*lines, same("")]:
            ends = ["\n", "\r\n", "\r"] if line[0] or last != "\r" else ["\r\n", "\r"]
            last = draw(st.sampled_from(ends))
            parts += [line, same(last)]
        events.append(joined(*parts))
    return events


PLACES = st.lists(st.integers(min_value=0, max_value=10_000), max_size=12)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(event_streams(), PLACES)
def test_events_cut_anywhere_change_as_the_same_answers_whole(events: list[Text], places: list[int]) -> None:
    before, after = joined(*events)
    stream = PointedBack(BASE)
    pieces = [stream.feed(piece) for piece in cut(before, places)]
    for piece in pieces:
        piece.decode()  # no piece ends inside of a character
    assert b"".join(pieces) == after
    assert stream.rest() == b"", "every event had ended"


@given(event_streams())
def test_an_event_comes_out_with_its_last_byte(events: list[Text]) -> None:
    stream = PointedBack(BASE)
    for before, after in events:
        assert b"".join(stream.feed(bytes([byte])) for byte in before) == after


@given(SOUP, PLACES)
def test_whatever_the_stream_only_beginnings_change_and_only_as_in_one_piece(text: bytes, places: list[int]) -> None:
    stream, at_once = PointedBack(BASE), PointedBack(BASE)
    passed = b"".join(stream.feed(piece) for piece in cut(text, places)) + stream.rest()
    assert passed == at_once.feed(text) + at_once.rest()
    assert _differs_in_beginnings_only(text, passed)


EVENT = b'data: {"status_url":"%b1"}\n\n' % URL
POINTED = EVENT.replace(URL, BASE)


@given(PLACES, st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_an_event_that_is_too_long_passes_as_it_is_and_the_next_one_does_not(places: list[int], end: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewrite, "EVENT_BYTES", 100)
        long = (b'data: {"log":"' + b"x" * 100 + b'","cancel_url":"%b1"}\n\n' % URL).replace(b"\n", end)
        stream = PointedBack(BASE)
        fed = passed = b""
        for piece in cut(long + EVENT + long + EVENT, places):
            fed += piece
            passed += stream.feed(piece)
            assert len(fed) - len(passed) <= 100 + 2, "little is held back"
        assert passed + stream.rest() == long + POINTED + long + POINTED


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_ends_lines_and_events_wherever_it_is_cut(end: bytes) -> None:
    event = b': a\nevent: status\ndata: {\ndata:"status_url":"%b1"}\nid: 1\n\n' % URL
    long = b'data: {"log":"\n' + "data: é".encode() * 20 + b'","cancel_url":"%b1"}\n\n' % URL
    text = (event + long + event).replace(b"\n", end)
    expected = (event.replace(URL, BASE) + long + event.replace(URL, BASE)).replace(b"\n", end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewrite, "EVENT_BYTES", 130)
        for place in range(len(text)):
            stream = PointedBack(BASE)
            pieces = [stream.feed(text[:place]), stream.feed(text[place:])]
            assert b"".join(pieces) == expected, place
        stream = PointedBack(BASE)
        pieces = [stream.feed(bytes([byte])) for byte in text]
        assert b"".join(pieces) == expected
        assert all(piece.decode() or True for piece in pieces), "no piece ends inside of a character"


def test_an_event_that_never_ended_still_comes_down() -> None:
    stream = PointedBack(BASE)
    assert stream.feed(EVENT + b'data: {"status_url":"%b1"}' % URL) == POINTED
    assert stream.rest() == POINTED.strip(), "whole it was, but for its end"
    assert stream.rest() == b"", "and it is given out once"
    cut_off = EVENT[:-5]
    assert (stream.feed(cut_off), stream.rest()) == (b"", cut_off)
    character = ": é".encode()[:-1]
    assert (stream.feed(character), stream.rest()) == (b"", character)
