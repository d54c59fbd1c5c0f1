"""An upstream that drips, floods or falls silent meets a deadline or a limit, never our memory."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from fal_proxy.errors import UpstreamInvalid, UpstreamTimeout
from fal_proxy.upstream.engine import Engine
from support.peers import OK, PATIENCE, Peer, Serve, exchange

SHORT = 0.15
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


async def keep_sending(peer: Peer, pieces: Iterator[bytes], pause: float = 0.02) -> None:
    """Send piece after piece, well within the deadline that must fire all the same."""
    for piece in pieces:
        await peer.send(piece)
        await asyncio.sleep(pause)


SLOW_HEADS = [
    ("byte by byte", [b"HTTP/1.1 200 OK\r\nx: "], b"a"),
    ("field by field", [b"HTTP/1.1 200 OK\r\n"], b"x: a\r\n"),
    ("interim answers", [], b"HTTP/1.1 102 P\r\n\r\n"),
    ("empty lines before the status line", [], b"\r\n"),
    ("nothing at all", [], b""),
]


@pytest.mark.parametrize(("reason", "first", "drip"), SLOW_HEADS, ids=[row[0] for row in SLOW_HEADS])
async def test_a_dripping_head_does_not_move_its_deadline(
    reason: str, first: list[bytes], drip: bytes, serve: Serve, engine: Engine
) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await keep_sending(peer, itertools.chain(first, itertools.repeat(drip)))

    call = await engine.open(serve(script).origin)
    call.start(b"GET", b"/", [], length=0)
    with pytest.raises(UpstreamTimeout) as raised:
        await asyncio.wait_for(call.head(SHORT), PATIENCE)
    call.release()
    assert raised.value.written, reason


SLOW_BODIES = [
    ("silence", b"", b""),
    ("chunk-size digits", b"", b"0"),
    ("chunk extension", b"1;x=", b"y"),
    ("trailers", b"0\r\n", b"x: y\r\n"),
]


@pytest.mark.parametrize(("reason", "first", "drip"), SLOW_BODIES, ids=[row[0] for row in SLOW_BODIES])
async def test_framing_without_body_bytes_does_not_hold_the_idle_deadline_open(
    reason: str, first: bytes, drip: bytes, serve: Serve, engine: Engine
) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED + b"2\r\nok\r\n" + first)
        await keep_sending(peer, itertools.repeat(drip))

    call = await engine.open(serve(script).origin)
    call.start(b"GET", b"/", [], length=0)
    await call.head(PATIENCE)
    assert await call.read(SHORT) == b"ok"
    with pytest.raises(UpstreamTimeout):
        await asyncio.wait_for(call.read(SHORT), PATIENCE)
    call.release()
    assert engine.idle == 0, reason


async def test_body_bytes_hold_the_idle_deadline_open(serve: Serve, engine: Engine) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n")
        await keep_sending(peer, itertools.repeat(b"x", 8), SHORT / 3)

    outcome = await exchange(engine, serve(script).origin, seconds=SHORT)
    assert outcome.error is None
    assert outcome.body == b"x" * 8


async def test_an_upload_that_progresses_holds_the_head_deadline_open(serve: Serve, engine: Engine) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.read(8)
        await peer.send(OK)

    call = await engine.open(serve(script).origin)
    call.start(b"POST", b"/", [], length=8)
    head = asyncio.ensure_future(call.head(SHORT))
    for _ in range(8):
        await asyncio.sleep(SHORT / 3)
        call.write(b"x")
    call.finish()
    assert (await head).status == 200
    call.release()


FLOODS = [
    ("endless interim answers", b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    ("endless header fields", b"HTTP/1.1 200 OK\r\n", b"x: a\r\n"),
    ("one endless header field", b"HTTP/1.1 200 OK\r\nx: ", b"a"),
    ("one endless header name", b"HTTP/1.1 200 OK\r\n", b"a"),
    ("an endless reason phrase", b"HTTP/1.1 200 ", b"a"),
    ("endless empty lines", b"", b"\r\n"),
    ("an endless chunk extension", CHUNKED + b"1;", b"a"),
    ("an endless chunk extension value", CHUNKED + b"1;a=", b"b"),
    ("endless leading zeros of a chunk size", CHUNKED, b"0"),
    ("endless trailers", CHUNKED + b"0\r\n", b"x: a\r\n"),
    ("one endless trailer", CHUNKED + b"0\r\nx: ", b"a"),
]


@pytest.mark.parametrize("segment", [4096, 1 << 18])
@pytest.mark.parametrize(("reason", "first", "flood"), FLOODS, ids=[row[0] for row in FLOODS])
async def test_a_flood_of_framing_is_invalid_long_before_it_costs_memory(
    reason: str, first: bytes, flood: bytes, segment: int, serve: Serve, engine: Engine
) -> None:
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.answer(first)
        block = flood * (segment // len(flood))
        while True:
            await peer.send(block)
            sent += len(block)
            await asyncio.sleep(0)

    outcome = await exchange(engine, serve(script).origin)
    assert isinstance(outcome.error, UpstreamInvalid), reason
    assert outcome.error.written
    assert sent < 16 << 20  # what loopback sockets hold beyond the limit


@pytest.mark.parametrize(
    ("fields", "reason"),
    [(b"x: a\r\n" * 100_000, "100,000 fields"), (b"x: " + b"a" * 100_000 + b"\r\n", "one field of 100 KB")],
    ids=["many", "long"],
)
async def test_a_large_head_is_invalid_even_when_it_is_complete(
    fields: bytes, reason: str, serve: Serve, engine: Engine
) -> None:
    wire = b"HTTP/1.1 200 OK\r\n" + fields + b"content-length: 0\r\n\r\n"
    outcome = await exchange(engine, serve(lambda peer: peer.answer(wire)).origin)
    assert isinstance(outcome.error, UpstreamInvalid), reason
    assert outcome.head is None


async def test_a_head_of_almost_32_kib_passes(serve: Serve, engine: Engine) -> None:
    wire = b"HTTP/1.1 200 OK\r\nx: " + b"a" * 32_000 + b"\r\ncontent-length: 0\r\n\r\n"
    outcome = await exchange(engine, serve(lambda peer: peer.answer(wire)).origin)
    assert outcome.error is None


async def test_body_bytes_before_an_invalid_chunk_are_delivered_before_the_error(serve: Serve, engine: Engine) -> None:
    wire = CHUNKED + b"2\r\nok\r\nnonsense\r\n"
    outcome = await exchange(engine, serve(lambda peer: peer.answer(wire)).origin)
    assert outcome.body == b"ok"
    assert isinstance(outcome.error, UpstreamInvalid)
