"""The price feed in front of a fal with a price list: its clocks are the test's, its fixtures are shared by two files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fal_proxy.environment import Secret
from fal_proxy.errors import Refusal
from fal_proxy.platform_api import PlatformApi
from fal_proxy.platform_api import feed as feeds
from fal_proxy.platform_api.feed import Feed
from fal_proxy.platform_api.price_file import PriceFile
from fal_proxy.settings import PriceFeed
from fal_proxy.upstream.credentials import FalKey
from fal_proxy.upstream.dial import Route
from fal_proxy.upstream.keys import KeyPool
from fal_proxy.upstream.own_calls import OwnCalls
from support.peers import PATIENCE, turns
from support.price_list import Fal
from support.proxied import FAL_KEY
from support.services import Clock, served

FLUX, SDXL, NEW = "fal-ai/flux/dev", "fal-ai/fast-sdxl", "fal-ai/new"
KEPT = 1_800_000_000.0


@dataclass
class Fed:
    """A feed whose clocks are the test's, in front of a fal."""

    feed: Feed
    wall: Clock
    file: PriceFile

    async def usd(self, name: str) -> str | None:
        """Return the price of an endpoint as text."""
        price = await self.feed.price_of(name)
        return None if price is None else str(price.usd)


def fed(
    url: str,
    folder: Path,
    *keys: Secret,
    named: tuple[str, ...] = (),
    wall: Clock | None = None,
    refresh: float = 60,
    max_age: float = 3600,
) -> Fed:
    """Return a feed of the fal at `url`; close it."""
    wall = wall or Clock(KEPT)
    api = PlatformApi(Route(url), OwnCalls(seconds=5, max_bytes=1024 * 1024, connections=1))
    file = PriceFile(folder / "fal-prices.json", api.address(Route(url)), wall)
    settings = PriceFeed(mode="fetch", refresh_seconds=refresh, max_age_seconds=max_age)
    pool = KeyPool([FalKey(key) for key in keys or (FAL_KEY,)])
    return Fed(Feed(settings, api, pool, named, file, now=wall), wall, file)


@pytest.fixture
def fal() -> Fal:
    """Return a fal that names two prices."""
    return Fal({FLUX: "0.025", SDXL: "0.0025"})


@pytest.fixture
async def url(fal: Fal) -> AsyncIterator[str]:
    """Return where it listens."""
    async with served(fal.service) as running:
        yield running


@pytest.fixture
async def one(url: str, tmp_path: Path) -> AsyncIterator[Fed]:
    """Return a feed of it."""
    running = fed(url, tmp_path)
    yield running
    await running.feed.close()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no time pass between two questions, and none after a failure."""
    monkeypatch.setattr(feeds, "SPACING_SECONDS", 0.0)
    monkeypatch.setattr(feeds, "FIRST_PAUSE_SECONDS", 0.0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await turns(1)


async def asked(fal: Fal, questions: int) -> None:
    """Wait until fal has been asked so often."""
    async with asyncio.timeout(PATIENCE):
        await fal.service.arrived(questions)


async def refused(running: Fed, name: str) -> Refusal:
    """Assert that nobody can say what an endpoint costs, and return the refusal."""
    with pytest.raises(Refusal) as refusal:
        await running.usd(name)
    assert refusal.value.error_type == "store_unavailable"
    assert refusal.value.status == 503
    assert any(header == b"retry-after" for header, _ in refusal.value.headers)
    return refusal.value
