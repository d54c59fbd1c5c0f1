"""TLS upstream: who is believed, how long a handshake may take, and that a forged end of stream is no end."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

import pytest

from fal_proxy.errors import ClientGone, ConnectError, ConnectTimeout, UpstreamCut
from fal_proxy.upstream.engine import Engine
from support.certificates import server_context, stranger
from support.dialled import NAME, dialer, origin
from support.peers import PATIENCE, Peer, Serve, exchange, turns

UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nto the end"

MakeEngine = Callable[..., Engine]


VERSIONS = pytest.mark.parametrize("tls12", [False, True], ids=["TLS1.3", "TLS1.2"])


@VERSIONS
async def test_a_good_certificate_carries_exchanges_on_one_connection(
    tls12: bool, serve: Serve, make_engine: MakeEngine
) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer()
        await peer.answer()
        await peer.wait_gone()

    upstream = serve(script, tls=server_context(NAME, tls12=tls12))
    engine = make_engine(dialer(upstream))
    first = await exchange(engine, origin(upstream))
    second = await exchange(engine, origin(upstream))
    assert (first.body, second.body) == (b"ok", b"ok")
    assert second.call.reused
    assert b"host: fal.test:%d\r\n" % upstream.port in upstream.peers[0].received


BAD: list[tuple[str, Callable[[], ssl.SSLContext], str]] = [
    ("a certificate for another name", lambda: server_context("evil.test"), "Hostname mismatch"),
    ("a certificate of an unknown CA", lambda: server_context(NAME, ca=stranger()), "unable to get local issuer"),
    ("an expired certificate", lambda: server_context(NAME, expired=True), "expired"),
]


@pytest.mark.parametrize(("reason", "context", "text"), BAD, ids=[row[0] for row in BAD])
async def test_a_certificate_that_does_not_verify_is_a_connect_error(
    reason: str, context: Callable[[], ssl.SSLContext], text: str, serve: Serve, make_engine: MakeEngine
) -> None:
    upstream = serve(lambda peer: peer.wait_gone(), tls=context())
    with pytest.raises(ConnectError, match=text) as raised:
        await make_engine(dialer(upstream)).open(origin(upstream))
    assert not raised.value.written, reason


async def test_the_certificate_must_hold_for_the_name_and_not_for_the_address(
    serve: Serve, make_engine: MakeEngine
) -> None:
    upstream = serve(lambda peer: peer.wait_gone(), tls=server_context("127.0.0.1"))
    with pytest.raises(ConnectError, match="mismatch"):
        await make_engine(dialer(upstream)).open(origin(upstream))


async def test_plain_http_on_the_tls_port_is_a_connect_error(serve: Serve, make_engine: MakeEngine) -> None:
    upstream = serve(lambda peer: peer.send(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"))
    with pytest.raises(ConnectError, match="TLS failed"):
        await make_engine(dialer(upstream)).open(origin(upstream))


@pytest.mark.parametrize("ending", ["fin", "reset"])
async def test_a_peer_that_leaves_in_the_handshake_is_a_connect_error(
    ending: str, serve: Serve, make_engine: MakeEngine
) -> None:
    async def script(peer: Peer) -> None:
        await peer.read(100)
        (peer.half_close if ending == "fin" else peer.reset)()

    upstream = serve(script)
    with pytest.raises(ConnectError):
        await make_engine(dialer(upstream)).open(origin(upstream))


async def test_a_peer_that_stalls_in_the_handshake_is_a_connect_timeout(serve: Serve, make_engine: MakeEngine) -> None:
    upstream = serve(lambda peer: peer.wait_gone())
    with pytest.raises(ConnectTimeout) as raised:
        await make_engine(dialer(upstream, 0.2)).open(origin(upstream))
    assert not raised.value.written
    await upstream.left()


async def test_cancelling_a_stalled_handshake_leaves_no_socket(serve: Serve, make_engine: MakeEngine) -> None:
    upstream = serve(lambda peer: peer.wait_gone())
    opening = asyncio.ensure_future(make_engine(dialer(upstream)).open(origin(upstream)))
    peer = await upstream.peer()
    await peer.arrived(100)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await upstream.left()


@VERSIONS
async def test_close_notify_is_the_clean_end_of_a_close_delimited_body(
    tls12: bool, serve: Serve, make_engine: MakeEngine
) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(UNTIL_CLOSE)
        await peer.close_notify()
        await peer.wait_gone()

    upstream = serve(script, tls=server_context(NAME, tls12=tls12))
    outcome = await exchange(make_engine(dialer(upstream)), origin(upstream))
    assert outcome.error is None
    assert outcome.body == b"to the end"


@VERSIONS
@pytest.mark.parametrize("ending", ["fin", "reset"])
@pytest.mark.parametrize("size", [10, 1 << 20])
async def test_an_end_without_close_notify_is_a_cut(
    size: int, ending: str, tls12: bool, serve: Serve, make_engine: MakeEngine
) -> None:
    seen = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(size))
        await seen.wait()
        (peer.half_close if ending == "fin" else peer.reset)()

    upstream = serve(script, tls=server_context(NAME, tls12=tls12))
    call = await make_engine(dialer(upstream)).open(origin(upstream))
    call.start(b"GET", b"/", [], length=0)
    await call.head(PATIENCE)
    total = 0
    while total < size:
        total += len(await call.read(PATIENCE))
    seen.set()
    with pytest.raises(UpstreamCut) as raised:
        await call.read(PATIENCE)
    call.release()
    assert raised.value.written


@pytest.mark.parametrize("clean", [True, False], ids=["close_notify", "fin"])
async def test_a_reader_that_lags_behind_reads_everything_before_a_clean_end_and_sees_any_other(
    clean: bool, serve: Serve, make_engine: MakeEngine
) -> None:
    size = 8 << 20

    async def script(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(size >> 18):
            await peer.send(bytes(1 << 18))
        if clean:
            await peer.close_notify()
        peer.half_close()
        await peer.wait_gone()

    upstream = serve(script, tls=server_context(NAME))
    call = await make_engine(dialer(upstream)).open(origin(upstream))
    call.start(b"GET", b"/", [], length=0)
    await call.head(PATIENCE)
    total = 0
    try:
        while total < size:
            total += len(await call.read(PATIENCE))
            await turns(5)
        assert await call.read(PATIENCE) == b""
    except UpstreamCut:
        assert not clean
        # An end that TLS does not vouch for may come before what uvloop has not decrypted yet, on a busy machine.
        assert total <= size
    else:
        assert clean
        assert total == size
    call.release()


async def test_an_idle_tls_connection_that_upstream_closes_is_not_reused(serve: Serve, make_engine: MakeEngine) -> None:
    go, done = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.answer()
        await go.wait()
        await peer.close_notify()
        done.set()
        await peer.wait_gone()

    async def second(peer: Peer) -> None:
        await peer.answer()
        await peer.wait_gone()

    upstream = serve(script, second, tls=server_context(NAME))
    engine = make_engine(dialer(upstream))
    await exchange(engine, origin(upstream))
    assert engine.idle == 1
    go.set()
    await done.wait()
    outcome = await exchange(engine, origin(upstream))
    assert outcome.body == b"ok"
    assert not outcome.call.reused


async def test_abort_ends_a_tls_connection_at_once(serve: Serve, make_engine: MakeEngine) -> None:
    async def script(peer: Peer) -> None:
        await peer.wait_gone()

    upstream = serve(script, tls=server_context(NAME))
    call = await make_engine(dialer(upstream)).open(origin(upstream))
    call.start(b"GET", b"/", [], length=0)
    waiting = asyncio.ensure_future(call.head(PATIENCE))
    await asyncio.sleep(0)
    call.abort(ClientGone())
    with pytest.raises(ClientGone):
        await waiting
    async with asyncio.timeout(0.1):
        await upstream.left()
    call.release()
