"""Tracing is on only when it is asked for, installed and not switched off; and without it nothing of it is loaded."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fal_proxy.check import examine
from fal_proxy.environment import shared_secrets
from fal_proxy.errors import Misconfigured
from fal_proxy.exchange import Exchange
from fal_proxy.request import Request
from fal_proxy.settings import Settings, Telemetry
from fal_proxy.telemetry.spans import Spans
from fal_proxy.telemetry.tracing import findings, open_tracing
from support.commands import clean_environment
from support.proxied import FAL_KEY, SIGNING_SECRET, open_settings

TRACED = Settings(telemetry=Telemetry(tracing=True))
SAID = [
    ({}, [], "the defaults: OTLP over HTTP, to this machine"),
    ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, [], "the same, in words"),
    ({"OTEL_TRACES_EXPORTER": "zipkin"}, ["error"], "an exporter that is not there"),
    ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["error"], "a protocol that is not there"),
    ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, ["error"], "nor this one"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector.example:4318/x"}, [], "a collector"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, ["error"], "which would be a scheme called collector"),
    ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:port/v1/traces"}, ["error"], "a port that is no number"),
    ({"OTEL_SDK_DISABLED": "true"}, ["warning"], "switched off where the setting cannot see it"),
    ({"OTEL_TRACES_EXPORTER": "none"}, ["warning"], "as above"),
]


@pytest.mark.parametrize(("environ", "levels", "why"), SAID, ids=[row[-1] for row in SAID])
def test_what_the_environment_says_is_judged(environ: dict[str, str], levels: list[str], why: str) -> None:
    assert [finding.level for finding in findings(TRACED, environ)] == levels, why
    assert findings(Settings(), environ) == [], "nobody asked for spans"
    if levels == ["warning"]:
        assert open_tracing(TRACED, environ) is None


JUNK = st.one_of(st.binary(max_size=80), st.from_regex(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.{0,3}"))


@pytest.fixture(scope="module")
def spans() -> Iterator[Spans]:
    """What makes spans, with nowhere to send them: nothing ends here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
        yield Spans("/api/fal/proxy")


@given(parents=st.lists(JUNK, max_size=2), states=st.lists(st.binary(max_size=40), max_size=3), path=st.binary())
@example(parents=[b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"], states=[b"a=1", b"b=2"], path=b"/api/fal/proxy")
def test_whatever_callers_send_fal_gets_one_well_formed_parent(
    spans: Spans, parents: list[bytes], states: list[bytes], path: bytes
) -> None:
    carried = [(b"traceparent", value) for value in parents] + [(b"tracestate", value) for value in states]
    arrived = Request("POST", path, None, [*carried, (b"accept", b"x")], "", "http")
    spans.begin(Exchange(), arrived)
    assert (b"accept", b"x") in arrived.headers
    [parent] = [value for name, value in arrived.headers if name == b"traceparent"]
    assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", parent)
    assert parent[36:52] not in b" ".join(parents), "the parent is our span, never the caller's"
    passed = [value for name, value in arrived.headers if name == b"tracestate"]
    assert len(passed) <= 1
    assert all(re.fullmatch(rb"[ -~]*", value) for value in passed)


def test_variables_that_contradict_each_other_refuse_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "9")
    with pytest.raises(Misconfigured, match=r"^telemetry\.tracing: "):
        open_tracing(TRACED, {})


def test_a_mistake_refuses_the_start_with_the_variables_name(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(open_settings(tmp_path), telemetry=Telemetry(tracing=True))
    report = examine(
        settings, None, {"OTEL_TRACES_EXPORTER": "jaeger", "FAL_PROXY_SECRET": SIGNING_SECRET}, key=FAL_KEY
    )
    assert [finding.path for finding in report.errors] == ["OTEL_TRACES_EXPORTER"]


WITHOUT = """
import sys
sys.modules["opentelemetry.sdk"] = None  # as if it were not installed
from fal_proxy.check import examine
from fal_proxy.settings import Settings, Telemetry
report = examine(Settings(telemetry=Telemetry(tracing=True)), None, {})
print([str(finding) for finding in report.errors if finding.path == "telemetry.tracing"])
"""
OFF = """
import sys
from fal_proxy.app import create_app
create_app(config=sys.argv[1], environ={"FAL_KEY": sys.argv[2]})
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "requests", "google")))
"""


def _said(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_the_extra_the_finding_says_what_to_install() -> None:
    assert _said(WITHOUT) == str(["error: telemetry.tracing: needs OpenTelemetry: pip install 'fal-proxy[tracing]'"])


def test_without_tracing_nothing_of_it_is_imported(tmp_path: Path) -> None:
    config = tmp_path / "fal-proxy.toml"
    config.write_text('[identity]\nsources = ["key"]\n[plans.default]\nendpoints = ["**"]\n')
    assert _said(OFF, str(config), FAL_KEY.reveal()) == "[]"


def test_what_the_exporter_authenticates_itself_with_is_a_secret() -> None:
    environ = {"OTEL_EXPORTER_OTLP_HEADERS": "api-key=hush%20hush,a=b", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x=mine"}
    assert {secret.reveal() for secret in shared_secrets(environ)} == {"hush%20hush", "hush hush", "b", "mine"}
