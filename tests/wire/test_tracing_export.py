"""When spans are made, and what making them may cost: the operator's variables, a collector that is away, the end."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from fal_proxy.settings import Settings
from fal_proxy.telemetry import spans
from support import processes
from support.collector import Collector, collecting, exporting_to, name_collector
from support.peers import PATIENCE, Serve, Upstream
from support.processes import Start
from support.proxied import MOUNT, StartProxy
from support.raw import raw_client, request
from support.receiver import Received
from support.scripts import answering, ok
from support.traced import JSON, RUN, SAMPLED, Heads, ask


async def test_the_operator_samples_whatever_callers_say(
    serve: Serve, start: StartProxy, traced: Settings, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    fal = Heads()
    proxy = await start(serve(fal.script), traced)
    assert await ask(proxy.port, proxy.bearer, JSON, {"traceparent": SAMPLED}) == 200
    told = fal.field("traceparent")
    assert told is not None
    assert told.endswith("-00")
    await proxy.app.close()
    assert collector.spans == []


async def test_without_tracing_the_callers_context_passes_unchanged(
    serve: Serve, start: StartProxy, collector: Collector
) -> None:
    fal = Heads()
    proxy = await start(serve(fal.script))
    assert await ask(proxy.port, proxy.bearer, JSON, {"traceparent": SAMPLED, "tracestate": "a=1"}) == 200
    assert (fal.field("traceparent"), fal.field("tracestate")) == (SAMPLED, "a=1")
    await proxy.app.close()
    assert collector.spans == []


async def test_a_collector_that_never_answers_stops_nobody(
    serve: Serve, start: StartProxy, traced: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = asyncio.Event()

    async def silence(_: Received) -> bytes:
        await never.wait()
        return ok()

    monkeypatch.setattr(spans, "CLOSE_SECONDS", 0.2)
    async with collecting(answer=silence) as collector:
        name_collector(collector, monkeypatch)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
        proxy = await start(serve(*[Heads().script] * 60), traced)
        for _ in range(20):  # more than the queue holds
            assert await ask(proxy.port, proxy.bearer, JSON) == 200
        await collector.receiver.arrived(1)
        began = time.monotonic()
        await proxy.app.close()
        assert time.monotonic() - began < spans.CLOSE_SECONDS + 5
        never.set()
        # What waits for the collector goes on without us; here it would go on into other tests.
        for thread in threading.enumerate():
            if thread.name == "fal-proxy-spans":
                await asyncio.to_thread(thread.join, PATIENCE * 5)
                assert not thread.is_alive()


async def test_what_is_left_at_the_end_is_sent(
    serve: Serve, start: StartProxy, traced: Settings, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    proxy = await start(serve(Heads().script), traced)
    assert await ask(proxy.port, proxy.bearer, JSON) == 200
    assert collector.spans == []
    await proxy.app.close()
    assert len(await collector.exactly(2)) == 2


async def test_the_operators_variables_name_the_service_and_the_fields_of_the_export(
    serve: Serve, start: StartProxy, traced: Settings, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pictures")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=shop")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=hush%20hush")
    upstream: Upstream = serve(answering(ok()))
    proxy = await start(upstream, traced)
    assert await ask(proxy.port, proxy.bearer, JSON) == 200
    server, _ = await collector.exactly(2)
    assert server.resource["service.name"] == "pictures"
    assert server.resource["deployment.environment.name"] == "shop"
    assert collector.receiver.received[0].headers["api-key"] == "hush hush"
    assert collector.receiver.received[0].head.startswith("POST /v1/traces ")


start_process = processes.start_process
PATIENT = {
    "OTEL_EXPORTER_OTLP_TIMEOUT": "3600"
}  # in itself it would wait for an hour, and its library for half a minute
TRACING = "[telemetry]\ntracing = true\n"


async def test_serve_ends_soon_although_its_collector_does_not_answer(serve: Serve, start_process: Start) -> None:
    never = asyncio.Event()

    async def silence(_: Received) -> bytes:
        await never.wait()
        return b""

    async with collecting(answer=silence) as collector:
        upstream = f"http://127.0.0.1:{serve(Heads().script).port}"
        proxy = await start_process(upstream, sections=TRACING, environ=exporting_to(collector) | PATIENT)
        assert await ask(proxy.port, proxy.bearer, JSON) == 200
        await collector.receiver.arrived(1)
        proxy.signal()
        code, lines = await proxy.ended()
        assert (code, len(lines)) == (0, 1)
        never.set()


async def test_serve_sends_its_last_spans_and_forgets_the_exporters_fields(serve: Serve, start_process: Start) -> None:
    async with collecting() as collector:
        upstream = f"http://127.0.0.1:{serve(Heads().script).port}"
        environ = exporting_to(collector) | {
            "OTEL_BSP_SCHEDULE_DELAY": "3600000",
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=hush-hush",
        }
        proxy = await start_process(upstream, sections=TRACING, environ=environ)
        assert b"hush-hush" not in proxy.environment()
        assert await ask(proxy.port, proxy.bearer, JSON) == 200
        proxy.signal()
        code, _ = await proxy.ended()
        assert code == 0
        server, client = await collector.exactly(2)
        assert client.parent_id == server.span_id
        assert collector.receiver.received[0].headers["api-key"] == "hush-hush"


FAL = "https://fal.run/fal-ai/flux/dev"
DOUBLED = [
    ([("Host", "evil.example"), ("Host", "127.0.0.1")], RUN, 400),
    ([("Authorization", "Bearer nonsense")], RUN, 401),
    ([("Content-Type", "text/html"), ("Content-Type", "application/json")], RUN, 400),
    ([("x-fal-target-url", FAL), ("x-fal-target-url", FAL)], MOUNT, 400),
]


@pytest.mark.parametrize("carried", [[], ["traceparent"], ["traceparent", "tracestate"]])
@pytest.mark.parametrize(("fields", "path", "status"), DOUBLED, ids=[row[0][0][0] for row in DOUBLED])
async def test_a_field_that_comes_twice_is_seen_to_whatever_tracing_puts_in_the_place_of_others(
    fields: list[tuple[str, str]],
    path: str,
    status: int,
    carried: list[str],
    serve: Serve,
    start: StartProxy,
    traced: Settings,
    collector: Collector,
) -> None:
    proxy = await start(serve(Heads().script), traced)
    head = [*fields, *proxy.bearer.items(), *((name, "x") for name in carried)]
    for _ in range(2):
        async with raw_client(proxy.port) as client:
            await client.send(request("POST", path, head, b"{}"))
            assert (await client.answer()).status == status
