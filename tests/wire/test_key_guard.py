"""What the guard means for a caller: an answer that holds a fal key of ours never arrives, in whatever part it lies."""

from __future__ import annotations

import asyncio
import base64
import gzip
from pathlib import Path

import pytest

from fal_proxy.relay.guard import KeyGuard
from support.peers import Peer, Script, Serve
from support.proxied import FAL_KEY, FAL_KEY_SECRET, MOUNT, Proxy, StartProxy, proxied
from support.raw import RawAnswer, raw_client, request
from support.scripts import answering, ok, read_request

RUN = ("POST", "/fal.run/fal-ai/flux/dev")
STREAM = ("POST", "/fal.run/fal-ai/flux/dev/stream")
SUBMIT = ("POST", "/queue.fal.run/fal-ai/flux/dev")
STATUS = ("GET", "/queue.fal.run/fal-ai/flux/requests/abc/status")
RESULT = ("GET", "/queue.fal.run/fal-ai/flux/requests/abc")
INITIATE = ("POST", "/rest.fal.ai/storage/upload/initiate")
Kind = tuple[str, str]
ECHO = b'{"detail":"Key ' + FAL_KEY.reveal().encode() + b' is no good"}'
SECRET = b'{"secret":"' + FAL_KEY_SECRET.encode() + b'"}'  # the public half may pass, and the test's canary cries at it
PACKED = base64.b64encode(b"headers: " + FAL_KEY.reveal().encode())
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def ask(proxy: Proxy, kind: Kind) -> RawAnswer:
    method, path = kind
    async with raw_client(proxy.port) as client:
        await client.send(request(method, MOUNT + path, proxy.bearer, b"{}" if method == "POST" else None))
        return await client.answer()


def cuts(proxy: Proxy) -> bytes:
    lines = proxy.app.metrics.exposition().splitlines()
    return next(line.partition(b" ")[2] for line in lines if line.startswith(b"fal_proxy_key_guard_cuts_total "))


WHOLE: list[tuple[Kind, bytes, int, str]] = [
    (RUN, ok(ECHO), 500, "paid, and read whole"),
    (SUBMIT, ok(ECHO), 500, "paid"),
    (INITIATE, ok(PACKED), 502, "not paid"),
    (RUN, ok(b"{}", b"x-fal-echo: " + FAL_KEY_SECRET.encode()), 500, "in a field"),
    (STREAM, ok(b"{}", b"content-disposition: " + PACKED), 500, "in a field, before anything went down"),
    (STATUS, ok(ECHO), 502, "read whole in path form, because its URLs are rewritten"),
    (STATUS, ok(b"{}", b"x-" + FAL_KEY_SECRET.encode() + b": 1"), 502, "even in the name of one that would not pass"),
    (RESULT, ok(ECHO).replace(b"200 OK", b"401 Unauthorized"), 502, "an error that repeats what it was sent"),
    (RESULT, ok(ECHO).replace(b"application/json", b"text/plain"), 502, "came whole with its head"),
    (RUN, ok(ECHO).replace(b"200 OK", b"403 Forbidden"), 500, "the same, paid"),
]


@pytest.mark.parametrize(("kind", "answer", "status", "reason"), WHOLE)
async def test_before_the_head_the_caller_gets_an_error_of_ours(
    kind: Kind, answer: bytes, status: int, reason: str, serve: Serve, start: StartProxy
) -> None:
    proxy = await start(serve(answering(answer)))
    got = await ask(proxy, kind)
    error_type = b"upstream_outcome_unknown" if status == 500 else b"upstream_invalid"
    assert (got.status, got.one(b"x-fal-error-type"), got.complete) == (status, error_type, True), reason
    assert cuts(proxy) == b"1.0"


