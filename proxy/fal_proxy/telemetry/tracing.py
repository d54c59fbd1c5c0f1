"""Whether spans are made, and by what. Knows no OpenTelemetry: without tracing nothing of it is imported."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Protocol
from urllib.parse import urlsplit

from fal_proxy.errors import Misconfigured
from fal_proxy.exchange import Exchange
from fal_proxy.loading import Finding
from fal_proxy.request import Request
from fal_proxy.settings import Settings

SETTING = "telemetry.tracing"
# What OpenTelemetry's variables may say beyond what its library judges by itself, and what is meant without them.
EXPORTERS = ("OTEL_TRACES_EXPORTER", ("otlp", "none"))
PROTOCOLS = (
    ("OTEL_EXPORTER_OTLP_PROTOCOL", ("http/protobuf",)),
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", ("http/protobuf",)),
)
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Tracing(Protocol):
    """What makes spans."""

    def begin(self, exchange: Exchange, request: Request) -> None:
        """Give an exchange its place in a trace, and let the request carry it on to fal."""

    def finish(self, exchange: Exchange) -> None:
        """Make the spans of an exchange that has ended."""

    async def close(self) -> None:
        """Let spans reach the collector, for a bounded time."""


def findings(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    """Return what keeps spans from being made as they were asked for."""
    if not settings.telemetry.tracing:
        return []
    found = [
        Finding("error", name, f"is {environ[name]!r}; spans go by {' or '.join(known)} only")
        for name, known in (EXPORTERS, *PROTOCOLS)
        if environ.get(name) and environ[name] not in known
    ]
    found += [
        Finding("error", name, "must be http:// or https:// and a host")
        for name in ENDPOINTS
        if not _is_url(environ.get(name))
    ]
    if not _is_installed():
        found.append(Finding("error", SETTING, "needs OpenTelemetry: pip install 'fal-proxy[tracing]'"))
    elif _is_off(environ):
        found.append(Finding("warning", SETTING, "says nothing: the environment switches OpenTelemetry off"))
    return found


def open_tracing(settings: Settings, environ: Mapping[str, str]) -> Tracing | None:
    """Return what makes spans, None when they are not wanted. Close it.

    OpenTelemetry's library reads its other variables from the process's own environment. Raises Misconfigured.
    """
    if not settings.telemetry.tracing or _is_off(environ):
        return None
    from fal_proxy.telemetry.spans import Spans  # the whole library, which most deployments do not have

    try:
        return Spans(settings.mount)
    except ValueError as error:
        raise Misconfigured([f"{SETTING}: {error}"]) from error


def _is_off(environ: Mapping[str, str]) -> bool:
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return disabled or environ.get(EXPORTERS[0]) == "none"


def _is_url(text: str | None) -> bool:
    try:
        parts = urlsplit(text or "http://localhost")
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False


def _is_installed() -> bool:
    try:
        return all(map(find_spec, ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")))
    except ModuleNotFoundError:
        return False
