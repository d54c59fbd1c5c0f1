"""What a connection may cost: sizes and numbers, met over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from fal_proxy.downstream import peers
from fal_proxy.downstream.framing import MAX_FIELDS, MAX_HEAD_BYTES
from fal_proxy.server import Listener, bind, serving
from fal_proxy.settings import Settings
from support.peers import Peer, Serve
from support.proxied import MOUNT, Proxy, StartProxy, with_server
from support.raw import PATIENCE_SECONDS, RawClient, ended, raw_client, refusal, request
from support.scripts import answering, ok, read_request

RUN = f"{MOUNT}/fal.run/fal-ai/flux/dev"
HEALTH = request("GET", "/healthz")


@pytest.fixture
async def proxy(serve: Serve, start: StartProxy) -> Proxy:
    return await start(serve(answering(ok())))


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
        answer = await refusal(client)
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
        assert (await refusal(client)).status == 431
    assert not upstream.peers


async def test_admin_listener_has_the_same_bounds(proxy: Proxy) -> None:
    async with serving(Listener(proxy.app.admin, bind("127.0.0.1", 0))) as origin:
        port = int(origin.rpartition(":")[2])
        async with raw_client(port) as client:
            client.writer.write(_padded(MAX_HEAD_BYTES + 1))
            assert (await refusal(client)).status == 431
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
            assert await ended(fourth) == b""
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
                assert await ended(refused) == b""
        await held[0].send(HEALTH)
        assert (await held[0].answer()).status == 200
