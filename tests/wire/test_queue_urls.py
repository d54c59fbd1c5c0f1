"""The three URLs of a queue answer on the wire: callers by path find us in them, callers by header fal's own bytes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from fal_proxy.settings import Settings, State
from support.peers import Peer, Serve
from support.proxied import MOUNT, Proxy, StartProxy, open_settings, proxied, with_server
from support.raw import RawAnswer, raw_client, request
from support.scripts import answering, ok, read_request

APP = "fal-ai/flux/requests/r1"
SUBMIT = ("POST", "queue.fal.run/fal-ai/flux/dev")
STATUS = ("GET", f"queue.fal.run/{APP}/status")
STATUS_STREAM = ("GET", f"queue.fal.run/{APP}/status/stream")
RESULT = ("GET", f"queue.fal.run/{APP}")
CANCEL = ("PUT", f"queue.fal.run/{APP}/cancel")
RUN = ("POST", "fal.run/fal-ai/flux/dev")
Kind = tuple[str, str]

JOB = f"https://queue.fal.run/{APP}"
BODY = (
    f'{{ "status":"IN_QUEUE","request_id":"r1", "response_url" : "{JOB}",\n"status_url":"{JOB}\\/status",'
    f'"cancel_url":"{JOB}/cancel","logs":[{{"message":"see {JOB}","status_url":"{JOB}"}}],"metrics":{{}},"x":1.10}}\n'
).encode()
EVENT_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


def pointed(body: bytes, origin: str) -> bytes:
    """Return what a caller by path is to see, made from the body above by hand."""
    for name in (b'"response_url" : "', b'"status_url":"', b'"cancel_url":"'):
        at = body.index(name) + len(name)
        body = body[:at] + origin.encode() + MOUNT.encode() + b"/" + body[at + len("https://") :]
    return body


def event(body: bytes) -> bytes:
    return b"data: " + body.replace(b"\n", b"") + b"\r\n\r\n"


async def by_path(proxy: Proxy, kind: Kind) -> RawAnswer:
    method, rest = kind
    async with raw_client(proxy.port) as client:
        body = b"{}" if method == "POST" else None
        await client.send(request(method, f"{MOUNT}/{rest}", {**proxy.bearer, "Host": "localhost:8443"}, body))
        return await client.answer()


async def by_header(proxy: Proxy, kind: Kind) -> RawAnswer:
    method, rest = kind
    fields = {**proxy.bearer, "x-fal-target-url": f"https://{rest}"}
    async with raw_client(proxy.port) as client:
        await client.send(request(method, MOUNT, fields, b"{}" if method == "POST" else None))
        return await client.answer()


@pytest.mark.parametrize("public_url", ["", "https://app.example.com"])
@pytest.mark.parametrize("kind", [SUBMIT, STATUS])
async def test_a_caller_by_path_finds_us_and_one_by_header_fals_bytes(
    kind: Kind, public_url: str, serve: Serve, start: StartProxy, settings: Settings
) -> None:
    proxy = await start(serve(answering(ok(BODY), ok(BODY))), with_server(settings, public_url=public_url))
    answer = await by_path(proxy, kind)
    assert answer.body == pointed(BODY, public_url or "http://localhost:8443")
    assert (answer.complete, answer.one(b"content-length")) == (True, b"%d" % len(answer.body))
    assert (await by_header(proxy, kind)).body == BODY


UNTOUCHED = [
    (RESULT, b"200 OK", BODY, "the model's own words"),
    (RUN, b"200 OK", BODY, "as above"),
    (CANCEL, b"202 Accepted", BODY, "an answer that nobody follows"),
    (STATUS, b"404 Not Found", BODY, "fal's errors pass untouched"),
    (SUBMIT, b"422 Unprocessable", BODY, "as above"),
    (STATUS, b"200 OK", BODY + b" " * 1024 * 1024, "longer than what is held"),
    (STATUS, b"200 OK", b"no JSON at all: " + BODY, "no object"),
]


@pytest.mark.parametrize(("kind", "status", "body", "reason"), UNTOUCHED, ids=[row[-1] for row in UNTOUCHED])
async def test_every_other_answer_stays_as_it_is(
    kind: Kind, status: bytes, body: bytes, reason: str, serve: Serve, start: StartProxy
) -> None:
    proxy = await start(serve(answering(ok(body).replace(b"200 OK", status))))
    answer = await by_path(proxy, kind)
    assert answer.status == int(status[:3])
    assert (answer.body == body, answer.complete) == (True, True), reason


async def test_a_status_stream_is_rewritten_event_by_event_as_they_come(serve: Serve, start: StartProxy) -> None:
    go_on = asyncio.Event()
    sent = event(BODY)

    async def script(peer: Peer) -> None:
        await read_request(peer)
        # A length of fal's would not be that of what goes down.
        await peer.send(EVENT_HEAD + b"content-length: %d\r\n\r\n" % (3 * len(sent) + 8))
        for _ in range(3):
            await peer.drip(sent)
            await go_on.wait()
            go_on.clear()
        await peer.send(b": ping\n\n")

    proxy = await start(serve(script))
    async with raw_client(proxy.port) as client:
        await client.send(request("GET", f"{MOUNT}/{STATUS_STREAM[1]}", {**proxy.bearer, "Host": "localhost:8443"}))
        _, fields = await client.read_head()
        assert dict(fields).get(b"content-length") is None
        for _ in range(3):
            got = b""
            while not got.endswith(b"\n\r\n"):
                got += await asyncio.wait_for(client.read_chunk(), 5)
            assert got == event(pointed(BODY, "http://localhost:8443"))
            go_on.set()
        assert await client.read_chunk() == b": ping\n\n"
        assert await client.read_chunk() == b""


async def test_a_status_stream_by_header_keeps_bytes_and_length(serve: Serve, start: StartProxy) -> None:
    sent = event(BODY)
    proxy = await start(serve(answering(EVENT_HEAD + b"content-length: %d\r\n\r\n" % len(sent) + sent)))
    answer = await by_header(proxy, STATUS_STREAM)
    assert (answer.body, answer.one(b"content-length")) == (sent, b"%d" % len(sent))


async def test_whose_job_it_is_is_read_from_fals_words_before_they_change(serve: Serve, tmp_path: Path) -> None:
    """Fal's URL names another app than the one submitted to; the job is reached under both, and under no third."""
    named = BODY.replace(b"fal-ai/flux/", b"fal-ai/flux-lora/")
    done = BODY.replace(b"IN_QUEUE", b"COMPLETED")
    upstream = serve(answering(*[ok(named), *[ok(done)] * 4]))
    settings = msgspec.structs.replace(open_settings(tmp_path), state=State(ownership="strict"))
    async with proxied(f"http://127.0.0.1:{upstream.port}", tmp_path, settings) as proxy:
        assert (await by_path(proxy, SUBMIT)).status == 200
        for app, status in (("fal-ai/flux", 200), ("fal-ai/flux-lora", 200), ("api/fal", 404)):
            kind = ("GET", f"queue.fal.run/{app}/requests/r1/status")
            assert (await by_path(proxy, kind)).status == status, app
