"""How long a connection may say nothing, or take for what it says, over real sockets. Times are played faster than they are."""

from __future__ import annotations

import asyncio

import pytest

from fal_proxy.downstream import deadlines
from support.peers import Peer, Serve
from support.proxied import MOUNT, Proxy, StartProxy
from support.raw import PATIENCE_SECONDS, ended, raw_client, refusal, request
from support.scripts import answering, ok, read_request

RUN = f"{MOUNT}/fal.run/fal-ai/flux/dev"
FASTER = 50
HEALTH = request("GET", "/healthz")


@pytest.fixture
async def proxy(serve: Serve, start: StartProxy) -> Proxy:
    return await start(serve(answering(ok())))


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let deadlines pass sooner."""
    for name in [name for name in vars(deadlines) if name.endswith("_SECONDS")]:
        monkeypatch.setattr(deadlines, name, getattr(deadlines, name) / FASTER)


@pytest.mark.usefixtures("quickly")
async def test_connection_that_says_nothing_ends_without_a_word(proxy: Proxy) -> None:
    async with raw_client(proxy.port) as client:
        assert await ended(client) == b""


@pytest.mark.usefixtures("quickly")
async def test_idle_connection_ends_without_a_word(proxy: Proxy) -> None:
    async with raw_client(proxy.port) as client:
        await client.send(HEALTH)
        assert (await client.answer()).status == 200
        assert await ended(client) == b""


SLOW = [
    (b"G", "a byte"),
    (HEALTH[:-2], "all but the end"),
    (b"\r\n", "an empty line"),
]


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("first", [b"", HEALTH], ids=["first", "later"])
@pytest.mark.parametrize(("sent", "reason"), SLOW)
async def test_head_that_does_not_end_is_408(sent: bytes, reason: str, first: bytes, proxy: Proxy) -> None:
    async with raw_client(proxy.port) as client:
        if first:
            await client.send(first)
            assert (await client.answer()).status == 200
        await client.send(sent)
        answer = await refusal(client)
    assert (answer.status, answer.one(b"x-fal-error-type")) == (408, b"request_timeout"), reason


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("framing", [("Content-Length", "100"), ("Transfer-Encoding", "chunked")])
async def test_body_that_does_not_come_is_408_and_nothing_is_sent(
    framing: tuple[str, str], serve: Serve, start: StartProxy
) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", RUN, [framing, *proxy.bearer.items()]))
        assert (await refusal(client)).status == 408
    assert not upstream.peers


@pytest.mark.usefixtures("quickly")
async def test_body_that_stops_behind_an_answer_that_has_begun_is_cut(serve: Serve, start: StartProxy) -> None:
    gone = asyncio.Event()

    async def early(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: x\n\n")
        await peer.wait_gone()
        gone.set()

    proxy = await start(serve(early))
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", RUN, [("Content-Length", "1000000"), *proxy.bearer.items()], b"x" * 400_000))
        assert (await client.read_head())[0] == 200
        back = await ended(client)
        assert b"408" not in back
        assert not back.endswith(b"0\r\n\r\n"), "a cut answer never ends cleanly"
        await asyncio.wait_for(gone.wait(), PATIENCE_SECONDS)


@pytest.mark.usefixtures("quickly")
async def test_upload_that_upstream_is_slow_to_take_is_not_the_callers_fault(serve: Serve, start: StartProxy) -> None:
    size = 9_000_000
    deadline_seconds = (deadlines.BODY_GRACE_SECONDS + deadlines.BODY_IDLE_SECONDS) * 2

    async def slow(peer: Peer) -> None:
        await peer.read_head()
        await asyncio.sleep(deadline_seconds)  # what is tested is that nothing happens in this time
        for _ in range(size // 1000):
            await peer.read(1000)
        await peer.send(ok())

    proxy = await start(serve(slow))
    async with raw_client(proxy.port) as client:
        client.writer.write(request("POST", RUN, proxy.bearer, b"x" * size))
        async with asyncio.timeout(PATIENCE_SECONDS * 3):
            assert (await client.answer()).status == 200


@pytest.mark.usefixtures("quickly")
async def test_rest_of_a_body_that_was_answered_early_is_awaited_for_a_bounded_time(proxy: Proxy) -> None:
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", "/nowhere", [("Content-Length", "1000000")], b"x"))
        assert (await client.answer()).status == 404
        assert await ended(client) == b""
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", "/nowhere", [("Content-Length", "1000")], b"x"))
        assert (await client.answer()).status == 404
        await client.send(b"x" * 999 + HEALTH)
        assert (await client.answer()).status == 200, "what ends in time costs no new connection"


@pytest.mark.usefixtures("quickly")
async def test_caller_that_reads_nothing_is_cut_and_its_upstream_call_ends(serve: Serve, start: StartProxy) -> None:
    gone, sent = asyncio.Event(), 0

    async def endless(peer: Peer) -> None:
        nonlocal sent
        await read_request(peer)
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: video/mp4\r\ncontent-length: 1000000000000\r\n\r\n")
        try:
            while True:
                await peer.send(b"x" * 65536)
                sent += 65536
        except ConnectionError:
            gone.set()

    proxy = await start(serve(endless))
    async with raw_client(proxy.port) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined] # an asyncio.Transport reads too
        client.writer.write(request("POST", RUN, proxy.bearer, b"{}"))
        await asyncio.wait_for(gone.wait(), PATIENCE_SECONDS)
        async with raw_client(proxy.port) as other:
            await other.send(HEALTH)
            assert (await other.answer()).status == 200
    assert sent < 64 * 1024 * 1024, "what the kernels hold, and no more"
