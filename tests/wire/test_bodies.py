"""Request bodies on their way up: what is read first, what streams, what is refused before anything is dialled."""

from __future__ import annotations

import asyncio
import random

import pytest

from fal_proxy.settings import Settings
from support.peers import Peer, Serve
from support.proxied import MOUNT, StartProxy, with_server
from support.raw import raw_client, request
from support.scripts import answering, ok, read_request

RUN = f"{MOUNT}/fal.run/fal-ai/flux/dev"
BIG = random.Random(1).randbytes(3 * 1024 * 1024)
CHUNKED = ("Transfer-Encoding", "chunked")


def _chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 256 * 1024 + 1, len(BIG)])
async def test_body_with_a_length_arrives_whole_and_with_the_same_length(
    size: int, serve: Serve, start: StartProxy
) -> None:
    received: list[tuple[bytes, bytes]] = []

    async def script(peer: Peer) -> None:
        received.append(await read_request(peer))
        await peer.send(ok())

    proxy = await start(serve(script))
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", RUN, proxy.bearer, BIG[:size]))
        assert (await client.answer()).status == 200
    head, body = received[0]
    assert body == BIG[:size]
    assert b"content-length: %d\r\n" % size in head


@pytest.mark.parametrize(
    ("size", "framing"), [(1000, b"content-length: 1000\r\n"), (len(BIG), b"transfer-encoding: chunked\r\n")]
)
async def test_chunked_body_arrives_whole_and_is_measured_when_it_was_read_whole(
    size: int, framing: bytes, serve: Serve, start: StartProxy
) -> None:
    received: list[tuple[bytes, bytes]] = []

    async def script(peer: Peer) -> None:
        received.append(await read_request(peer))
        await peer.send(ok())

    proxy = await start(serve(script))
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", RUN, [CHUNKED, *proxy.bearer.items()]) + _chunks(BIG[:size]))
        assert (await client.answer()).status == 200
    head, body = received[0]
    assert body == BIG[:size]
    assert framing in head


async def test_post_without_length_or_chunking_has_no_body(serve: Serve, start: StartProxy) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", RUN, proxy.bearer))
        assert (await client.answer()).status == 200
    assert b"content-length: 0\r\n" in bytes(upstream.peers[0].received)


async def test_cancel_and_reads_send_no_body_whatever_the_caller_adds(serve: Serve, start: StartProxy) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    queue = f"{MOUNT}/queue.fal.run/fal-ai/flux/requests/abc"
    async with raw_client(proxy.port) as client:
        await client.send(request("PUT", f"{queue}/cancel", proxy.bearer, b'{"a":1}'))
        assert (await client.answer()).status == 200
        await client.send(request("GET", f"{queue}/status", proxy.bearer, b'{"a":1}'))
        assert (await client.answer()).status == 200
    received = bytes(upstream.peers[0].received)
    assert b'{"a":1}' not in received
    assert b"GET /queue.fal.run/fal-ai/flux/requests/abc/status HTTP/1.1\r\n" in received


async def test_half_a_body_never_reaches_upstream(serve: Serve, start: StartProxy) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    async with raw_client(proxy.port) as client:
        await client.send(
            request("POST", RUN, [("Content-Length", "100"), *proxy.bearer.items()]) + b'{"prompt": "half'
        )
    async with raw_client(proxy.port) as client:  # a whole one behind it shows that nothing else was dialled
        await client.send(request("POST", RUN, proxy.bearer, b"{}"))
        assert (await client.answer()).status == 200
    assert len(upstream.peers) == 1
    assert b"half" not in bytes(upstream.peers[0].received)


async def test_body_over_the_cap_is_413_before_anything_is_dialled(
    serve: Serve, start: StartProxy, settings: Settings
) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream, with_server(settings, max_body_bytes=1000))
    for framed in (
        request("POST", RUN, [("Content-Length", "1001"), *proxy.bearer.items()]),
        request("POST", RUN, [CHUNKED, *proxy.bearer.items()]) + _chunks(b"x" * 600, b"x" * 401),
    ):
        async with raw_client(proxy.port) as client:
            await client.send(framed)
            answer = await client.answer()
            assert (answer.status, answer.one(b"x-fal-error-type")) == (413, b"body_too_large")
    assert not upstream.peers
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", RUN, proxy.bearer, b"x" * 1000))
        assert (await client.answer()).status == 200, "the cap itself is allowed"


async def test_chunked_body_that_grows_past_the_cap_ends_the_upload_unfinished(
    serve: Serve, start: StartProxy, settings: Settings
) -> None:
    finished = asyncio.Event()

    async def script(peer: Peer) -> None:
        await read_request(peer)
        finished.set()

    upstream = serve(script)
    proxy = await start(upstream, with_server(settings, max_body_bytes=2 * 1024 * 1024))
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", RUN, [CHUNKED, *proxy.bearer.items()]) + _chunks(BIG))
        assert (await client.answer()).status == 413
    await upstream.peers[0].gone.wait()
    assert not finished.is_set(), "upstream must not have seen a complete request"


async def test_slow_upstream_holds_the_caller_back_and_loses_nothing(
    serve: Serve, start: StartProxy, settings: Settings
) -> None:
    may_read = asyncio.Event()
    received: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.read_head()
        await may_read.wait()
        received.append(await peer.read(len(body)))
        await peer.send(ok())

    body = BIG * 20
    proxy = await start(serve(script), with_server(settings, max_body_bytes=len(body)))
    async with raw_client(proxy.port) as client:
        writing = asyncio.create_task(client.send(request("POST", RUN, proxy.bearer, body)))
        done, _ = await asyncio.wait([writing], timeout=0.2)
        assert not done, "60 MB do not fit into the buffers between caller and upstream"
        may_read.set()
        await writing
        assert (await client.answer()).status == 200
    assert received == [body]


async def test_early_answer_comes_down_while_the_body_is_still_going_up(serve: Serve, start: StartProxy) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.read(300 * 1024)
        await peer.send(
            b"HTTP/1.1 422 Unprocessable Entity\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
        )
        await peer.wait_gone()

    upstream = serve(script)
    proxy = await start(upstream)
    async with raw_client(proxy.port) as client:
        head = request("POST", RUN, [("Content-Length", str(len(BIG))), *proxy.bearer.items()])
        await client.send(head + BIG[: 400 * 1024])
        assert (await client.answer()).status == 422
    assert await upstream.peers[0].wait_gone(), "a connection with half a request is never used again"


async def test_expect_continue_is_answered_only_after_everything_was_judged(serve: Serve, start: StartProxy) -> None:
    proxy = await start(serve(answering(ok())))
    expect = [("Expect", "100-continue"), ("Content-Length", "2")]
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", RUN, [*expect, *proxy.bearer.items()]))
        assert (await client.read_head())[0] == 100
        await client.send(b"{}")
        assert (await client.answer()).status == 200
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", RUN, [*expect, ("Authorization", "Bearer fpk_unknown")]))
        assert (await client.answer()).status == 401
