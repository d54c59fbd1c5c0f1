"""The caller leaves: upstream learns it at once, except for a submit that was sent whole, which is read to its end."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable

import pytest

from fal_proxy.relay import http as relay_http
from fal_proxy.upstream.call import Call
from fal_proxy.upstream.dial import Dialer, Origin
from support.peers import Peer, Serve
from support.proxied import MOUNT, StartProxy
from support.raw import RawClient, raw_client, request
from support.scripts import answering, ok, read_request

RUN = ("POST", "/fal.run/fal-ai/flux/dev")
STREAM = ("POST", "/fal.run/fal-ai/flux/dev/stream")
SUBMIT = ("POST", "/queue.fal.run/fal-ai/flux/dev")
STATUS = ("GET", "/queue.fal.run/fal-ai/flux/requests/abc/status")
STATUS_STREAM = ("GET", "/queue.fal.run/fal-ai/flux/requests/abc/status/stream")
INITIATE = ("POST", "/rest.fal.ai/storage/upload/initiate")
EVENTS = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\na\r\ndata: {}\n\n\r\n"
)
LIMIT_SECONDS = 0.1
LEAVE: list[Callable[[RawClient], None]] = [RawClient.reset, RawClient.close]


class Moments:
    """When upstream had the request, and when it saw the end."""

    def __init__(self, first: bytes = b"", body_bytes: int | None = None) -> None:
        self.arrived = asyncio.Event()
        self.ended = asyncio.Event()
        self.ended_at = 0.0
        self._first = first
        self._body_bytes = body_bytes

    async def script(self, peer: Peer) -> None:
        """Take the request (or part of its body), say something, then wait for the end."""
        if self._body_bytes is None:
            await read_request(peer)
        else:
            await peer.read_head()
            await peer.read(self._body_bytes)
        await peer.send(self._first)
        self.arrived.set()
        await peer.wait_gone()
        self.ended_at = time.monotonic()
        self.ended.set()


async def _leave_and_measure(moments: Moments, client: RawClient, leave: Callable[[RawClient], None]) -> float:
    left_at = time.monotonic()
    leave(client)
    await asyncio.wait_for(moments.ended.wait(), 5)
    return moments.ended_at - left_at


DEPARTURES = [
    (RUN, b"", "before the head of a run"),
    (STATUS, b"", "before the head of a read"),
    (STATUS_STREAM, b"", "before the head of a status stream"),
    (STREAM, EVENTS, "in a stream that then falls silent"),
    (STATUS_STREAM, EVENTS, "in a status stream that then falls silent"),
]


@pytest.mark.parametrize("leave", LEAVE, ids=["reset", "close"])
@pytest.mark.parametrize(("kind", "first", "reason"), DEPARTURES)
async def test_departure_ends_the_upstream_call_at_once(
    kind: tuple[str, str],
    first: bytes,
    reason: str,
    leave: Callable[[RawClient], None],
    serve: Serve,
    start: StartProxy,
) -> None:
    moments = Moments(first)
    proxy = await start(serve(moments.script))
    async with raw_client(proxy.port) as client:
        await client.send(request(kind[0], MOUNT + kind[1], proxy.bearer, b"{}" if kind[0] == "POST" else None))
        await moments.arrived.wait()
        if first:
            await client.read_head()
            await client.read_chunk()
        took = await _leave_and_measure(moments, client, leave)
    assert took < LIMIT_SECONDS, reason


@pytest.mark.parametrize("leave", LEAVE, ids=["reset", "close"])
@pytest.mark.parametrize("kind", [RUN, SUBMIT], ids=["run", "submit"])
async def test_departure_in_the_middle_of_an_upload_ends_it(
    kind: tuple[str, str], leave: Callable[[RawClient], None], serve: Serve, start: StartProxy
) -> None:
    moments = Moments(body_bytes=300 * 1024)
    proxy = await start(serve(moments.script))
    async with raw_client(proxy.port) as client:
        head = request(kind[0], MOUNT + kind[1], [("Content-Length", "2000000"), *proxy.bearer.items()])
        await client.send(head + b"x" * (300 * 1024))
        await moments.arrived.wait()
        took = await _leave_and_measure(moments, client, leave)
    assert took < LIMIT_SECONDS, "half a request is no submit: there is nothing to wait for"


async def test_departure_is_seen_behind_bytes_that_upstream_does_not_take(serve: Serve, start: StartProxy) -> None:
    stalled = asyncio.Event()
    ended = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_head()
        stalled.set()
        await ended.wait()
        assert await peer.wait_gone()

    upstream = serve(script)
    proxy = await start(upstream)
    async with raw_client(proxy.port) as client:
        head = request("POST", MOUNT + RUN[1], [("Content-Length", "9000000"), *proxy.bearer.items()])
        await client.send(head + b"x" * (400 * 1024))
        await stalled.wait()
        client.close()
    ended.set()
    async with asyncio.timeout(5):
        await upstream.peers[0].gone.wait()


async def _settle(client: RawClient) -> None:
    """Let everything that is on its way through the proxy arrive: each round trip is several turns of its loop."""
    for _ in range(3):
        await client.send(request("GET", "/healthz"))
        await client.answer()


async def test_submit_that_was_sent_is_read_to_its_end_for_nobody(serve: Serve, start: StartProxy) -> None:
    arrived, may_answer = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await read_request(peer)
        arrived.set()
        await may_answer.wait()
        await peer.send(ok(b'{"request_id": "abc"}'))
        await answering(ok())(peer)

    upstream = serve(script)
    proxy = await start(upstream)
    async with raw_client(proxy.port) as client:
        await client.send(request(SUBMIT[0], MOUNT + SUBMIT[1], proxy.bearer, b"{}"))
        await arrived.wait()
        client.reset()
    async with raw_client(proxy.port) as client:
        await _settle(client)
        assert not upstream.peers[0].gone.is_set()
        may_answer.set()
        await _settle(client)
        await client.send(request("GET", MOUNT + STATUS[1], proxy.bearer))
        assert (await client.answer()).status == 200
    assert len(upstream.peers) == 1, "an answer that was read whole returns its connection"


async def test_an_answer_that_came_for_nobody_is_not_kept_in_memory(serve: Serve, start: StartProxy) -> None:
    arrived, may_answer = asyncio.Event(), asyncio.Event()

    async def answer_late(peer: Peer) -> None:
        await read_request(peer)
        arrived.set()
        await may_answer.wait()
        await peer.send(ok(b'{"request_id": "abc"}'))
        await peer.wait_gone()

    proxy = await start(serve(answer_late))
    async with raw_client(proxy.port) as client:
        await client.send(request(SUBMIT[0], MOUNT + SUBMIT[1], proxy.bearer, b"{}"))
        await arrived.wait()
        client.reset()
    async with raw_client(proxy.port) as client:
        await _settle(client)
        assert _calls() == 1
        may_answer.set()
        await _settle(client)
        assert _calls() == 0, "not even by the timer that would have ended the waiting"


def _calls() -> int:
    gc.collect()
    return sum(isinstance(held, Call) for held in gc.get_objects())


@pytest.mark.parametrize("kind", [SUBMIT, INITIATE], ids=["submit", "initiate"])
async def test_answer_for_nobody_is_awaited_for_a_bounded_time(
    kind: tuple[str, str], serve: Serve, start: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_http, "DEPARTED_SECONDS", 0.05)
    moments = Moments()
    proxy = await start(serve(moments.script))
    async with raw_client(proxy.port) as client:
        await client.send(request(kind[0], MOUNT + kind[1], proxy.bearer, b"{}"))
        await moments.arrived.wait()
        took = await _leave_and_measure(moments, client, RawClient.reset)
    assert took >= 0.05


async def test_departure_while_dialling_sends_nothing(
    serve: Serve, start: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialling, may_connect = asyncio.Event(), asyncio.Event()
    connect = Dialer.connect

    async def slow_connect(self: Dialer, origin: Origin) -> object:
        dialling.set()
        await may_connect.wait()
        return await connect(self, origin)

    monkeypatch.setattr(Dialer, "connect", slow_connect)
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    async with raw_client(proxy.port) as client:
        await client.send(request(RUN[0], MOUNT + RUN[1], proxy.bearer, b"{}"))
        await dialling.wait()
        client.reset()
    async with raw_client(proxy.port) as client:
        await _settle(client)
        may_connect.set()
        await _settle(client)
    assert not any(peer.received for peer in upstream.peers)


async def test_ten_departures_leave_the_pool_and_the_next_caller_alone(serve: Serve, start: StartProxy) -> None:
    async def script(peer: Peer) -> None:
        while True:
            head, _ = await read_request(peer)
            if b"/stays" in head:
                await peer.send(ok())

    proxy = await start(serve(script))
    for _ in range(10):
        async with raw_client(proxy.port) as client:
            await client.send(request("POST", f"{MOUNT}/fal.run/a/leaves", proxy.bearer, b"{}"))
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", f"{MOUNT}/fal.run/a/stays", proxy.bearer, b"{}"))
        assert (await asyncio.wait_for(client.answer(), 5)).status == 200
