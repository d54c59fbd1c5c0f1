"""When upstream breaks: what the caller is told, what looks repeatable and what must not, and how a cut looks."""

from __future__ import annotations

import gzip

import msgspec
import pytest

from fal_proxy.settings import Settings
from fal_proxy.settings import Upstream as UpstreamSettings
from support.peers import Peer, Script, Serve
from support.proxied import MOUNT, Proxy, StartProxy
from support.raw import RawAnswer, raw_client, request
from support.scripts import answering, ok, read_request

RUN = ("POST", "/fal.run/fal-ai/flux/dev")
STREAM = ("POST", "/fal.run/fal-ai/flux/dev/stream")
SUBMIT = ("POST", "/queue.fal.run/fal-ai/flux/dev")
STATUS = ("GET", "/queue.fal.run/fal-ai/flux/requests/abc/status")
STATUS_STREAM = ("GET", "/queue.fal.run/fal-ai/flux/requests/abc/status/stream")
RESULT = ("GET", "/queue.fal.run/fal-ai/flux/requests/abc")
CANCEL = ("PUT", "/queue.fal.run/fal-ai/flux/requests/abc/cancel")
INITIATE = ("POST", "/rest.fal.ai/storage/upload/initiate")
Kind = tuple[str, str]


async def _ask(proxy: Proxy, kind: Kind) -> RawAnswer:
    method, path = kind
    async with raw_client(proxy.port) as client:
        await client.send(request(method, MOUNT + path, proxy.bearer, b"{}" if method == "POST" else None))
        return await client.answer()


async def _reset_after_request(peer: Peer) -> None:
    await read_request(peer)
    peer.reset()


async def _close_after_request(peer: Peer) -> None:
    await read_request(peer)
    peer.close()


async def _garbage(peer: Peer) -> None:
    await read_request(peer)
    await peer.send(b"SSH-2.0-OpenSSH_9\r\n")
    await peer.wait_gone()


def _head_then(rest: bytes, end: str = "close") -> Script:
    async def script(peer: Peer) -> None:
        await read_request(peer)
        await peer.send(rest)
        getattr(peer, end)()

    return script


def _redirect(peer: Peer) -> object:
    return answering(b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1/x\r\ncontent-length: 0\r\n\r\n")(
        peer
    )


CUT_JSON = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"request_id": "ab'
BROKEN = [
    (RUN, _reset_after_request, 500, "upstream_outcome_unknown", "the run may be working"),
    (RUN, _close_after_request, 500, "upstream_outcome_unknown", "as above"),
    (RUN, _garbage, 500, "upstream_outcome_unknown", "an answer that is no HTTP says nothing about the run"),
    (RUN, _head_then(CUT_JSON), 500, "upstream_outcome_unknown", "a run's JSON goes down whole or not at all"),
    (RUN, _redirect, 500, "upstream_outcome_unknown", "a redirect is never followed"),
    (STREAM, _reset_after_request, 500, "upstream_outcome_unknown", "the stream may have been billed"),
    (SUBMIT, _reset_after_request, 500, "upstream_outcome_unknown", "the job may be queued"),
    (SUBMIT, _head_then(CUT_JSON), 500, "upstream_outcome_unknown", "a job without an id helps nobody"),
    (SUBMIT, _head_then(CUT_JSON, "reset"), 500, "upstream_outcome_unknown", "as above"),
    (INITIATE, _reset_after_request, 502, "upstream_unreachable", "an upload costs nothing: clients may repeat"),
    (INITIATE, _head_then(CUT_JSON), 502, "upstream_unreachable", "its answer is read whole too"),
    (STATUS, _reset_after_request, 502, "upstream_unreachable", "reads may be repeated"),
    (STATUS, _garbage, 502, "upstream_invalid", "reads may be repeated"),
    (STATUS, _redirect, 502, "upstream_invalid", "a redirect is never followed"),
    (STATUS_STREAM, _close_after_request, 502, "upstream_unreachable", "no head came"),
    (RESULT, _close_after_request, 502, "upstream_unreachable", "no head came"),
    (CANCEL, _close_after_request, 502, "upstream_unreachable", "cancelling twice does no harm"),
]


@pytest.mark.parametrize(("kind", "script", "status", "error_type", "reason"), BROKEN)
async def test_broken_upstream_before_the_head_is_told_by_kind(
    kind: Kind, script: Script, status: int, error_type: str, reason: str, serve: Serve, start: StartProxy
) -> None:
    proxy = await start(serve(script))
    answer = await _ask(proxy, kind)
    assert (answer.status, answer.one(b"x-fal-error-type")) == (status, error_type.encode()), reason
    body = msgspec.json.decode(answer.body)
    assert body["error_type"] == error_type
    assert body["detail"] == body["message"]
    assert answer.one(b"x-fal-request-id") is None


@pytest.mark.parametrize("kind", [RUN, STREAM, SUBMIT, INITIATE, STATUS])
async def test_unreachable_upstream_is_502_because_nothing_was_written(
    kind: Kind, serve: Serve, start: StartProxy
) -> None:
    upstream = serve(answering(ok()))
    await upstream.close()
    answer = await _ask(await start(upstream), kind)
    assert (answer.status, answer.one(b"x-fal-error-type")) == (502, b"upstream_unreachable")


