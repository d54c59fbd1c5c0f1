"""Server-sent events: each is passed on when it comes, none is cut inside a character, and the end is the end."""

from __future__ import annotations

import asyncio

from support.peers import Peer, Serve
from support.proxied import MOUNT, StartProxy
from support.raw import raw_client, request
from support.scripts import read_request

STREAM = f"{MOUNT}/fal.run/fal-ai/any-llm/stream"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TEXT = 'data: {"output": "žluťoučký kůň 🐎 日本語"}\n\n'.encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_each_event_comes_down_before_upstream_says_the_next(serve: Serve, start: StartProxy) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await read_request(peer)
        await peer.send(HEAD)
        for number in range(20):
            await peer.send(_chunk(b"data: %d\r\n\r\n" % number))
            await go_on.wait()
            go_on.clear()
        await peer.send(_chunk(b": ping\n\n") + b"0\r\n\r\n")

    proxy = await start(serve(script))
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", STREAM, proxy.bearer, b"{}"))
        assert dict((await client.read_head())[1])[b"content-type"] == b"text/event-stream"
        for number in range(20):
            assert await asyncio.wait_for(client.read_chunk(), 5) == b"data: %d\r\n\r\n" % number
            go_on.set()
        assert await client.read_chunk() == b": ping\n\n", "comments are bytes like any other"
        assert await client.read_chunk() == b"", "the end of the stream is the end of the body"


async def test_no_chunk_ends_inside_a_character_wherever_the_network_cuts(serve: Serve, start: StartProxy) -> None:
    seen = asyncio.Event()

    async def script(peer: Peer) -> None:
        await read_request(peer)
        await peer.send(HEAD + b"%x\r\n" % len(TEXT))
        for value in TEXT:
            await peer.send(bytes([value]))
            await asyncio.sleep(0)
        seen.set()
        await peer.send(b"\r\n0\r\n\r\n")

    proxy = await start(serve(script))
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", STREAM, proxy.bearer, b"{}"))
        await client.read_head()
        chunks = []
        while chunk := await client.read_chunk():
            chunk.decode()
            chunks.append(chunk)
    assert b"".join(chunks) == TEXT
    assert len(chunks) > 1, "the network did cut"


async def test_character_that_upstream_never_finished_still_comes_down(serve: Serve, start: StartProxy) -> None:
    async def script(peer: Peer) -> None:
        await read_request(peer)
        await peer.send(HEAD + _chunk(b"data: \xf0\x9f") + b"0\r\n\r\n")

    proxy = await start(serve(script))
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", STREAM, proxy.bearer, b"{}"))
        answer = await client.answer()
    assert (answer.body, answer.complete) == (b"data: \xf0\x9f", True)


async def test_other_content_types_are_not_held_back_by_a_single_byte(serve: Serve, start: StartProxy) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await read_request(peer)
        await peer.send(HEAD.replace(b"text/event-stream", b"audio/mpeg") + _chunk(b"abc\xf0"))
        await go_on.wait()
        await peer.send(_chunk(b"\x9f") + b"0\r\n\r\n")

    proxy = await start(serve(script))
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", STREAM, proxy.bearer, b"{}"))
        await client.read_head()
        assert await asyncio.wait_for(client.read_chunk(), 5) == b"abc\xf0"
        go_on.set()
        assert (await client.read_chunk(), await client.read_chunk()) == (b"\x9f", b"")


async def test_events_that_nobody_reads_hold_upstream_back_and_none_is_lost(serve: Serve, start: StartProxy) -> None:
    count, said = 200_000, 0

    async def script(peer: Peer) -> None:
        nonlocal said
        await read_request(peer)
        await peer.send(HEAD)
        for number in range(0, count, 100):
            await peer.send(b"".join(_chunk(b"data: %064d\n\n" % (number + each)) for each in range(100)))
            said = number + 100
        await peer.send(b"0\r\n\r\n")

    proxy = await start(serve(script))
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", STREAM, proxy.bearer, b"{}"))
        await client.read_head()
        async with asyncio.timeout(20):
            before = -1
            while said != before:  # until upstream could not go on for a while
                before = said
                await asyncio.sleep(0.3)
        assert said < count, "upstream waits for the caller"
        pieces = []
        while piece := await asyncio.wait_for(client.read_chunk(), 20):
            pieces.append(piece)
    assert b"".join(pieces) == b"".join(b"data: %064d\n\n" % number for number in range(count))
