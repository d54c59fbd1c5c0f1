"""What a connection may cost: sizes, times and numbers, met over real sockets. Times are played faster than they are."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from fal_proxy.downstream import deadlines, peers
from fal_proxy.downstream.framing import MAX_FIELDS, MAX_HEAD_BYTES
from fal_proxy.server import Listener, bind, serving
from fal_proxy.settings import Settings
from support.peers import Peer, Serve
from support.proxied import MOUNT, Proxy, StartProxy, with_server
from support.raw import RawAnswer, RawClient, raw_client, request
from support.scripts import answering, ok, read_request

RUN = f"{MOUNT}/fal.run/fal-ai/flux/dev"
FASTER = 50
PATIENCE_SECONDS = 10
HEALTH = request("GET", "/healthz")


@pytest.fixture
async def proxy(serve: Serve, start: StartProxy) -> Proxy:
    return await start(serve(answering(ok())))


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let deadlines pass sooner."""
    for name in [name for name in vars(deadlines) if name.endswith("_SECONDS")]:
        monkeypatch.setattr(deadlines, name, getattr(deadlines, name) / FASTER)


async def _refusal(client: RawClient) -> RawAnswer:
    """Read one answer and the end of the connection."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        answer = await client.answer()
        assert await client.reader.read() == b""
    body = json.loads(answer.body)
    assert body["error_type"].encode() == answer.one(b"x-fal-error-type")
    assert body["detail"] == body["message"]
    assert answer.one(b"connection") == b"close"
    return answer


async def _ended(client: RawClient) -> bytes:
    """Return what comes until the connection ends, however it ends."""
    back = b""
    async with asyncio.timeout(PATIENCE_SECONDS):
        with contextlib.suppress(ConnectionError):
            while piece := await client.reader.read(1 << 20):
                back += piece
    return back


def _padded(size: int) -> bytes:
    return HEALTH[:-2] + b"x: " + b"a" * (size - len(HEALTH) - 5) + b"\r\n\r\n"


def _with_fields(count: int) -> bytes:
    return HEALTH[:-2] + b"".join(b"x%d: 1\r\n" % index for index in range(count - 1)) + b"\r\n"  # Host is one too


WITHIN = [
    (_padded(MAX_HEAD_BYTES), "a head of exactly 32 KiB"),
    (_with_fields(MAX_FIELDS), "exactly 100 fields"),
]


@pytest.mark.parametrize(("sent", "reason"), WITHIN)
async def test_head_within_its_bounds_is_served(sent: bytes, reason: str, proxy: Proxy) -> None:
    async with raw_client(proxy.port) as client:
        for _ in range(2):
            await client.send(sent)
            assert (await client.answer()).status == 200, reason


BEYOND = [
    (_padded(MAX_HEAD_BYTES + 1), "a byte more than 32 KiB"),
    (_with_fields(MAX_FIELDS + 1), "a field more than 100"),
    (b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "a request line that is too long"),
    (HEALTH[:-2] + b"x: " + b"a" * 3_000_000, "no end in sight"),
    (HEALTH[:-2] + b"x:\r\n" * 20_000, "fields without end"),
]


@pytest.mark.parametrize("first", [b"", HEALTH], ids=["first", "later"])
@pytest.mark.parametrize(("sent", "reason"), BEYOND)
async def test_head_beyond_its_bounds_is_431_and_the_end(sent: bytes, reason: str, first: bytes, proxy: Proxy) -> None:
    async with raw_client(proxy.port) as client:
        if first:
            await client.send(first)
            assert (await client.answer()).status == 200
        client.writer.write(sent)
        answer = await _refusal(client)
    assert (answer.status, answer.one(b"x-fal-error-type")) == (431, b"header_too_large"), reason


@pytest.mark.parametrize("packet", [1 << 20, 1000], ids=["at once", "in small packets"])
async def test_trailers_beyond_the_bound_of_a_head_are_431_and_nothing_is_sent(
    packet: int, serve: Serve, start: StartProxy
) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    head = request("POST", RUN, [("Transfer-Encoding", "chunked"), *proxy.bearer.items()])
    trailers = b"".join(b"x%d: %b\r\n" % (index, b"a" * 1000) for index in range(40))
    sent = head + b"2\r\n{}\r\n0\r\n" + trailers + b"\r\n"
    async with raw_client(proxy.port) as client:
        with contextlib.suppress(ConnectionError):
            for start_at in range(0, len(sent), packet):
                await client.send(sent[start_at : start_at + packet])
                await asyncio.sleep(0)
        assert (await _refusal(client)).status == 431
    assert not upstream.peers


async def test_admin_listener_has_the_same_bounds(proxy: Proxy) -> None:
    async with serving(Listener(proxy.app.admin, bind("127.0.0.1", 0))) as origin:
        port = int(origin.rpartition(":")[2])
        async with raw_client(port) as client:
            client.writer.write(_padded(MAX_HEAD_BYTES + 1))
            assert (await _refusal(client)).status == 431
        async with raw_client(port) as client:
            await client.send(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert (await client.answer()).status == 400


HOSTS = [
    (b"GET %b HTTP/1.1\r\n\r\n", 400, "no Host"),
    (b"GET %b HTTP/1.0\r\n\r\n", 400, "no Host in HTTP/1.0 either: the name decides what is ours"),
    (b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\n\r\n", 400, "two of them"),
    (b"GET %b HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "no name"),
    (b"GET %b HTTP/1.1\r\nHost: 127.0.0.1/x\r\n\r\n", 400, "a path in it"),
    (b"GET %b HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n", 421, "another's name"),
]


@pytest.mark.parametrize("path", [b"/healthz", b"/nowhere", MOUNT.encode(), MOUNT.encode() + b"/me"])
@pytest.mark.parametrize(("sent", "status", "reason"), HOSTS)
async def test_host_is_judged_on_every_route(sent: bytes, status: int, reason: str, path: bytes, proxy: Proxy) -> None:
    async with raw_client(proxy.port) as client:
        await client.send(sent % path)
        assert (await client.answer()).status == status, reason


@pytest.mark.usefixtures("quickly")
async def test_connection_that_says_nothing_ends_without_a_word(proxy: Proxy) -> None:
    async with raw_client(proxy.port) as client:
        assert await _ended(client) == b""


@pytest.mark.usefixtures("quickly")
async def test_idle_connection_ends_without_a_word(proxy: Proxy) -> None:
    async with raw_client(proxy.port) as client:
        await client.send(HEALTH)
        assert (await client.answer()).status == 200
        assert await _ended(client) == b""


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
        answer = await _refusal(client)
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
        assert (await _refusal(client)).status == 408
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
        back = await _ended(client)
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
        assert await _ended(client) == b""
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


async def test_half_closed_connection_is_a_departure(serve: Serve, start: StartProxy) -> None:
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def silent(peer: Peer) -> None:
        await read_request(peer)
        arrived.set()
        await peer.wait_gone()
        gone.set()

    proxy = await start(serve(silent))
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", RUN, proxy.bearer, b"{}"))
        await arrived.wait()
        client.writer.write_eof()
        await asyncio.wait_for(gone.wait(), PATIENCE_SECONDS)


async def test_address_that_holds_too_many_connections_gets_no_more_and_others_do(
    serve: Serve, start: StartProxy, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "MAX_PER_PEER", 3)
    proxy = await start(serve(answering(ok())), with_server(settings, hosts=("*",)))
    async with contextlib.AsyncExitStack() as stack:
        held = [await stack.enter_async_context(raw_client(proxy.port)) for _ in range(3)]
        for client in held:
            await client.send(HEALTH)
            assert (await client.answer()).status == 200
        async with raw_client(proxy.port) as fourth:
            assert await _ended(fourth) == b""
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, local_addr=("127.0.0.2", 0))
        writer.write(HEALTH)
        assert (await RawClient(reader, writer).answer()).status == 200, "127.0.0.2 is another address"
        writer.transport.abort()
        held[0].close()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                async with raw_client(proxy.port) as again:
                    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                        await again.send(HEALTH)
                        assert (await again.answer()).status == 200, "a place that was left is free"
                        return


async def test_server_that_is_full_refuses_the_next_and_goes_on(proxy: Proxy) -> None:
    listener = Listener(proxy.app, bind("127.0.0.1", 0), trusted_proxies=("127.0.0.1",), max_connections=2)
    async with serving(listener) as origin, contextlib.AsyncExitStack() as stack:
        port = int(origin.rpartition(":")[2])
        held = [await stack.enter_async_context(raw_client(port)) for _ in range(2)]
        for client in held:
            await client.send(HEALTH)
            assert (await client.answer()).status == 200
        for _ in range(100):
            async with raw_client(port) as refused:
                assert await _ended(refused) == b""
        await held[0].send(HEALTH)
        assert (await held[0].answer()).status == 200
