"""Whoever stops waiting stops at once, leaves no socket behind, and disturbs nobody else."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable, Coroutine

import pytest

from fal_proxy.errors import ClientGone
from fal_proxy.upstream.call import Call
from fal_proxy.upstream.dial import Address, Dialer, Origin
from fal_proxy.upstream.engine import Engine
from support.peers import OK, PATIENCE, Peer, Serve, exchange, turns

MakeEngine = Callable[..., Engine]


async def silent(peer: Peer) -> None:
    """Read everything, say nothing."""
    await peer.wait_gone()


async def stalled_upload(peer: Peer) -> None:
    """Read nothing until the other side has had time to fill the socket."""
    await peer.read_head()
    await asyncio.Event().wait()


async def half_an_answer(peer: Peer) -> None:
    """Answer with the head and the first half of the body."""
    await peer.answer(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nha")
    await peer.wait_gone()


async def wait_for_head(call: Call) -> object:
    """Wait for a head that does not come."""
    return await call.head(PATIENCE)


async def wait_for_body(call: Call) -> object:
    """Wait for the second half of a body."""
    await call.head(PATIENCE)
    await call.read(PATIENCE)
    return await call.read(PATIENCE)


async def wait_for_drain(call: Call) -> object:
    """Wait for an upstream that does not read."""
    while True:
        call.write(b"x" * (1 << 20))
        await call.drained()


WAITS = pytest.mark.parametrize(
    ("wait", "script"),
    [(wait_for_head, silent), (wait_for_body, half_an_answer), (wait_for_drain, stalled_upload)],
    ids=["head", "read", "drained"],
)
Wait = Callable[[Call], Coroutine[object, object, object]]


async def waiting_call(engine: Engine, origin: Origin, wait: Wait) -> tuple[Call, asyncio.Task[object]]:
    """Return a call and a task that is certain to hang in one of its awaits."""
    call = await engine.open(origin)
    call.start(b"POST", b"/", [], length=None)
    if wait is not wait_for_drain:
        call.finish()
    task = asyncio.get_running_loop().create_task(wait(call))
    await turns(40)
    assert not task.done()
    assert call.answered == (wait is wait_for_body)
    return call, task


async def left(peer: Peer) -> None:
    """Return when the other side has ended, though its script does not read."""
    if not peer.gone.is_set():
        await peer.wait_gone()


@WAITS
async def test_a_cancelled_wait_ends_at_once_and_its_release_closes_the_connection(
    wait: Wait, script: Callable[[Peer], Coroutine[object, object, None]], serve: Serve, engine: Engine
) -> None:
    async def good(peer: Peer) -> None:
        await peer.answer()
        await peer.wait_gone()

    upstream = serve(script, good)
    call, task = await waiting_call(engine, upstream.origin, wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(0.1):
            await task
    call.release()
    assert engine.idle == 0
    async with asyncio.timeout(0.5):
        await left(upstream.peers[0])
    assert (await exchange(engine, upstream.origin)).body == b"ok"


@WAITS
async def test_abort_wakes_whoever_waits_with_its_error_and_ends_the_connection(
    wait: Wait, script: Callable[[Peer], Coroutine[object, object, None]], serve: Serve, engine: Engine
) -> None:
    upstream = serve(script)
    call, task = await waiting_call(engine, upstream.origin, wait)
    gone = ClientGone()
    call.abort(gone)
    with pytest.raises(ClientGone) as raised:
        async with asyncio.timeout(0.1):
            await task
    assert raised.value is gone
    async with asyncio.timeout(0.1):
        await left(upstream.peers[0])
    with pytest.raises(ClientGone):
        call.write(b"x")
    with pytest.raises(ClientGone):
        await call.drained()
    call.release()
    assert engine.idle == 0


async def test_abort_is_raised_even_when_an_answer_lies_ready(serve: Serve, engine: Engine) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(OK)
        await peer.wait_gone()

    upstream = serve(script)
    call = await engine.open(upstream.origin)
    call.start(b"GET", b"/", [], length=0)
    await turns()
    assert call.answered
    call.abort(ClientGone())
    with pytest.raises(ClientGone):
        await call.head(PATIENCE)
    with pytest.raises(ClientGone):
        await call.read(PATIENCE)
    async with asyncio.timeout(0.1):
        await upstream.left()
    call.release()
    call.abort(ClientGone())
    assert engine.idle == 0


async def test_abort_before_the_request_lets_nothing_leave(serve: Serve, engine: Engine) -> None:
    upstream = serve(silent)
    call = await engine.open(upstream.origin)
    call.abort(ClientGone())
    with pytest.raises(ClientGone):
        call.start(b"POST", b"/", [], length=1, body=b"x")
    call.release()
    assert not call.written
    assert (await upstream.left()).received == b""


async def test_a_cancelled_name_resolution_dials_nobody(serve: Serve, make_engine: MakeEngine) -> None:
    asked = asyncio.Event()

    async def resolver(host: str, port: int) -> list[Address]:
        asked.set()
        await asyncio.Event().wait()
        return []

    upstream = serve(silent)
    opening = asyncio.ensure_future(make_engine(Dialer(PATIENCE, resolver=resolver)).open(upstream.origin))
    await asked.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert upstream.peers == []


async def test_a_cancelled_connect_leaves_no_socket(make_engine: MakeEngine) -> None:
    # A full backlog swallows the handshake of TCP: the connect hangs until it is cancelled.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, socket.socket() as filler:
        filler.connect(listener.getsockname())
        origin = Origin("http", "127.0.0.1", listener.getsockname()[1], trusted=True)
        opening = asyncio.ensure_future(make_engine().open(origin))
        done, _ = await asyncio.wait([opening], timeout=0.1)
        assert not done
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(0.1):
                await opening


@pytest.mark.parametrize("rounds", range(8))
async def test_a_cancellation_in_any_round_of_a_connect_leaves_no_socket(
    rounds: int, serve: Serve, engine: Engine
) -> None:
    upstream = serve(silent)
    opening = asyncio.ensure_future(engine.open(upstream.origin))
    await turns(rounds)
    opening.cancel()
    try:
        (await opening).release()
    except asyncio.CancelledError:
        pass
    await turns()
    for peer in upstream.peers:
        async with asyncio.timeout(PATIENCE):
            await peer.gone.wait()


async def test_a_thousand_cancelled_calls_leave_the_engine_as_it_was(serve: Serve, engine: Engine) -> None:
    async def script(peer: Peer) -> None:
        request = await peer.read_head()
        if b"/path" in request:
            await peer.send(OK)
        await peer.wait_gone()

    upstream = serve(script)
    await exchange(engine, upstream.origin)

    async def hang() -> None:
        call = await engine.open(upstream.origin)
        try:
            call.start(b"GET", b"/hang", [], length=0)
            await call.head(PATIENCE)
        finally:
            call.release()

    for _ in range(10):
        tasks = [asyncio.ensure_future(hang()) for _ in range(100)]
        await turns(10)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)

    assert engine.idle == 0
    assert (await exchange(engine, upstream.origin)).body == b"ok"
    assert engine.idle == 1
    gc.collect()  # what was never awaited or retrieved would warn here, and a warning is an error


async def test_two_tasks_may_upload_and_wait_for_the_head_at_once(serve: Serve, engine: Engine) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_to(b"0\r\n\r\n")
        await peer.send(OK)
        await peer.wait_gone()

    call = await engine.open(serve(script).origin)
    call.start(b"POST", b"/", [], length=None)

    async def upload() -> None:
        for _ in range(50):
            call.write(b"x" * 100_000)
            await call.drained()
        call.finish()

    uploading = asyncio.ensure_future(upload())
    assert (await call.head(PATIENCE)).status == 200
    await uploading
    assert await call.read(PATIENCE) == b"ok"
    assert await call.read(PATIENCE) == b""
    call.release()
    assert engine.idle == 1
