"""What leaves is exactly what was given: no injected line, no byte too many, and no faster than upstream reads."""

from __future__ import annotations

import asyncio

import pytest

from fal_proxy.errors import UpstreamTimeout
from fal_proxy.headers import Headers
from fal_proxy.upstream import call as call_module
from fal_proxy.upstream.connection import HIGH_WATER_BYTES
from fal_proxy.upstream.engine import Engine
from support.peers import OK, PATIENCE, Peer, Serve


async def echo(peer: Peer) -> None:
    """Record everything; answer nothing."""
    await peer.wait_gone()


INJECTIONS: list[tuple[str, bytes, Headers]] = [
    ("CR in a name", b"/", [(b"x\ry", b"1")]),
    ("LF in a name", b"/", [(b"x\ny", b"1")]),
    ("NUL in a name", b"/", [(b"x\0y", b"1")]),
    ("CR in a value", b"/", [(b"x", b"1\r")]),
    ("LF in a value", b"/", [(b"x", b"1\n")]),
    ("CRLF and a field in a value", b"/", [(b"x", b"1\r\nhost: evil")]),
    ("NUL in a value", b"/", [(b"x", b"1\x002")]),
    ("CR in the target", b"/\r", []),
    ("LF in the target", b"/\n", []),
    ("NUL in the target", b"/\0", []),
    ("a request in the target", b"/ HTTP/1.1\r\nhost: evil\r\n\r\nGET /", []),
    ("a space in the target", b"/a b", []),
]


@pytest.mark.parametrize(("reason", "target", "headers"), INJECTIONS, ids=[row[0] for row in INJECTIONS])
async def test_bytes_that_would_change_the_framing_are_refused_unwritten(
    reason: str, target: bytes, headers: Headers, serve: Serve, engine: Engine
) -> None:
    upstream = serve(echo)
    call = await engine.open(upstream.origin)
    with pytest.raises(ValueError):
        call.start(b"GET", target, headers, length=0)
    call.release()
    assert not call.written, reason
    assert (await upstream.left()).received == b""


async def test_a_request_is_on_the_wire_as_it_was_given_host_first(serve: Serve, engine: Engine) -> None:
    upstream = serve(echo)
    call = await engine.open(upstream.origin)
    headers = [(b"b", b"2"), (b"a", b"1"), (b"b", b"caf\xe9"), (b"authorization", b"Key k")]
    call.start(b"PUT", b"/p%20q?x=%2F..", headers, length=6, body=b"ab")
    call.write(b"")
    call.write(b"cd")
    done_early = call.request_done
    call.write(b"ef")
    call.finish()
    assert (done_early, call.request_done) == (False, True)
    expected = (
        b"PUT /p%%20q?x=%%2F.. HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nb: 2\r\na: 1\r\nb: caf\xe9\r\n"
        b"authorization: Key k\r\ncontent-length: 6\r\n\r\nabcdef" % upstream.port
    )
    assert await (await upstream.peer()).arrived(len(expected)) == expected
    call.release()


@pytest.mark.parametrize(
    ("method", "length", "field"),
    [
        (b"GET", 0, b""),
        (b"HEAD", 0, b""),
        (b"POST", 0, b"content-length: 0\r\n"),
        (b"DELETE", 0, b"content-length: 0\r\n"),
        (b"POST", None, b"transfer-encoding: chunked\r\n"),
    ],
)
async def test_a_request_announces_its_body_in_one_way(
    method: bytes, length: int | None, field: bytes, serve: Serve, engine: Engine
) -> None:
    upstream = serve(echo)
    call = await engine.open(upstream.origin)
    call.start(method, b"/", [], length=length)
    expected = method + b" / HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n" % upstream.port + field + b"\r\n"
    assert await (await upstream.peer()).arrived(len(expected)) == expected
    assert call.request_done == (length == 0)
    call.release()


async def test_a_chunked_upload_is_framed_exactly_and_ends_once(serve: Serve, engine: Engine) -> None:
    upstream = serve(echo)
    call = await engine.open(upstream.origin)
    call.start(b"POST", b"/", [], length=None, body=b"first")
    call.write(b"")
    call.write(b"x" * 16)
    call.finish()
    call.finish()
    with pytest.raises(ValueError):
        call.write(b"late")
    call.release()
    _, _, body = bytes((await upstream.left()).received).partition(b"\r\n\r\n")
    assert body in (b"5\r\nfirst\r\n10\r\n" + b"x" * 16 + b"\r\n0\r\n\r\n", b"")  # a release aborts what is unsent


