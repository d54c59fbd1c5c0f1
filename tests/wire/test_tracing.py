"""Spans, as a collector receives them: one per exchange, its call to fal below it, and nothing that was said in either."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry.context import attach, detach
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from fal_proxy.exchange import Exchange
from fal_proxy.request import Request
from fal_proxy.settings import Settings, Telemetry
from fal_proxy.telemetry.spans import Spans
from support.collector import CLIENT, SERVER, Collector
from support.lines import Lines
from support.peers import PATIENCE, Peer, Serve
from support.proxied import FAL_KEY_ID, FAL_KEY_SECRET, MOUNT, StartProxy
from support.raw import raw_client, request
from support.scripts import read_request
from support.storage import page, relaying
from support.traced import JSON, PARENT, RUN, SAMPLED, TRACE, UNSAMPLED, Heads, ask
from support.websocket import TEXT, FalSockets, Frame, opened


async def test_a_run_is_a_span_with_its_call_to_fal_below_it(
    serve: Serve, start: StartProxy, traced: Settings, collector: Collector, lines: Lines
) -> None:
    fal = Heads()
    proxy = await start(serve(fal.script), traced)
    before = time.time()
    assert await ask(proxy.port, proxy.bearer, JSON, path=RUN) == 200
    server, client = await collector.exactly(2)
    [line] = await lines.exactly(1)
    assert (server.encoded.kind, client.encoded.kind) == (SERVER, CLIENT)
    assert (server.parent_id, client.parent_id, client.trace_id) == ("", server.span_id, server.trace_id)
    assert fal.field("traceparent") == f"00-{server.trace_id}-{client.span_id}-01"
    assert server.name == f"POST {MOUNT}/{{host}}/{{path}}"
    assert server.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.response.body.size": 14,
        "http.route": MOUNT + "/{host}/{path}",
        "url.scheme": "http",
        "url.path": MOUNT + "/REDACTED/REDACTED",
        "fal_proxy.id": line["id"],
        "fal_proxy.caller": line["caller"],
        "fal_proxy.plan": "default",
        "fal_proxy.kind": "run",
        "fal_proxy.endpoint": "fal-ai/flux/dev",
        "fal_proxy.decision": "admitted",
        "fal_proxy.ending": "complete",
        "fal_proxy.units": "1.50",
    }
    assert client.name == "POST"
    assert client.attributes == {
        "http.request.method": "POST",
        "http.request.body.size": 2,
        "http.response.status_code": 200,
        "server.address": "fal.run",
        "server.port": 443,
        "url.full": "https://fal.run/REDACTED",
    }
    assert not server.failed
    assert not client.failed
    assert server.resource["service.name"] == "fal-proxy"
    (began, ended), (asked, answered) = server.seconds, client.seconds
    assert before - 0.1 <= began <= asked <= answered <= ended <= time.time() + 0.1


async def test_what_was_charged_is_told(
    serve: Serve, start: StartProxy, traced: Settings, collector: Collector
) -> None:
    plans = {"default": msgspec.structs.replace(traced.plans["default"], budget="1.00/day")}
    proxy = await start(serve(Heads().script), msgspec.structs.replace(traced, plans=plans, prices={"default": 0.5}))
    assert await ask(proxy.port, proxy.bearer, JSON) == 200
    server, _ = await collector.exactly(2)
    assert server.attributes["fal_proxy.cost_microusd"] == 750_000


CARRIED = [
    ({"traceparent": SAMPLED}, TRACE, None, "the caller's span is the parent"),
    ({"traceparent": SAMPLED, "tracestate": "a=1,b=2"}, TRACE, "a=1,b=2", "and what travels with it goes on"),
    ({"traceparent": "00-" + "0" * 32 + f"-{PARENT}-01", "tracestate": "a=1"}, None, None, "no trace has this id"),
    ({"traceparent": "hello", "tracestate": "a=1"}, None, None, "malformed: a trace of our own, without their state"),
    ({"tracestate": "a=1"}, None, None, "a state of nothing"),
    ({"traceparent": SAMPLED, "connection": "traceparent"}, None, None, "meant for the last hop only"),
]


@pytest.mark.parametrize(("carried", "trace", "state", "why"), CARRIED, ids=[row[-1] for row in CARRIED])
async def test_our_span_is_a_child_of_the_callers_and_fal_gets_ours(
    serve: Serve,
    start: StartProxy,
    traced: Settings,
    collector: Collector,
    carried: dict[str, str],
    trace: str | None,
    state: str | None,
    why: str,
) -> None:
    fal = Heads()
    proxy = await start(serve(fal.script), traced)
    assert await ask(proxy.port, proxy.bearer, JSON, carried) == 200
    server, client = await collector.exactly(2)
    assert server.trace_id == client.trace_id
    assert (server.trace_id == TRACE, server.parent_id == PARENT) == (trace is not None,) * 2, why
    if "connection" not in carried:
        assert fal.field("traceparent") == f"00-{server.trace_id}-{client.span_id}-01"
    assert fal.field("tracestate") == state
    assert server.encoded.trace_state == (state or "")


async def test_two_parents_are_none(serve: Serve, start: StartProxy, traced: Settings, collector: Collector) -> None:
    fal = Heads()
    proxy = await start(serve(fal.script), traced)
    head = request("POST", RUN, proxy.bearer | JSON | {"traceparent": SAMPLED, "Traceparent": SAMPLED}, b"{}")
    async with raw_client(proxy.port) as client:
        await client.send(head)
        assert (await client.answer()).status == 200
    server, _ = await collector.exactly(2)
    assert server.trace_id != TRACE


async def test_a_caller_who_is_not_sampled_leaves_no_span_and_fal_is_told_so(
    serve: Serve, start: StartProxy, traced: Settings, collector: Collector
) -> None:
    fal = Heads()
    proxy = await start(serve(fal.script), traced)
    assert await ask(proxy.port, proxy.bearer, JSON, {"traceparent": UNSAMPLED}) == 200
    told = fal.field("traceparent")
    assert told is not None
    assert told.startswith(f"00-{TRACE}-")
    assert told.endswith("-00")
    assert PARENT not in told
    assert await ask(proxy.port, proxy.bearer, JSON) == 200
    assert TRACE not in {span.trace_id for span in await collector.exactly(2)}


FAILED: list[tuple[str, dict[str, str], bytes | None, tuple[Any, ...], tuple[Any, ...] | None, str]] = [
    ("/fal.run/a/b", {"authorization": "Bearer no"}, None, (401, "unidentified", None, False), None, "refused: no call"),
    ("/evil.example/x?key=secret", {}, None, (400, "invalid_target", None, False), None, "no target either"),
    ("/fal.run/a/b", {}, b"HTTP/1.1 422 X\r\ncontent-length: 2\r\n\r\n{}", (422, "admitted", None, False), (422, "422", True), "fal's refusal"),
    ("/fal.run/a/b", {}, b"HTTP/1.1 500 X\r\ncontent-length: 2\r\n\r\n{}", (500, "admitted", "500", True), (500, "500", True), "fal's fault"),
    ("/fal.run/a/b", {}, b"", (500, "upstream_outcome_unknown", "upstream_outcome_unknown", True), (None, "upstream_outcome_unknown", True), "fal left without an answer"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "fields", "answer", "server_says", "client_says", "why"), FAILED, ids=[row[-1] for row in FAILED]
)
async def test_what_failed_is_told_where_it_failed(
    serve: Serve,
    start: StartProxy,
    traced: Settings,
    collector: Collector,
    path: str,
    fields: dict[str, str],
    answer: bytes | None,
    server_says: tuple[Any, ...],
    client_says: tuple[Any, ...] | None,
    why: str,
) -> None:
    async def script(peer: Peer) -> None:
        await read_request(peer)
        await peer.send(answer or b"")
        peer.close()

    proxy = await start(serve(script), traced)
    status = await ask(proxy.port, proxy.bearer, JSON, fields, path=MOUNT + path)
    server, *calls = await collector.exactly(1 if client_says is None else 2)
    said = server.attributes
    assert status == said["http.response.status_code"]
    assert (status, said["fal_proxy.decision"], said.get("error.type"), server.failed) == server_says, why
    told = [
        (call.attributes.get("http.response.status_code"), call.attributes.get("error.type"), call.failed)
        for call in calls
    ]
    assert told == ([] if client_says is None else [client_says]), why


async def test_a_stream_that_fal_cuts_is_a_fault_of_both_spans(
    serve: Serve, start: StartProxy, traced: Settings, collector: Collector
) -> None:
    async def script(peer: Peer) -> None:
        await read_request(peer)
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 100\r\n\r\ndata: 1\n\n")
        await peer.delivered()
        peer.close()

    proxy = await start(serve(script), traced)
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", RUN + "/stream", proxy.bearer | JSON, b"{}"))
        assert not (await client.answer()).complete
    server, call = await collector.exactly(2)
    for span in (server, call):
        assert (span.attributes["http.response.status_code"], span.attributes["error.type"], span.failed) == (
            200,
            "cut",
            True,
        )
    assert server.attributes["fal_proxy.ending"] == "cut"


async def test_a_caller_who_leaves_is_nobodys_fault(
    serve: Serve, start: StartProxy, traced: Settings, collector: Collector
) -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await read_request(peer)
        asked.set()
        await peer.wait_gone()

    proxy = await start(serve(script), traced)
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", RUN, proxy.bearer | JSON, b"{}"))
        await asyncio.wait_for(asked.wait(), PATIENCE)
    for span in await collector.exactly(2):
        assert "http.response.status_code" not in span.attributes
        assert not span.failed


async def test_no_span_holds_what_was_said(
    serve: Serve, start: StartProxy, traced: Settings, collector: Collector
) -> None:
    proxy = await start(serve(Heads().script), traced)
    secret = "hush-hush"
    path = f"{MOUNT}/queue.fal.run/fal-ai/flux/requests/{secret}/status?logs={secret}"
    fields = {"user-agent": secret, "cookie": secret, "x-fal-tags": secret, "referer": f"http://x/{secret}"}
    await ask(proxy.port, proxy.bearer, fields, method="GET", path=path, body=b"")
    await ask(proxy.port, proxy.bearer, JSON, fields, body=b'{"prompt": "hush-hush"}')
    await ask(proxy.port, fields, path=f"{MOUNT}/{secret}/{secret}?{secret}")
    await ask(proxy.port, fields, method="PUT", path=f"{MOUNT}/uploads/{secret}")
    await collector.exactly(6)
    sent = b"".join(each.head.encode() + each.body for each in collector.receiver.received)
    user = proxy.user_key.encode()
    for text in (
        secret.encode(),
        FAL_KEY_ID.encode(),
        FAL_KEY_SECRET.encode(),
        user,
        b"key::ada",
    ):
        assert text not in sent


async def test_an_uploads_url_is_in_no_span(tmp_path: Path, collector: Collector) -> None:
    settings = msgspec.structs.replace(relaying(tmp_path), telemetry=Telemetry(tracing=True))
    async with page(tmp_path, settings) as app:
        urls = await app.initiate()
        path = urls["upload_url"].removeprefix(app.proxy.origin)
        answer = await app.ask("PUT", path, {"Content-Type": "image/png"}, b"\x89PNG\r\n\x1a\n")
        assert answer.status == 200
        assert app.fal.last.header("traceparent") is None, "a file host is told nothing but the file"
        spans = await collector.exactly(4)
    [upload] = [span for span in spans if span.attributes.get("fal_proxy.kind") == "upload_part"]
    assert upload.attributes["url.path"] == MOUNT + "/uploads/REDACTED"
    [call] = [span for span in spans if span.parent_id == upload.span_id]
    assert call.attributes["server.address"].endswith("fal.media")
    capability = path.rpartition("/")[2].encode()
    assert len(capability) > 20
    assert not any(capability in each.body for each in collector.receiver.received)


async def test_a_socket_is_a_span_from_its_handshake_to_its_end(
    serve: Serve, start: StartProxy, traced: Settings, collector: Collector
) -> None:
    fal = FalSockets()
    proxy = await start(serve(fal.script), traced)
    async with opened(proxy, [*proxy.bearer.items(), ("traceparent", SAMPLED)]) as caller:
        end = await fal.next()
        await caller.send(TEXT, b"a lake")
        assert await end.frame() == Frame(TEXT, b"a lake")
        assert collector.spans == []
    server, client = await collector.exactly(2)
    assert (server.trace_id, server.parent_id, client.parent_id) == (TRACE, PARENT, server.span_id)
    assert f"traceparent: 00-{TRACE}-{client.span_id}-01".encode() in end.head.lower()
    assert (server.attributes["fal_proxy.kind"], server.attributes["http.response.status_code"]) == ("realtime", 101)
    assert (client.attributes["server.address"], client.attributes["http.response.status_code"]) == ("fal.run", 101)


async def test_inside_a_traced_app_the_apps_own_span_is_the_parent(collector: Collector) -> None:
    spans = Spans(MOUNT)
    host = SpanContext(int(TRACE, 16), int(PARENT, 16), is_remote=False, trace_flags=TraceFlags(1))
    arrived = Request(
        "POST", RUN.encode(), None, [(b"traceparent", b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01")], "", "http"
    )
    exchange = Exchange()
    current = attach(set_span_in_context(NonRecordingSpan(host)))
    try:
        spans.begin(exchange, arrived)
    finally:
        detach(current)
    exchange.ended_seconds = 0.0
    spans.finish(exchange)
    await spans.close()
    [span] = await collector.exactly(1)
    assert (span.trace_id, span.parent_id) == (TRACE, PARENT)