@pytest.mark.parametrize("kind", [RESULT, STREAM])
async def test_after_the_head_the_connection_is_reset(kind: Kind, serve: Serve, start: StartProxy) -> None:
    begun = asyncio.Event()

    async def script(peer: Peer) -> None:
        await read_request(peer)
        head, _, body = ok(ECHO).replace(b"application/json", b"text/plain").partition(b"\r\n\r\n")
        await peer.send(head + b"\r\n\r\n")
        await begun.wait()
        await peer.send(body)

    proxy = await start(serve(script))
    async with raw_client(proxy.port) as client:
        await client.send(request(kind[0], MOUNT + kind[1], proxy.bearer, b"{}" if kind[0] == "POST" else None))
        assert (await client.read_head())[0] == 200
        begun.set()
        with pytest.raises(ConnectionResetError):
            await client.reader.read()  # what arrived before it stays in the reader
        assert FAL_KEY_SECRET[:16].encode() not in bytes(client.reader._buffer)  # type: ignore[attr-defined]
    assert cuts(proxy) == b"1.0"


def events(*pieces: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await read_request(peer)
        await peer.send(EVENTS)
        for piece in pieces:
            await peer.drip(b"%x\r\n%b\r\n" % (len(piece), piece))
        await peer.send(b"0\r\n\r\n")

    return script


async def test_key_that_arrives_byte_by_byte_in_a_stream_is_cut(serve: Serve, start: StartProxy) -> None:
    proxy = await start(serve(events(b"data: {}\n\n", b"data: " + SECRET + b"\n\n")))
    answer = await ask(proxy, STREAM)
    assert answer.body.startswith(b"data: {}\n\n")
    assert FAL_KEY_SECRET[:16].encode() not in answer.body
    assert not answer.complete


async def test_stream_that_only_looks_like_a_key_arrives_whole_and_in_time(serve: Serve, start: StartProxy) -> None:
    async def script(peer: Peer) -> None:
        await read_request(peer)
        await peer.send(EVENTS + b"%x\r\n%b\r\n" % (21, b"data: " + FAL_KEY_SECRET[:15].encode()))
        await peer.wait_gone()

    proxy = await start(serve(script))
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", MOUNT + STREAM[1], proxy.bearer, b"{}"))
        await client.read_head()
        got = await client.read_chunk()
        while len(got) < 21:  # nothing follows: what was held back comes by itself
            got += await client.read_chunk()
    assert got == b"data: " + FAL_KEY_SECRET[:15].encode()


async def test_public_half_and_packed_bytes_pass(serve: Serve, start: StartProxy) -> None:
    packed = gzip.compress(ECHO)
    plain = b'{"key_id":"' + FAL_KEY.reveal().partition(":")[0].encode()[:20] + b'"}'
    proxy = await start(serve(answering(ok(plain), ok(packed, b"content-encoding: gzip"))))
    assert (await ask(proxy, RUN)).body == plain
    answer = await ask(proxy, RESULT)
    assert (answer.body, answer.complete) == (packed, True), "what is packed cannot be seen (see the known limits)"
    assert cuts(proxy) == b"0.0"


async def test_a_cut_answer_leaves_no_half_used_connection_and_no_task(serve: Serve, start: StartProxy) -> None:
    upstream = serve(events(b"data: " + SECRET + b"\n\n"), answering(ok(b'{"good":1}')))
    proxy = await start(upstream)
    assert not (await ask(proxy, STREAM)).complete
    assert (await ask(proxy, RUN)).body == b'{"good":1}'


@pytest.mark.parametrize(
    "kind", [RUN, STREAM, SUBMIT, STATUS, RESULT], ids=[row[1] for row in (RUN, STREAM, SUBMIT, STATUS, RESULT)]
)
async def test_these_tests_would_notice_a_key_that_goes_down_on_any_way(
    kind: Kind, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a guard that sees nothing, the watch in front of the proxy must: it sees what is written past `send`, too."""
    monkeypatch.setattr(KeyGuard, "holds_key", lambda *_: False)
    said = EVENTS + b"%x\r\ndata: %b\n\n\r\n0\r\n\r\n" % (len(SECRET) + 8, SECRET) if kind is STREAM else ok(SECRET)
    upstream = serve(answering(said))
    with pytest.raises(AssertionError, match="went down to a caller"):
        async with proxied(f"http://127.0.0.1:{upstream.port}", tmp_path) as proxy:
            assert FAL_KEY_SECRET.encode() in (await ask(proxy, kind)).body