@pytest.mark.parametrize(
    ("kind", "status", "error_type"),
    [
        (SUBMIT, 500, b"upstream_outcome_unknown"),
        (STATUS, 504, b"upstream_timeout"),
        (INITIATE, 504, b"upstream_timeout"),
    ],
)
async def test_silent_upstream_times_out_by_kind(
    kind: Kind, status: int, error_type: bytes, serve: Serve, start: StartProxy, settings: Settings
) -> None:
    async def silent(peer: Peer) -> None:
        await peer.wait_gone()

    patience = UpstreamSettings(head_seconds=0.1)
    proxy = await start(serve(silent), msgspec.structs.replace(settings, upstream=patience))
    answer = await _ask(proxy, kind)
    assert (answer.status, answer.one(b"x-fal-error-type")) == (status, error_type)


CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b"data: {}\n\n"
CUTS = [
    (STREAM, CHUNKED_HEAD % b"text/event-stream" + b"a\r\n" + EVENT + b"\r\n", EVENT, "a stream between events"),
    (STREAM, CHUNKED_HEAD % b"text/event-stream" + b"ff\r\n" + EVENT, EVENT, "a stream inside a chunk"),
    (STATUS_STREAM, CHUNKED_HEAD % b"text/event-stream" + b"a\r\n" + EVENT + b"\r\n", EVENT, "a status stream"),
    (RESULT, CUT_JSON, CUT_JSON.partition(b"\r\n\r\n")[2], "a result with a length"),
    (RUN, CHUNKED_HEAD % b"image/png" + b"3\r\npng\r\n", b"png", "a run that is no JSON"),
]


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize(("kind", "sent", "body", "reason"), CUTS)
async def test_answer_that_breaks_after_the_head_never_ends_cleanly(
    kind: Kind, sent: bytes, body: bytes, reason: str, end: str, serve: Serve, start: StartProxy
) -> None:
    proxy = await start(serve(_head_then(sent, end)))
    answer = await _ask(proxy, kind)
    assert answer.status == 200
    assert answer.body == body, "what was received before the break comes down"
    assert not answer.complete, reason


async def test_close_delimited_answer_ends_cleanly_with_an_orderly_close_only(serve: Serve, start: StartProxy) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + EVENT
    proxy = await start(serve(_head_then(head), _head_then(head, "reset")))
    whole, cut = await _ask(proxy, STREAM), await _ask(proxy, STREAM)
    assert (whole.body, whole.complete) == (EVENT, True)
    assert not cut.complete


async def test_encoded_answer_passes_untouched_where_nobody_reads_it(serve: Serve, start: StartProxy) -> None:
    packed = gzip.compress(b'{"images": []}')
    proxy = await start(serve(answering(ok(packed, b"content-encoding: gzip"))))
    for kind in (RUN, RESULT):
        answer = await _ask(proxy, kind)
        assert (answer.body, answer.one(b"content-encoding")) == (packed, b"gzip")


@pytest.mark.parametrize(("kind", "status"), [(SUBMIT, 500), (INITIATE, 502), (STATUS, 502), (STATUS_STREAM, 502)])
async def test_encoded_answer_that_must_be_read_is_invalid(
    kind: Kind, status: int, serve: Serve, start: StartProxy
) -> None:
    proxy = await start(serve(answering(ok(gzip.compress(b"{}"), b"content-encoding: gzip"))))
    assert (await _ask(proxy, kind)).status == status


@pytest.mark.parametrize("status", [200, 202, 400, 401, 403, 404, 422, 429, 499, 500, 502, 503, 504])
@pytest.mark.parametrize("kind", [RUN, SUBMIT, RESULT])
async def test_status_and_body_of_fal_pass_untouched(kind: Kind, status: int, serve: Serve, start: StartProxy) -> None:
    body = b'{"detail":[{"loc":["body","prompt"],"msg":"Field required","type":"missing"}]}'
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\nx-fal-request-id: r\r\ncontent-length: %d\r\n\r\n"
    proxy = await start(serve(answering(head % (status, len(body)) + body)))
    answer = await _ask(proxy, kind)
    assert (answer.status, answer.body, answer.one(b"x-fal-request-id")) == (status, body, b"r")


async def test_bodiless_answers_pass(serve: Serve, start: StartProxy) -> None:
    proxy = await start(
        serve(answering(b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"))
    )
    assert [(await _ask(proxy, STATUS)).status for _ in range(2)] == [204, 304]


async def test_unpaid_get_on_a_stale_connection_is_repeated_once_and_a_paid_request_never(
    serve: Serve, start: StartProxy
) -> None:
    async def answer_then_die(peer: Peer) -> None:
        await read_request(peer)
        await peer.send(ok())
        await read_request(peer)
        peer.close()

    upstream = serve(answer_then_die, answer_then_die, answering(ok()))
    proxy = await start(upstream)
    assert (await _ask(proxy, STATUS)).status == 200
    assert (await _ask(proxy, STATUS)).status == 200, "the stale connection died, a fresh one answered"
    assert len(upstream.peers) == 2
    assert (await _ask(proxy, RUN)).status == 500, "the same death of a paid request is an unknown outcome"
    assert len(upstream.peers) == 2


@pytest.mark.parametrize("kind", [CANCEL, SUBMIT])
async def test_only_get_is_repeated(kind: Kind, serve: Serve, start: StartProxy) -> None:
    async def answer_then_die(peer: Peer) -> None:
        await read_request(peer)
        await peer.send(ok())
        await read_request(peer)
        peer.close()

    upstream = serve(answer_then_die)
    proxy = await start(upstream)
    assert (await _ask(proxy, STATUS)).status == 200
    assert (await _ask(proxy, kind)).status in (500, 502)
    assert len(upstream.peers) == 1
