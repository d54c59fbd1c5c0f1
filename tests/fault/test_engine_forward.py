"""Bytes that are handed on in the turn of the loop that brings them: all, in order, and never more than is taken."""

from __future__ import annotations

import asyncio
import random

import pytest

from fal_proxy.errors import UpstreamCut, UpstreamInvalid, UpstreamTimeout
from fal_proxy.upstream.call import Call
from fal_proxy.upstream.engine import Engine
from support.peers import PATIENCE, Peer, Serve, Upstream

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
MOST = 1000


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def begun(engine: Engine, upstream: Upstream) -> Call:
    call = await engine.open(upstream.origin)
    call.start(b"GET", b"/", [], length=0)
    await call.head(PATIENCE)
    return call


async def test_pieces_are_taken_as_they_come_and_the_end_is_told(serve: Serve, engine: Engine) -> None:
    taken: list[bytes] = []
    heard = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED)
        for number in range(20):
            await peer.send(chunk(b"%d" % number))
            await heard.wait()
            heard.clear()
        await peer.send(b"0\r\n\r\n")

    def take(data: bytes) -> bool:
        taken.append(data)
        heard.set()
        return True

    call = await begun(engine, serve(script))
    assert await call.forward(take, MOST, PATIENCE)
    assert taken == [b"%d" % number for number in range(20)]
    assert await call.read(PATIENCE) == b""
    call.release()
    assert engine.idle == 1, "the connection lives on"


async def test_whoever_says_no_is_asked_no_more_and_loses_nothing(serve: Serve, engine: Engine) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED + chunk(b"first"))
        await peer.send(chunk(b"second"))
        await peer.send(chunk(b"third") + b"0\r\n\r\n")

    taken: list[bytes] = []

    def take(data: bytes) -> bool:
        taken.append(data)
        return False

    call = await begun(engine, serve(script))
    assert not await call.forward(take, MOST, PATIENCE)
    assert len(taken) == 1
    while data := await call.read(PATIENCE):
        taken.append(data)
    assert b"".join(taken) == b"firstsecondthird"
    call.release()


async def test_whoever_says_no_to_the_last_piece_is_not_told_that_it_is_over(serve: Serve, engine: Engine) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED + chunk(b"all") + b"0\r\n\r\n")

    call = await begun(engine, serve(script))
    assert not await call.forward(lambda _: False, MOST, PATIENCE)
    assert await call.forward(lambda _: False, MOST, PATIENCE), "and then it is"
    call.release()


async def test_more_than_was_asked_for_waits_to_be_read(serve: Serve, engine: Engine) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED + chunk(b"x" * (MOST + 1)) + b"0\r\n\r\n")

    call = await begun(engine, serve(script))
    taken: list[bytes] = []

    def take(data: bytes) -> bool:
        taken.append(data)
        return True

    body = b""
    while not await call.forward(take, MOST, PATIENCE):
        body += await call.read(PATIENCE)
    assert body + b"".join(taken) == b"x" * (MOST + 1)
    assert all(len(piece) <= MOST for piece in taken)
    call.release()


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_lost_or_moved_whatever_is_refused(seed: int, serve: Serve, engine: Engine) -> None:
    chance = random.Random(seed)
    pieces = [chance.randbytes(chance.choice([1, 10, MOST - 1, MOST, MOST + 1])) for _ in range(50)]

    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED)
        for piece in pieces:
            await peer.send(chunk(piece))
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        await peer.send(b"0\r\n\r\n")

    call = await begun(engine, serve(script))
    taken: list[bytes] = []

    def take(data: bytes) -> bool:
        taken.append(data)
        return chance.random() < 0.7

    while not await call.forward(take, MOST, PATIENCE):
        taken.append(await call.read(PATIENCE))
    assert b"".join(taken) == b"".join(pieces)
    call.release()


async def test_what_the_taker_raises_reaches_whoever_waits_and_ends_the_call(serve: Serve, engine: Engine) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED)
        await go_on.wait()
        await peer.send(chunk(b"a key"))
        await peer.wait_gone()

    def take(_: bytes) -> bool:
        raise UpstreamInvalid("it held a key", written=True)

    call = await begun(engine, serve(script))
    waiting = asyncio.ensure_future(call.forward(take, MOST, PATIENCE))
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(UpstreamInvalid, match="it held a key"):
        await asyncio.wait_for(waiting, PATIENCE)
    call.release()
    assert engine.idle == 0


async def test_a_cut_is_raised_after_what_came_before_it(serve: Serve, engine: Engine) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED)
        await peer.send(chunk(b"half") + b"5\r\nwh")
        peer.close()

    taken: list[bytes] = []

    def take(data: bytes) -> bool:
        taken.append(data)
        return True

    call = await begun(engine, serve(script))
    with pytest.raises(UpstreamCut):
        await call.forward(take, MOST, PATIENCE)
    assert b"".join(taken) == b"halfwh"
    call.release()


async def test_silence_between_pieces_has_its_deadline(serve: Serve, engine: Engine) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED + chunk(b"one"))
        await peer.wait_gone()

    call = await begun(engine, serve(script))
    with pytest.raises(UpstreamTimeout):
        await asyncio.wait_for(call.forward(lambda _: True, MOST, 0.15), PATIENCE)
    call.release()
