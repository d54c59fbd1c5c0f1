"""A connection may end in every phase of an exchange: what is raised, what it says was sent, what was delivered before."""

from __future__ import annotations

import asyncio
import socket
from typing import NamedTuple

import pytest

from fal_proxy.errors import ConnectError, UpstreamCut, UpstreamInvalid
from fal_proxy.upstream.dial import Origin
from fal_proxy.upstream.engine import Engine
from support.peers import PATIENCE, Peer, Serve, exchange

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
ENDINGS = ["fin", "reset", "half-close"]


class Cut(NamedTuple):
    """How far an answer gets before its connection ends."""

    reason: str
    sent: bytes
    body: bytes | None = b""  # None: not even the head is whole


CUTS = [
    Cut("before the head", b"", None),
    Cut("mid status line", b"HTTP/1.1 20", None),
    Cut("mid head", b"HTTP/1.1 200 OK\r\ncontent-le", None),
    Cut("after an interim answer", b"HTTP/1.1 100 Continue\r\n\r\n", None),
    Cut("before the first content byte", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n"),
    Cut("mid content-length", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n123456789", b"123456789"),
    Cut("mid chunk size", CHUNKED + b"2\r\nok\r\n1", b"ok"),
    Cut("mid chunk extension", CHUNKED + b"2\r\nok\r\n1;a", b"ok"),
    Cut("mid chunk", CHUNKED + b"2\r\nok\r\na\r\n12345", b"ok12345"),
    Cut("after a chunk", CHUNKED + b"2\r\nok\r\n", b"ok"),
    Cut("before the last empty line", CHUNKED + b"2\r\nok\r\n0\r\n", b"ok"),
    Cut("mid trailer", CHUNKED + b"2\r\nok\r\n0\r\nx-su", b"ok"),
]


def end(peer: Peer, ending: str) -> None:
    """End a connection in one of three ways."""
    {"fin": peer.close, "reset": peer.reset, "half-close": peer.half_close}[ending]()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("case", CUTS, ids=lambda case: case.reason.replace(" ", "-"))
async def test_what_arrived_before_a_cut_is_delivered_before_the_error(
    case: Cut, ending: str, serve: Serve, engine: Engine
) -> None:
    seen = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.answer(case.sent)
        await seen.wait()
        end(peer, ending)
        if ending == "half-close":
            await peer.wait_gone()

    call = await engine.open(serve(script).origin)
    call.start(b"GET", b"/", [], length=0)
    body = b""
    if case.body is not None:
        assert (await call.head(PATIENCE)).status == 200
        while len(body) < len(case.body):
            body += await call.read(PATIENCE)
        assert body == case.body
    seen.set()
    with pytest.raises(UpstreamCut) as raised:
        await (call.head(PATIENCE) if case.body is None else call.read(PATIENCE))
    call.release()
    assert raised.value.written
    assert engine.idle == 0


@pytest.mark.parametrize("case", [case for case in CUTS if case.body], ids=lambda case: case.reason.replace(" ", "-"))
async def test_bytes_that_arrive_together_with_the_fin_are_delivered(case: Cut, serve: Serve, engine: Engine) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(case.sent)
        peer.close()

    outcome = await exchange(engine, serve(script).origin)
    assert outcome.body == case.body
    assert isinstance(outcome.error, UpstreamCut)


async def test_a_refused_connection_is_a_connect_error_and_nothing_was_written(engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectError) as raised:
        await engine.open(Origin("http", "127.0.0.1", port, trusted=True))
    assert not raised.value.written


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_connection_that_ends_before_the_request_says_that_nothing_was_written(
    ending: str, serve: Serve, engine: Engine
) -> None:
    go, gone = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await go.wait()
        end(peer, ending)
        gone.set()
        if ending == "half-close":
            await peer.wait_gone()

    upstream = serve(script)
    call = await engine.open(upstream.origin)
    go.set()
    await gone.wait()
    with pytest.raises(UpstreamCut) as raised:
        await call.head(PATIENCE)
    assert not raised.value.written
    with pytest.raises(UpstreamCut) as raised:
        call.start(b"POST", b"/", [], length=2, body=b"ok")
    call.release()
    assert not raised.value.written
    assert not call.written
    assert upstream.peers[0].received == b""


@pytest.mark.parametrize("ending", ["fin", "reset"])
async def test_a_connection_that_ends_as_soon_as_it_is_accepted_is_never_mistaken_for_silence(
    ending: str, serve: Serve, engine: Engine
) -> None:
    async def script(peer: Peer) -> None:
        end(peer, ending)

    upstream = serve(script)
    for _ in range(20):
        try:
            outcome = await exchange(engine, upstream.origin)
        except ConnectError:
            continue
        assert isinstance(outcome.error, UpstreamCut)
        assert outcome.error.written == outcome.call.written


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_connection_that_ends_amid_the_upload_wakes_the_writer(
    ending: str, serve: Serve, engine: Engine
) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.read(1000)
        end(peer, ending)
        if ending == "half-close":
            await asyncio.Event().wait()

    call = await engine.open(serve(script).origin)
    call.start(b"POST", b"/", [], length=1 << 30, body=b"x" * 1000)

    async def upload() -> None:
        while True:
            call.write(b"x" * (1 << 20))
            await call.drained()

    with pytest.raises(UpstreamCut) as raised:
        await upload()
    assert raised.value.written
    with pytest.raises(UpstreamCut):
        await call.head(PATIENCE)
    assert not call.write_paused
    call.release()
    assert engine.idle == 0


async def test_bytes_before_the_request_are_no_answer_to_it(serve: Serve, engine: Engine) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 503 Full\r\ncontent-length: 0\r\n\r\n")
        await peer.wait_gone()

    upstream = serve(script)
    call = await engine.open(upstream.origin)
    with pytest.raises((UpstreamCut, UpstreamInvalid)):
        await call.head(PATIENCE)
    with pytest.raises((UpstreamCut, UpstreamInvalid)) as raised:
        call.start(b"POST", b"/", [], length=2, body=b"ok")
    call.release()
    assert not raised.value.written
    assert (await upstream.left()).received == b""
