"""A connection serves another request only after two clean ends; no byte of one exchange reaches the next."""

from __future__ import annotations

import asyncio

import pytest

from fal_proxy.errors import ClientGone, UpstreamCut, UpstreamError
from fal_proxy.upstream.engine import Engine
from support.peers import OK, PATIENCE, Peer, Serve, exchange

EVIL = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood"


async def good(peer: Peer) -> None:
    """Serve one clean exchange."""
    await peer.answer(GOOD)
    await peer.wait_gone()


@pytest.mark.parametrize("ending", ["fin", "reset"])
async def test_a_connection_that_upstream_closed_while_idle_is_not_reused(
    ending: str, serve: Serve, engine: Engine
) -> None:
    go, done = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.answer()
        await go.wait()
        (peer.close if ending == "fin" else peer.reset)()
        done.set()

    upstream = serve(script, good)
    await exchange(engine, upstream.origin)
    assert engine.idle == 1
    go.set()
    await done.wait()  # the engine's loop has had no turn to see the end: the socket itself is asked
    second = await exchange(engine, upstream.origin)
    assert not second.call.reused
    assert second.body == b"good"


@pytest.mark.parametrize("ending", ["fin", "reset"])
async def test_upstream_closing_at_the_moment_of_reuse_is_an_unanswered_cut(
    ending: str, serve: Serve, engine: Engine
) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer()
        await peer.read_head()
        (peer.close if ending == "fin" else peer.reset)()

    upstream = serve(script)
    await exchange(engine, upstream.origin)
    second = await exchange(engine, upstream.origin)
    assert isinstance(second.error, UpstreamCut)
    assert second.error.written
    assert second.call.reused
    assert not second.call.answered


@pytest.mark.parametrize("extra", [b"\r\n", b"x", EVIL])
async def test_bytes_on_an_idle_connection_close_it(extra: bytes, serve: Serve, engine: Engine) -> None:
    go, gone = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.answer()
        await go.wait()
        await peer.send(extra)
        await peer.wait_gone()
        gone.set()

    upstream = serve(script, good)
    await exchange(engine, upstream.origin)
    go.set()
    await asyncio.wait_for(gone.wait(), PATIENCE)
    second = await exchange(engine, upstream.origin)
    assert not second.call.reused
    assert second.body == b"good"


async def test_bytes_that_wait_unread_in_an_idle_socket_are_never_the_next_answer(serve: Serve, engine: Engine) -> None:
    go, sent = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.answer()
        await go.wait()
        await peer.send(EVIL)
        sent.set()
        await peer.wait_gone()

    upstream = serve(script, good)
    await exchange(engine, upstream.origin)
    go.set()
    await sent.wait()
    second = await exchange(engine, upstream.origin)
    assert second.body == b"good"
    assert not second.call.reused


