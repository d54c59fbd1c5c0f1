"""A collector of spans, owned by the tests: what OTLP/HTTP brought, decoded by OpenTelemetry's own protocol files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Encoded
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from support.receiver import Answer, Receiver, receiving

SERVER, CLIENT = Encoded.SPAN_KIND_SERVER, Encoded.SPAN_KIND_CLIENT
WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Span:
    """One span as it came."""

    encoded: Encoded
    resource: dict[str, Any]

    @property
    def name(self) -> str:
        """Return its name."""
        return self.encoded.name

    @property
    def trace_id(self) -> str:
        """Return its trace, in hex."""
        return self.encoded.trace_id.hex()

    @property
    def span_id(self) -> str:
        """Return its own id, in hex."""
        return self.encoded.span_id.hex()

    @property
    def parent_id(self) -> str:
        """Return its parent's id, in hex; "" without one."""
        return self.encoded.parent_span_id.hex()

    @property
    def attributes(self) -> dict[str, Any]:
        """Return what it says."""
        return _values(self.encoded.attributes)

    @property
    def failed(self) -> bool:
        """Say whether its status is an error."""
        return self.encoded.status.code == Status.STATUS_CODE_ERROR

    @property
    def seconds(self) -> tuple[float, float]:
        """Return when it began and ended, since 1970."""
        return self.encoded.start_time_unix_nano / 1e9, self.encoded.end_time_unix_nano / 1e9


@dataclass(frozen=True)
class Collector:
    """A running collector."""

    receiver: Receiver

    @property
    def spans(self) -> list[Span]:
        """Return every span that has come."""
        return [span for request in self.receiver.received for span in _decoded(request.body)]

    async def exactly(self, count: int) -> list[Span]:
        """Wait for so many spans and return them, servers' first."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.spans) < count:
                await self.receiver.arrived(len(self.receiver.received) + 1)
        found = self.spans
        assert len(found) == count, [span.name for span in found]
        return sorted(found, key=lambda span: (span.encoded.kind, span.encoded.start_time_unix_nano))


@asynccontextmanager
async def collecting(*statuses: int, answer: Answer | None = None) -> AsyncIterator[Collector]:
    """Run a collector until the block ends; answers are those of `receiving`."""
    async with receiving(*statuses, answer=answer) as receiver:
        yield Collector(receiver)


def name_collector(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process's spans go there, until the test ends."""
    for name, value in exporting_to(collector).items():
        monkeypatch.setenv(name, value)


def exporting_to(collector: Collector) -> dict[str, str]:
    """Return the variables that send spans there, soon."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}


def _decoded(body: bytes) -> list[Span]:
    request = ExportTraceServiceRequest.FromString(body)
    return [
        Span(span, _values(group.resource.attributes))
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
