"""What a connection may carry besides one request after the other: pipelines, upgrades, trailers, garbage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fal_proxy.relay.whole import RUN_WHOLE_BYTES
from fal_proxy.settings import Settings
from support.peers import Peer, Serve
from support.proxied import MOUNT, StartProxy, with_server
from support.raw import RawClient, raw_client, request
from support.scripts import answering, ok, read_request

RUN = f"{MOUNT}/fal.run/fal-ai/flux/dev"
EVENT = b"data: x\n\n"


async def test_two_pipelined_requests_are_answered_in_order(serve: Serve, start: StartProxy) -> None:
    proxy = await start(serve(answering(ok(b"1"), ok(b"2"))))
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", RUN, proxy.bearer, b"{}") * 2)
        assert [(await client.answer()).body for _ in range(2)] == [b"1", b"2"]


@pytest.mark.parametrize("apart", [False, True], ids=["one packet", "two packets"])
@pytest.mark.parametrize("leave", [RawClient.reset, RawClient.close], ids=["reset", "close"])
async def test_pipelined_request_does_not_hide_the_callers_departure(
    apart: bool, leave: Callable[[RawClient], None], serve: Serve, start: StartProxy, caplog: pytest.LogCaptureFixture
) -> None:
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def silent(peer: Peer) -> None:
        await read_request(peer)
        arrived.set()
        await peer.wait_gone()
        gone.set()

    proxy = await start(serve(silent))
    behind = request("GET", "/healthz")
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", RUN, proxy.bearer, b"{}") + (b"" if apart else behind))
        await arrived.wait()
        if apart:
            await client.send(behind)
        left_at = time.monotonic()
        leave(client)
        await asyncio.wait_for(gone.wait(), 5)
    assert time.monotonic() - left_at < 0.1 + 0.05, "within 100 ms, and the test's own scheduling"
    assert not caplog.records


async def test_cut_answer_with_a_pipelined_request_behind_it_leaves_nothing_running(
    serve: Serve, start: StartProxy
) -> None:
    async def cut(peer: Peer) -> None:
        await read_request(peer)
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n" + EVENT)
        peer.close()

    proxy = await start(serve(cut))
    before = len(asyncio.all_tasks())
    for _ in range(20):
        async with raw_client(proxy.port) as client:
            await client.send(request("POST", RUN, proxy.bearer, b"{}") + request("GET", "/healthz"))
            assert not (await client.answer()).complete
    async with raw_client(proxy.port) as client:
        await client.send(request("GET", "/healthz"))
        await client.answer()
    assert len(asyncio.all_tasks()) < before + 20


UPGRADES = [("h2c", "Upgrade, HTTP2-Settings"), ("websocket", "Upgrade"), ("anything", "upgrade")]


@pytest.mark.parametrize(("upgrade", "connection"), UPGRADES)
async def test_upgrade_is_refused_because_its_body_would_be_lost(
    upgrade: str, connection: str, serve: Serve, start: StartProxy
) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    headers = [("Connection", connection), ("Upgrade", upgrade), *proxy.bearer.items()]
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", RUN, headers, b'{"prompt": "x"}'))
        answer = await client.answer()
    assert (answer.status, answer.one(b"x-fal-error-type")) == (400, b"bad_request")
    assert not upstream.peers


@pytest.mark.parametrize(
    "trailer", [b"x-fal-target-url: https://fal.run/a/b", b"authorization: Bearer bad", b"content-type: text/html"]
)
async def test_trailer_is_no_header_field(trailer: bytes, serve: Serve, start: StartProxy) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    headers = [("Transfer-Encoding", "chunked"), *proxy.bearer.items()]
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", RUN, headers) + b"2\r\n{}\r\n0\r\n" + trailer + b"\r\n\r\n")
        assert (await client.answer()).status == 200
    assert trailer not in bytes(upstream.peers[0].received)


async def test_garbage_behind_a_request_spoils_nothing_and_gets_no_answer_in_another_ones_place(
    serve: Serve, start: StartProxy
) -> None:
    may_end = asyncio.Event()

    async def stream(peer: Peer) -> None:
        await read_request(peer)
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 18\r\n\r\n" + EVENT)
        await may_end.wait()
        await peer.send(EVENT)

    proxy = await start(serve(stream))
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", f"{RUN}/stream", proxy.bearer, b"{}"))
        await client.read_head()
        assert await client.reader.readexactly(len(EVENT)) == EVENT
        await client.send(b"\x00\r\n\r\n")
        may_end.set()
        assert await asyncio.wait_for(client.reader.read(), 5) == EVENT, "the answer, whole, and then the end"


async def test_garbage_behind_a_body_that_was_answered_early_gets_no_answer(serve: Serve, start: StartProxy) -> None:
    proxy = await start(serve(answering(ok())))
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", "/nowhere", [("Content-Length", "2")]))
        assert (await client.answer()).status == 404
        await client.send(b"{}")
        await client.send(b"more of what its sender calls the body")
        assert await asyncio.wait_for(client.reader.read(), 5) == b""


async def test_many_requests_in_one_packet_are_answered_one_after_the_other(serve: Serve, start: StartProxy) -> None:
    proxy = await start(serve(answering(ok())))
    async with raw_client(proxy.port) as client:
        await client.send(request("GET", "/healthz") * 500)
        assert {(await client.answer()).status for _ in range(500)} == {200}


async def test_request_behind_a_chunked_one_in_one_packet_is_left_unanswered_and_the_connection_ends(
    serve: Serve, start: StartProxy
) -> None:
    upstream = serve(answering(ok(b"1")))
    proxy = await start(upstream)
    chunked = request("POST", RUN, [("Transfer-Encoding", "chunked"), *proxy.bearer.items()]) + b"2\r\n{}\r\n0\r\n\r\n"
    async with raw_client(proxy.port) as client:
        await client.send(chunked * 2)
        assert (await client.answer()).body == b"1"
        assert await asyncio.wait_for(client.reader.read(), 5) == b""
    assert bytes(upstream.peers[0].received).count(b"POST ") == 1


NOT_HTTP = [
    (b"\x16\x03\x01\x02\x00\x01", "a TLS hello on the plain port"),
    (b"GET / HTTP/2.0\r\nhost: 127.0.0.1\r\n\r\n", "a version that we do not speak"),
    (b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nx : 1\r\n\r\n", "a space before the colon"),
]


@pytest.mark.parametrize(("sent", "reason"), NOT_HTTP)
async def test_what_is_not_http_gets_our_error_and_the_end(
    sent: bytes, reason: str, serve: Serve, start: StartProxy
) -> None:
    proxy = await start(serve(answering(ok())))
    async with raw_client(proxy.port) as client:
        await client.send(sent)
        answer = await client.answer()
        assert (answer.status, answer.one(b"x-fal-error-type")) == (400, b"bad_request"), reason
        assert await client.reader.read() == b""


FRAMINGS = [
    ([("Content-Length", "0" * 5000 + "2")], b"{}", "a length of 5001 digits"),
    ([("Transfer-Encoding", "gzip, chunked")], b"2\r\n{}\r\n0\r\n\r\n", "a coding that we would have to undo"),
]


@pytest.mark.parametrize(("headers", "body", "reason"), FRAMINGS)
async def test_framing_that_two_parsers_could_read_in_two_ways_is_400(
    headers: list[tuple[str, str]], body: bytes, reason: str, serve: Serve, start: StartProxy
) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", RUN, headers + list(proxy.bearer.items())) + body)
        assert (await client.answer()).status == 400, reason
    assert not upstream.peers


async def test_body_that_breaks_its_cap_after_an_early_head_resets_the_connection(
    serve: Serve, start: StartProxy, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    answered = asyncio.Event()

    async def early(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n3\r\na\n\n\r\n"
        )
        answered.set()
        await peer.wait_gone()

    proxy = await start(serve(early), with_server(settings, max_body_bytes=1024 * 1024))
    chunk = b"%x\r\n%b\r\n" % (400_000, b"x" * 400_000)
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", RUN, [("Transfer-Encoding", "chunked"), *proxy.bearer.items()]) + chunk)
        await answered.wait()
        assert (await client.read_head())[0] == 200
        await client.send(chunk * 2)
        assert await asyncio.wait_for(client.read_chunk(), 5) == b"a\n\n"
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(client.read_chunk(), 5)
    assert not caplog.records


async def test_departure_is_seen_behind_megabytes_that_upstream_does_not_take(serve: Serve, start: StartProxy) -> None:
    stalled, gone = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_head()
        stalled.set()
        await gone.wait()

    upstream = serve(script)
    proxy = await start(upstream)
    size = 9 * RUN_WHOLE_BYTES
    async with raw_client(proxy.port) as client:
        client.writer.write(request("POST", RUN, [("Content-Length", str(size)), *proxy.bearer.items()]) + b"x" * size)
        await stalled.wait()
        client.reset()
    async with raw_client(proxy.port) as client:
        async with asyncio.timeout(5):
            while proxy_calls(upstream.port):
                await client.send(request("GET", "/healthz"))
                await client.answer()
    gone.set()


def proxy_calls(port: int) -> int:
    """Return how many connections to a local port are established, as the kernel counts them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(1 for row in rows if row[2].endswith(f":{port:04X}") and row[3] == "01")