async def test_more_bytes_than_announced_are_refused(serve: Serve, engine: Engine) -> None:
    upstream = serve(echo)
    call = await engine.open(upstream.origin)
    with pytest.raises(ValueError):
        call.start(b"POST", b"/", [], length=2, body=b"123")
    assert not call.written
    call.start(b"POST", b"/", [], length=2, body=b"1")
    with pytest.raises(ValueError):
        call.write(b"23")
    call.write(b"2")
    call.finish()
    with pytest.raises(ValueError):
        call.write(b"3")
    assert (await (await upstream.peer()).arrived(60)).endswith(b"content-length: 2\r\n\r\n12")
    call.release()


async def test_fewer_bytes_than_announced_are_refused_and_the_connection_ends(serve: Serve, engine: Engine) -> None:
    upstream = serve(lambda peer: peer.answer())
    call = await engine.open(upstream.origin)
    call.start(b"POST", b"/", [], length=2, body=b"1")
    with pytest.raises(ValueError):
        call.finish()
    await call.head(PATIENCE)
    call.release()
    assert not call.request_done
    assert engine.idle == 0


async def test_nothing_can_be_written_before_the_head(serve: Serve, engine: Engine) -> None:
    call = await engine.open(serve(echo).origin)
    with pytest.raises(ValueError):
        call.write(b"x")
    call.release()
    assert not call.written


async def test_an_upstream_that_does_not_read_pauses_the_writer_and_times_out(
    serve: Serve, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await asyncio.Event().wait()

    monkeypatch.setattr(call_module, "WRITE_SECONDS", 0.1)
    call = await engine.open(serve(script).origin)
    call.start(b"POST", b"/", [], length=None)

    async def upload() -> None:
        while True:
            call.write(b"x" * (1 << 18))
            if call.write_paused:
                await call.drained()

    with pytest.raises(UpstreamTimeout) as raised:
        await upload()
    assert raised.value.written
    with pytest.raises(UpstreamTimeout):
        await call.head(PATIENCE)
    call.release()
    assert engine.idle == 0


async def test_a_writer_that_waits_is_woken_when_upstream_reads_again(serve: Serve, engine: Engine) -> None:
    go = asyncio.Event()
    size = 32 << 20

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await go.wait()
        body = await peer.read(size)
        assert body == bytes(size)
        await peer.send(OK)
        await peer.wait_gone()

    call = await engine.open(serve(script).origin)
    call.start(b"POST", b"/", [], length=size)
    for _ in range(32):
        call.write(bytes(1 << 20))
    assert call.write_paused
    go.set()
    await call.drained()
    call.finish()
    assert (await call.head(PATIENCE)).status == 200
    assert await call.read(PATIENCE) == b"ok"
    assert await call.read(PATIENCE) == b""
    call.release()
    assert engine.idle == 1


async def test_a_reader_that_does_not_read_stops_the_socket(serve: Serve, engine: Engine) -> None:
    size = 64 << 20
    block = bytes(range(256)) * 4096
    sent = 0
    full = asyncio.Event()

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.answer(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while sent < size:
            sending = asyncio.ensure_future(peer.send(block))
            done, _ = await asyncio.wait([sending], timeout=0.1)
            if not done:
                full.set()
            await sending
            sent += len(block)
        await peer.wait_gone()

    call = await engine.open(serve(script).origin)
    call.start(b"GET", b"/", [], length=0)
    await call.head(PATIENCE)
    await asyncio.wait_for(full.wait(), PATIENCE)
    assert sent < size
    first = await call.read(PATIENCE)
    assert HIGH_WATER_BYTES < len(first) <= HIGH_WATER_BYTES + (1 << 18)
    total, data = 0, first
    while data:
        offset = total % 256
        assert data == (block * 2)[offset : offset + len(data)]
        total += len(data)
        data = await call.read(PATIENCE)
    call.release()
    assert total == size
    assert engine.idle == 1
