"""Every way in which upstream's answer can break, through the whole live proxy, for every kind: what the caller sees,
that the next caller is served, that nothing is held any more, and whose money it was.
"""

from __future__ import annotations

import gzip

import pytest

from support.faults import GARBAGE, REDIRECT, STATUS_600, Fault, charged, dissect
from support.limited import said, units
from support.rigged import EVENTS, KINDS, NAMED, PRICE, WIRES, Rig, chunked, rigged, unframed
from support.scripts import ok

rig = rigged


async def _each(rig: Rig, kind: str, faults: list[Fault]) -> None:
    """Ask once for each fault; after each, nothing is held and the money is as the table says."""
    spent, reserved = await rig.money()
    assert reserved == PRICE
    job_open = True
    for fault in faults:
        wire = rig.wires[kind]
        expected = await rig.ask(kind, fault)
        await rig.quiet()
        if kind in ("run", "stream"):
            sent = None if fault.instead == GARBAGE else dissect(fault.cut(wire))
            spent += charged(sent, head=expected.head, whole=expected.whole, price=PRICE)
        elif kind == "submit" and expected.error_type is not None:
            spent += PRICE  # an outcome that nobody knows
        elif kind == "result" and expected.head and expected.status < 300 and job_open:
            spent, reserved, job_open = spent + 5 * PRICE, 0, False
        assert await rig.money() == (spent, reserved if kind != "submit" else (await rig.reserved())), fault
    await rig.fine()


@pytest.mark.parametrize("end", ["reset", "close"])
@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_that_breaks_off_at_any_byte_is_an_error_or_a_visible_cut(
    kind: str, end: str, rig: Rig
) -> None:
    await _each(rig, kind, [Fault(after=count, end=end) for count in range(len(rig.wires[kind]))])


WRONG = [
    (Fault(instead=GARBAGE), "no HTTP at all"),
    (Fault(instead=REDIRECT), "a redirect is never followed"),
    (Fault(instead=STATUS_600), "no status that HTTP knows"),
    (Fault(instead=REDIRECT, end="close"), "a redirect, then the end"),
    (Fault(after=0, end="stall"), "no answer"),
    (Fault(after=20, end="stall"), "half a head"),
    (Fault(after=-1, end="stall"), "all but the last byte"),
    (Fault(extra=b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen"), "an answer that nobody asked for"),
    (Fault(extra=GARBAGE), "bytes behind the answer"),
    (Fault(drip=True), "byte by byte"),
    (Fault(drip=True, after=-1, end="reset"), "byte by byte, but the last"),
]


@pytest.mark.parametrize(("fault", "reason"), WRONG, ids=[reason.replace(" ", "-") for _, reason in WRONG])
@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_that_is_wrong_slow_or_too_long_reaches_only_whom_it_is_for(
    kind: str, fault: Fault, reason: str, rig: Rig
) -> None:
    await _each(rig, kind, [fault])


@pytest.mark.parametrize("kind", KINDS)
async def test_gzip_that_nobody_asked_for_passes_untouched_unless_we_must_read_it(kind: str, rig: Rig) -> None:
    packed = gzip.compress(b'{"request_id": "x"}')
    await _each(rig, kind, [Fault(instead=ok(packed, b"content-encoding: gzip", units("5"), NAMED))])
    assert all(b"accept-encoding: identity" in head for head in rig.heads)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("framing", ["close-delimited", "chunked"])
@pytest.mark.parametrize("kind", ["stream", "status_stream", "run"])
async def test_a_cut_is_a_reset_for_every_caller_and_framing(kind: str, framing: str, version: str, rig: Rig) -> None:
    media = b"image/png" if kind == "run" else b"text/event-stream"
    rig.wires[kind] = unframed(EVENTS, media) if framing == "close-delimited" else chunked(EVENTS, media)
    whole = await rig.ask(kind, Fault(end="close"), version=version)
    assert not whole.cut
    for end in ("reset", "stall"):
        cut = await rig.ask(kind, Fault(after=len(rig.wires[kind]) - 6, end=end), version=version)
        assert cut.cut
    rig.wires[kind] = WIRES[kind]
    await rig.fine()


@pytest.mark.parametrize("unsent", [0, 100_000], ids=["all-was-sent", "the-caller-holds-the-rest"])
@pytest.mark.parametrize("kind", ["run", "stream", "submit"])
async def test_an_answer_before_the_upload_ended_is_the_answer(kind: str, unsent: int, rig: Rig) -> None:
    body = b'{"prompt": "' + b"x" * 700_000 + b'"}'
    early = Fault(early=True, instead=said(413, b'{"detail": "too long"}'))
    expected = await rig.ask(kind, early, body=body, unsent=unsent)
    assert expected.status == 413
    assert await rig.money() == (0, PRICE), "a whole refusal of fal's is released"
    await rig.fine()
