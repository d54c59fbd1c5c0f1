"""OpenTelemetry's spans: one per exchange and, as its child, one for its call to fal, by the HTTP semantic conventions.

Both are made when the exchange has ended, of the times that it holds; at its beginning it only gets its ids, because
fal is told of them. What a span says is what an access line says. Paths can hold capabilities and request ids, so of
a path only the template is shown, and REDACTED for what a request filled in.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from datetime import UTC, datetime

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from fal_proxy._version import __version__
from fal_proxy.exchange import ADMITTED, Ending, Exchange, Trace
from fal_proxy.headers import only
from fal_proxy.request import Request
from fal_proxy.routes import route_of
from fal_proxy.telemetry.access import line_of

CLOSE_SECONDS = 2.0
SCHEMA = "https://opentelemetry.io/schemas/1.27.0"
OURS = "fal_proxy."
TOLD = ("id", "caller", "plan", "kind", "endpoint", "decision", "ending", "units", "cost_microusd")
REDACTED = "REDACTED"
_CARRIED = (b"traceparent", b"tracestate")
# A stranger's word must not become a span's name (semantic conventions, "HTTP spans").
_METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"])
_OTHER = "_OTHER"

_log = logging.getLogger("fal_proxy")


class _Given(IdGenerator):
    """Gives a span the id that was chosen for it when its exchange began."""

    trace_id = span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class Spans:
    """Makes spans, and has a thread of the library send them as `OTEL_*` says. A queue that is full drops them."""

    def __init__(self, mount: str) -> None:
        """Begin. Raises ValueError for variables that contradict each other."""
        ours = Resource.create({"service.name": "fal-proxy", "service.version": __version__})
        self._mount = mount
        self._random, self._given = RandomIdGenerator(), _Given()
        self._provider = TracerProvider(
            resource=ours.merge(OTELResourceDetector().detect()), id_generator=self._given, shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("fal_proxy", __version__, SCHEMA)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, exchange: Exchange, request: Request) -> None:
        """Make the exchange a child of the caller's span, or of the one that the embedding app is in; fal gets ours."""
        context = self._context_of(request)
        parent = get_current_span(context).get_span_context()
        trace_id = parent.trace_id if parent.is_valid else self._random.generate_trace_id()
        route = route_of(request.path, self._mount)
        verdict = self._provider.sampler.should_sample(context, trace_id, route, SpanKind.SERVER, {})
        server_id, client_id = self._random.generate_span_id(), self._random.generate_span_id()
        sampled = verdict.decision is Decision.RECORD_AND_SAMPLE
        if sampled:
            method = request.method if request.method in _METHODS else _OTHER
            exchange.trace = Trace(
                context, trace_id, server_id, client_id, time.time_ns(), method, request.scheme, route
            )
        flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
        told = SpanContext(trace_id, client_id, is_remote=False, trace_flags=flags, trace_state=verdict.trace_state)
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(NonRecordingSpan(told), Context()))
        kept = [pair for pair in request.headers if pair[0] not in _CARRIED]
        request.headers = [*kept, *((name.encode(), value.encode("latin-1")) for name, value in carrier.items())]
        request.notes = {}  # they are about a head without these

    def finish(self, exchange: Exchange) -> None:
        """Make the spans of an exchange, if it is sampled."""
        trace = exchange.trace
        if trace is None:
            return
        line = line_of(exchange, datetime.now(UTC))
        told = {OURS + name: getattr(line, name) for name in TOLD}
        self._given.trace_id, self._given.span_id = trace.trace_id, trace.server_id
        server = self._tracer.start_span(
            _name(trace.method, trace.route), trace.context, SpanKind.SERVER, start_time=trace.began_ns
        )
        server.set_attributes({name: value for name, value in told.items() if value is not None})
        server.set_attributes(
            {
                "http.request.method": trace.method,
                "http.route": trace.route,
                "http.response.body.size": exchange.bytes_down,
                "url.scheme": trace.scheme,
                "url.path": re.sub(r"\{\w+\}", REDACTED, trace.route),
            }
        )
        _conclude(server, exchange.status, _server_error(exchange))
        if exchange.asked_seconds is not None:
            self._call_span(exchange, trace, exchange.asked_seconds, server)
        server.end(_at(trace, exchange.ended_seconds))

    async def close(self) -> None:
        """Send what is left, for at most CLOSE_SECONDS; a collector that does not answer loses it."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            try:
                loop.call_soon_threadsafe(ended.set)
            except RuntimeError:
                pass  # it took too long: the loop is closed

        # A thread that nobody waits for at the end of the process, unlike those of the loop's executor.
        threading.Thread(target=shut_down, name="fal-proxy-spans", daemon=True).start()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await ended.wait()
        except TimeoutError:
            _log.warning("the last spans did not reach their collector within %g s", CLOSE_SECONDS)

    def _context_of(self, request: Request) -> Context:
        if get_current_span().get_span_context().is_valid:
            return set_span_in_context(get_current_span(), Context())
        carried = [(name.decode(), value.decode("latin-1")) for name, value in only(request.headers, _CARRIED)]
        parents = [value for name, value in carried if name == "traceparent"]
        if len(parents) != 1:
            return Context()
        states = [value for name, value in carried if name == "tracestate"]
        return self._propagator.extract({"traceparent": parents, "tracestate": states}, Context())

    def _call_span(self, exchange: Exchange, trace: Trace, asked_seconds: float, server: Span) -> None:
        self._given.span_id = trace.client_id
        context = set_span_in_context(server, Context())
        name = _name(trace.method)
        began = _at(trace, asked_seconds)
        span = self._tracer.start_span(name, context, SpanKind.CLIENT, start_time=began)
        span.set_attributes(
            {
                "http.request.method": trace.method,
                "http.request.body.size": exchange.bytes_up,
                "server.address": exchange.host,
                "server.port": 443,
                "url.full": f"https://{exchange.host}/{REDACTED}",
            }
        )
        _conclude(span, exchange.upstream_status, _client_error(exchange))
        ended = exchange.answered_seconds
        span.end(_at(trace, exchange.ended_seconds if ended is None else ended))


def _name(method: str, route: str = "") -> str:
    return f"{'HTTP' if method == _OTHER else method} {route}".rstrip()


def _at(trace: Trace, seconds: float | None) -> int:
    return trace.began_ns + int((seconds or 0.0) * 1e9)


def _conclude(span: Span, status: int | None, error: str) -> None:
    if status is not None:
        span.set_attribute("http.response.status_code", status)
    if error:
        span.set_attribute("error.type", error)
        span.set_status(StatusCode.ERROR)


def _server_error(exchange: Exchange) -> str:
    """Return what went wrong on our side, or beyond; what a caller did wrong is none (semantic conventions)."""
    if exchange.ending is Ending.CUT:
        return str(exchange.ending.value)
    if exchange.status is None or exchange.status < 500:
        return ""
    return str(exchange.status) if exchange.decision == ADMITTED else exchange.decision


def _client_error(exchange: Exchange) -> str:
    status = exchange.upstream_status
    if status is not None and status >= 400:
        return str(status)
    if exchange.whole or exchange.ending in (Ending.COMPLETE, Ending.CLIENT_GONE):
        return ""
    return str(exchange.ending.value) if exchange.decision == ADMITTED else exchange.decision
