"""A proxy in front of whatever upstream a test scripts."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from fal_proxy.settings import Settings, Telemetry
from support.collector import Collector, collecting, name_collector
from support.lines import Lines
from support.peers import Upstream
from support.proxied import Proxy, StartProxy, open_settings, proxied


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Every access line of the test, as it is written."""
    with Lines() as collected:
        yield collected


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings that open everything to key holders and anonymous callers on loopback."""
    return open_settings(tmp_path)


@pytest.fixture
def collector_if_any(request: pytest.FixtureRequest) -> None:
    """Have the test's collector begin first, so that it ends last: an exporter without one goes on for half a minute."""
    if "collector" in request.fixturenames:
        request.getfixturevalue("collector")


@pytest.fixture
async def start(tmp_path: Path, settings: Settings, collector_if_any: None) -> AsyncIterator[StartProxy]:
    """Return a function that runs a proxy in front of an upstream until the test ends."""
    async with contextlib.AsyncExitStack() as stack:

        async def run(upstream: Upstream, chosen: Settings | None = None) -> Proxy:
            base = f"http://127.0.0.1:{upstream.port}"
            return await stack.enter_async_context(proxied(base, tmp_path, chosen or settings))

        yield run


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """A collector of spans that the process's environment names."""
    async with collecting() as running:
        name_collector(running, monkeypatch)
        yield running


@pytest.fixture
def traced(settings: Settings) -> Settings:
    """The same settings, with tracing on."""
    return msgspec.structs.replace(settings, telemetry=Telemetry(tracing=True))
