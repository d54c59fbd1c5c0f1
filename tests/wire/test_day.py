"""A scripted day, faults and restarts included: lines, metrics, rollup, ledger and fal's own books agree to the last one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fal_proxy.admission import settler
from fal_proxy.settings import AnonymousSource, Realtime, Settings
from fal_proxy.stores.journal import Journal
from fal_proxy.stores.memory import MemoryStore
from support.counts import agree, agrees, spoilt
from support.day import Day
from support.emulated import emulated
from support.hours import MIDNIGHT, PLANS, PRICES, RESERVE_UNITS, SECOND, SPEED, lived
from support.limited import Clock, limits
from support.lines import Lines
from support.redis import RedisServer, Unsteady, redis_server


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Every access line of the day."""
    with Lines() as collected:
        yield collected


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """Run a Redis."""
    with redis_server() as server:
        yield server


@pytest.fixture(params=["journal", "redis"])
async def day(
    request: pytest.FixtureRequest, tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Day]:
    """Bring a day at midnight: one proxy with a journal, or two that share a Redis."""
    monkeypatch.setattr(settler, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(settler, "RENEW_SECONDS", 0.0)
    monkeypatch.setattr("fal_proxy.stores.redis.PROBE_SECONDS", 0.0)
    clock = Clock(MIDNIGHT)

    def journalled() -> MemoryStore:
        return MemoryStore(Journal(tmp_path / "journal"), clock)

    def shared() -> Unsteady:
        server: RedisServer = request.getfixturevalue("redis")
        return Unsteady(server.url, clock=clock)

    if request.param == "redis":
        request.getfixturevalue("redis").command("FLUSHALL")
    async with emulated(clock=clock, speed=SPEED) as fal:
        made = Day(
            fal, clock, lines, _settings(tmp_path), tmp_path, journalled if request.param == "journal" else shared
        )
        made.watch(monkeypatch)
        made.prices, made.reserve_units = PRICES, RESERVE_UNITS
        for _ in range(1 if request.param == "journal" else 2):
            await made.start()
        yield made
        while made.processes:
            await made.stop(made.processes[0])


def _settings(folder: Path) -> Settings:
    prices: dict[str, Any] = {name: float(price) for name, price in PRICES.items()}
    for name, units in RESERVE_UNITS.items():
        prices[name] = {"usd": prices[name], "reserve_units": int(units)}
    realtime = Realtime(wma=True, usd_per_second=float(SECOND))
    settings = limits(folder, plans=PLANS, prices=prices, realtime=realtime, total_budget="900.00/week")
    identity = msgspec.structs.replace(settings.identity, anonymous=AnonymousSource(plan="visitors"))
    return msgspec.structs.replace(settings, identity=identity)


async def test_everybody_who_counts_a_day_counts_the_same(day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = await lived(day, monkeypatch)
    agree(counted)
    assert [what for what, changed in spoilt(counted) if agrees(changed)] == [], "nobody has noticed"
