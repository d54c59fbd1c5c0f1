"""Every way in which HTTP/1.1 delimits an answer is read to its end and not a byte further."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from fal_proxy.errors import UpstreamCut
from fal_proxy.upstream.engine import Engine
from support.peers import OK, Peer, Serve, exchange

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Framing(NamedTuple):
    """One answer on the wire, what it means, and whether the connection may be kept."""

    reason: str
    wire: bytes
    status: int = 200
    body: bytes = b""
    method: bytes = b"GET"
    until_close: bool = False
    kept: bool = True


FRAMINGS = [
    Framing("content-length", OK, body=b"ok"),
    Framing("content-length 0", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
    Framing("no reason phrase", b"HTTP/1.1 200\r\ncontent-length: 1\r\n\r\nx", body=b"x"),
    Framing("chunked", CHUNKED + b"2\r\nok\r\n0\r\n\r\n", body=b"ok"),
    Framing("chunked without a body", CHUNKED + b"0\r\n\r\n"),
    Framing("chunk sizes in hex of either case", CHUNKED + b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", body=b"0123456789" * 2),
    Framing("chunk extensions", CHUNKED + b'2;a=b;c="d"\r\nok\r\n0;e\r\n\r\n', body=b"ok"),
    Framing("trailers", CHUNKED + b"2\r\nok\r\n0\r\nx-sum: 1\r\nX-More: 2\r\n\r\n", body=b"ok"),
    Framing("close-delimited", b"HTTP/1.1 200 OK\r\n\r\nto the end", body=b"to the end", until_close=True, kept=False),
    Framing("close-delimited and empty", b"HTTP/1.1 200 OK\r\n\r\n", until_close=True, kept=False),
    Framing("one interim answer", b"HTTP/1.1 100 Continue\r\n\r\n" + OK, body=b"ok"),
    Framing(
        "several interim answers",
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 P\r\n\r\nHTTP/1.1 199 X\r\n\r\n" + OK,
        body=b"ok",
    ),
    Framing("204", b"HTTP/1.1 204 No Content\r\n\r\n", status=204),
    Framing("204 that announces content", b"HTTP/1.1 204 N\r\ncontent-length: 3\r\n\r\n", status=204, kept=False),
    Framing("304 with a content-length", b"HTTP/1.1 304 N\r\ncontent-length: 9\r\n\r\n", status=304),
    Framing("HEAD with a content-length", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", method=b"HEAD", kept=False),
    Framing("HEAD with chunked", CHUNKED, method=b"HEAD", kept=False),
    Framing("HTTP/1.0 with a length", b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", body=b"ok", kept=False),
    Framing("HTTP/1.0 kept alive", b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok", body=b"ok"),
    Framing("HTTP/1.0 to the end", b"HTTP/1.0 200 OK\r\n\r\nok", body=b"ok", until_close=True, kept=False),
    Framing("connection: close", b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", body=b"ok", kept=False),
    Framing("an error status", b"HTTP/1.1 599 X\r\ncontent-length: 2\r\n\r\nno", status=599, body=b"no"),
    Framing("an upgrade that is only offered", b"HTTP/1.1 200 OK\r\nupgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 2\r\n\r\nok", body=b"ok"),
]  # fmt: skip


def named(case: Framing) -> str:
    """Return a test id."""
    return case.reason.replace(" ", "-")


@pytest.mark.parametrize("case", FRAMINGS, ids=named)
@pytest.mark.parametrize("pace", ["at-once", "byte-by-byte"])
async def test_every_framing_is_read_to_its_end(case: Framing, pace: str, serve: Serve, engine: Engine) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await (peer.send(case.wire) if pace == "at-once" else peer.drip(case.wire))
        if case.until_close:
            peer.half_close()
        await peer.wait_gone()

    outcome = await exchange(engine, serve(script).origin, case.method)

    assert outcome.error is None
    assert outcome.head is not None
    assert outcome.head.status == case.status
    assert outcome.body == case.body
    assert engine.idle == case.kept


@pytest.mark.parametrize("case", [case for case in FRAMINGS if case.kept], ids=named)
async def test_a_kept_connection_carries_the_next_exchange(case: Framing, serve: Serve, engine: Engine) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(case.wire)
        await peer.answer(b"HTTP/1.1 201 Created\r\ncontent-length: 4\r\n\r\nnext")
        await peer.wait_gone()

    upstream = serve(script)
    await exchange(engine, upstream.origin, case.method)
    second = await exchange(engine, upstream.origin)

    assert second.call.reused
    assert second.head is not None
    assert (second.head.status, second.body) == (201, b"next")


async def test_header_fields_keep_their_order_repeats_and_bytes_with_lower_cased_names(
    serve: Serve, engine: Engine
) -> None:
    wire = b"HTTP/1.1 200 OK\r\nX-B: 1\r\nx-a:\r\nX-B:\t caf\xe9 2 \r\nContent-Length: 0\r\n\r\n"
    outcome = await exchange(engine, serve(lambda peer: peer.answer(wire)).origin)
    assert outcome.head is not None
    names = [name for name, _ in outcome.head.headers]
    values = [value.rstrip() for _, value in outcome.head.headers]
    assert names == [b"x-b", b"x-a", b"x-b", b"content-length"]
    assert values == [b"1", b"", b"caf\xe9 2", b"0"]


async def test_a_close_delimited_body_that_ends_by_reset_is_a_cut(serve: Serve, engine: Engine) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\n\r\nhalf of")
        peer.reset()

    outcome = await exchange(engine, serve(script).origin)
    assert outcome.body in (b"half of", b"")
    assert isinstance(outcome.error, UpstreamCut)
    assert outcome.error.written


async def test_an_answer_of_64_mib_arrives_whole(serve: Serve, engine: Engine) -> None:
    size = 64 << 20
    block = bytes(range(256)) * 4096

    async def script(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(size // len(block)):
            await peer.send(block)
        await peer.wait_gone()

    call = await engine.open(serve(script).origin)
    call.start(b"GET", b"/", [], length=0)
    await call.head(5)
    total = 0
    while data := await call.read(5):
        offset = total % 256
        assert data == (block + block)[offset : offset + len(data)]
        total += len(data)
    call.release()
    assert total == size
    assert engine.idle == 1