ENDED = [
    (b"GET", OK, b"ok", "content-length"),
    (b"GET", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", b"ok", "chunked"),
    (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", b"", "204 with a body"),
    (b"GET", b"HTTP/1.1 204 No Content\r\ncontent-length: 80\r\n\r\n", b"", "204 with an announced body"),
    (b"GET", b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n", b"", "204 with a chunked body"),
    (b"GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 80\r\n\r\n", b"", "304 with a body"),
    (b"HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 80\r\n\r\n", b"", "HEAD with a body"),
    (b"HEAD", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"", "HEAD with a chunked body"),
]


@pytest.mark.parametrize("extra", [EVIL, b"garbage"], ids=["an answer", "garbage"])
@pytest.mark.parametrize("segment", ["same", "later"])
@pytest.mark.parametrize(("method", "wire", "body", "reason"), ENDED, ids=[row[3] for row in ENDED])
async def test_bytes_after_a_complete_answer_never_become_the_next_one(
    method: bytes, wire: bytes, body: bytes, reason: str, segment: str, extra: bytes, serve: Serve, engine: Engine
) -> None:
    read = asyncio.Event()

    async def script(peer: Peer) -> None:
        if segment == "same":
            await peer.answer(wire + extra)
        else:
            await peer.answer(wire)
            await read.wait()
            await peer.send(extra)
        await peer.wait_gone()

    upstream = serve(script, good)
    call = await engine.open(upstream.origin)
    call.start(method, b"/", [], length=0)
    await call.head(PATIENCE)
    received = b""
    while data := await call.read(PATIENCE):
        received += data
    read.set()
    if segment == "later":
        await asyncio.sleep(0)  # the extra bytes leave, and nobody has read them at the release
    call.release()
    assert received == body, reason
    second = await exchange(engine, upstream.origin)
    assert not second.call.reused, reason
    assert second.body == b"good", reason


async def test_an_answer_before_the_whole_upload_is_readable_and_its_connection_is_not_reused(
    serve: Serve, engine: Engine
) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await peer.wait_gone()

    upstream = serve(script, good)
    call = await engine.open(upstream.origin)
    call.start(b"POST", b"/", [], length=10, body=b"12345")
    assert (await call.head(PATIENCE)).status == 413
    assert await call.read(PATIENCE) == b"big"
    assert await call.read(PATIENCE) == b""
    call.write(b"678")
    call.release()
    assert engine.idle == 0
    await upstream.left()
    assert (await exchange(engine, upstream.origin)).body == b"good"


async def test_an_answer_that_was_not_read_to_its_end_closes_the_connection(serve: Serve, engine: Engine) -> None:
    upstream = serve(good)
    call = await engine.open(upstream.origin)
    call.start(b"GET", b"/", [], length=0)
    await call.head(PATIENCE)
    call.release()
    assert engine.idle == 0


async def test_a_stale_handle_cannot_touch_the_call_that_has_the_connection_now(serve: Serve, engine: Engine) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer()
        await peer.read_head()
        await peer.send(GOOD[:-2])
        await peer.read(4)
        await peer.send(GOOD[-2:])
        await peer.wait_gone()

    upstream = serve(script)
    stale = (await exchange(engine, upstream.origin)).call
    call = await engine.open(upstream.origin)
    assert call.reused
    call.start(b"POST", b"/second", [], length=4)
    await call.head(PATIENCE)

    stale.release()
    stale.abort(ClientGone())
    with pytest.raises(UpstreamError):
        stale.start(b"GET", b"/stale", [], length=0)
    with pytest.raises(UpstreamError):
        stale.write(b"stale")
    with pytest.raises(UpstreamError):
        await stale.drained()
    stale.finish()
    assert not stale.write_paused
    assert await stale.read(PATIENCE) == b""

    call.write(b"body")
    call.finish()
    body = b""
    while data := await call.read(PATIENCE):
        body += data
    call.release()
    call.release()
    assert body == b"good"
    assert engine.idle == 1
    received = bytes(upstream.peers[0].received)
    assert received.endswith(b"content-length: 4\r\n\r\nbody")
    assert b"stale" not in received


async def test_a_release_wakes_whoever_still_waits_and_their_clock_is_off(serve: Serve, engine: Engine) -> None:
    async def script(peer: Peer) -> None:
        await peer.wait_gone()

    call = await engine.open(serve(script).origin)
    call.start(b"GET", b"/", [], length=0)
    waiting = asyncio.ensure_future(call.head(PATIENCE))
    await asyncio.sleep(0)
    call.release()
    with pytest.raises(UpstreamCut, match="over"):
        await waiting


async def test_a_call_that_ends_after_the_engine_was_closed_keeps_no_connection(serve: Serve, engine: Engine) -> None:
    upstream = serve(good)
    call = await engine.open(upstream.origin)
    call.start(b"GET", b"/", [], length=0)
    while await call.read(PATIENCE):
        pass
    engine.close()
    call.release()
    assert engine.idle == 0
    await upstream.left()


async def test_fresh_opens_a_new_connection_beside_an_idle_one(serve: Serve, engine: Engine) -> None:
    upstream = serve(good)
    await exchange(engine, upstream.origin)
    call = await engine.open(upstream.origin, fresh=True)
    call.release()
    assert not call.reused
    assert engine.idle == 1
