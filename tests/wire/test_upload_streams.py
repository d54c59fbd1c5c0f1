"""The bytes of a relayed upload: they stream, a departure ends both sides, and a refusal reads no further."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from support.memory import measure
from support.peers import Peer, Serve, Upstream
from support.proxied import MOUNT, Proxy, StartProxy
from support.raw import RawClient, raw_client, request
from support.scripts import ok
from support.storage import INITIATE, relaying

UPLOAD_URL = b"https://v3b.fal.media/files/b/1/film.mp4?X-Fal-Signature=s"
MIB = 1024 * 1024
DEADLINE_SECONDS = 10.0
STILL_SECONDS = 0.5  # in which nothing moves any more


async def initiated(peer: Peer) -> None:
    """Answer the start of an upload."""
    head = await peer.read_head()
    await peer.read(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    body = b'{"upload_url":"%b","file_url":"https://v3b.fal.media/files/b/1/film.mp4"}' % UPLOAD_URL
    await peer.send(ok(body, b"connection: close"))  # the upload itself comes on a connection of its own
    await peer.wait_gone()


async def upload_path(proxy: Proxy) -> str:
    """Start an upload of a film and return the path of its URL."""
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", MOUNT + INITIATE, proxy.bearer, b'{"content_type":"video/mp4"}'))
        answer = await client.answer()
    url: str = msgspec.json.decode(answer.body)["upload_url"]
    return "/" + url.split("/", 3)[3]


async def second(upstream: Upstream) -> Peer:
    """Return the connection of the upload itself."""
    return await upstream.peer(1)


def put(path: str, size: int) -> bytes:
    """Return the head of an upload."""
    return request("PUT", path, {"Content-Type": "video/mp4", "Content-Length": str(size)})


@pytest.mark.parametrize("leave", [RawClient.reset, RawClient.close], ids=["reset", "close"])
async def test_a_caller_who_vanishes_while_uploading_leaves_nothing_open_upstream(
    leave: Callable[[RawClient], None], serve: Serve, start: StartProxy, tmp_path: Path
) -> None:
    async def taking(peer: Peer) -> None:
        await peer.read_head()
        await peer.read(MIB)
        await peer.wait_gone()

    upstream = serve(initiated, taking)
    proxy = await start(upstream, relaying(tmp_path))
    path = await upload_path(proxy)
    async with raw_client(proxy.port) as client:
        await client.send(put(path, 100 * MIB) + b"\0" * MIB)
        peer = await second(upstream)
        await peer.arrived(MIB)
        leave(client)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await peer.gone.wait()


async def test_a_cdn_that_refuses_early_is_heard_while_the_caller_still_sends(
    serve: Serve, start: StartProxy, tmp_path: Path
) -> None:
    async def refusing(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/xml\r\ncontent-length: 8\r\n\r\n<Error/>")
        await peer.wait_gone()

    upstream = serve(initiated, refusing)
    proxy = await start(upstream, relaying(tmp_path))
    path = await upload_path(proxy)
    async with raw_client(proxy.port) as client:
        await client.send(put(path, 100 * MIB) + b"\0" * MIB)
        answer = await client.answer()
        assert (answer.status, answer.body) == (403, b"<Error/>")
        assert answer.one(b"content-type") == b"text/plain", "markup of upstream's never runs on our origin"
        async with asyncio.timeout(DEADLINE_SECONDS):
            await (await second(upstream)).gone.wait()


async def test_a_refused_upload_is_answered_before_its_bytes_are_read(
    serve: Serve, start: StartProxy, tmp_path: Path
) -> None:
    upstream = serve(initiated)
    proxy = await start(upstream, relaying(tmp_path, max_upload_bytes=MIB))
    path = await upload_path(proxy)
    async with raw_client(proxy.port) as client:
        await client.send(put(path, MIB + 1))
        answer = await client.answer()
    assert answer.status == 413
    assert b"storage.max_upload_bytes" in answer.body
    assert len(upstream.peers) == 1


async def test_a_slow_cdn_slows_the_caller(serve: Serve, start: StartProxy, tmp_path: Path) -> None:
    """What lies between both ends is bounded, so that a caller who is not taken from cannot go on for ever."""

    async def idle(peer: Peer) -> None:
        await peer.read_head()
        await asyncio.Event().wait()

    upstream = serve(initiated, idle)
    proxy = await start(upstream, relaying(tmp_path))
    path = await upload_path(proxy)
    async with raw_client(proxy.port) as client:
        client.writer.write(put(path, 512 * MIB))
        for _ in range(64):
            try:
                await asyncio.wait_for(client.send(b"\0" * MIB), STILL_SECONDS)
            except TimeoutError:
                return
    raise AssertionError("all of it was taken, though the CDN takes nothing")


async def test_a_large_upload_grows_memory_by_at_most_16_mib() -> None:
    growth = await measure("upload", 128)
    assert growth.grown_kib <= 16 * 1024
