"""Budgets over fal's own prices, through the whole proxy: what callers are told, what they pay, what operators see."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fal_proxy.identity.key import add
from fal_proxy.settings import Plan, PriceFeed, Settings
from support.commands import clean_environment, running
from support.emulated import emulated
from support.limited import RUN, limited, limits, refused, wide
from support.lines import Lines, samples, total
from support.peers import turns
from support.price_list import Fal, refusing
from support.proxied import FAL_KEY, MOUNT
from support.raw import raw_client, request
from support.services import served

SDXL = ("POST", "/fal.run/fal-ai/fast-sdxl")
NEW = ("POST", "/fal.run/fal-ai/new")
PLAN = wide(budget="10.00/day")


def fetching(folder: Path, plan: Plan = PLAN, prices: dict[str, Any] | None = None, **changes: Any) -> Settings:
    """Return settings with the feed on; its file is in `folder`."""
    feed = PriceFeed(mode="fetch", file=str(folder / "fal-prices.json"))
    feed = msgspec.structs.replace(feed, **changes)
    return limits(folder, plan, price_feed=feed, prices=prices or {})


async def test_what_fal_bills_times_what_fal_asks_is_what_a_caller_pays(tmp_path: Path, lines: Lines) -> None:
    fal = Fal({"fal-ai/flux/dev": "0.1"}, units="3")
    async with served(fal.service) as url, limited(url, tmp_path, fetching(tmp_path)) as proxy:
        assert (await proxy.ask(RUN, proxy.ada)).status == 200
        assert await proxy.money(proxy.ada) == (300_000, 0), "0.1 * 3 as floats is more"
        fal.units = "3.008"
        assert (await proxy.ask(RUN, proxy.ada)).status == 200
        assert await proxy.money(proxy.ada) == (600_800, 0)
        assert len(fal.questions) == 1
        found = samples(proxy.proxy.app)
        assert total(found, "fal_proxy_fetched_prices") == 1
        assert total(found, "fal_proxy_price_lookups_total") == 1
        assert total(found, "fal_proxy_price_lookup_failures_total") == 0
        assert 0 <= total(found, "fal_proxy_fetched_prices_age_seconds") < 60
    assert json.loads((tmp_path / "fal-prices.json").read_text())["prices"]["fal-ai/flux/dev"]["unit"] == "images"


async def test_an_endpoint_that_nobody_prices_is_denied_before_anything_is_sent(tmp_path: Path) -> None:
    fal = Fal()
    async with served(fal.service) as url, limited(url, tmp_path, fetching(tmp_path)) as proxy:
        detail = refused(await proxy.ask(NEW, proxy.ada), 403, "endpoint_denied")
        assert "fal-ai/new has no price" in detail
        assert fal.runs == []


async def test_while_fal_cannot_be_asked_it_is_503_and_the_default_does_not_stand_in(
    tmp_path: Path, lines: Lines
) -> None:
    fal = Fal({"fal-ai/flux/dev": "0.1"}, says=refusing(500))
    settings = fetching(tmp_path, prices={"default": 0.001, "fal-ai/fast-sdxl": 0.25})
    async with served(fal.service) as url, limited(url, tmp_path, settings) as proxy:
        answer = await proxy.ask(RUN, proxy.ada)
        refused(answer, 503, "store_unavailable")
        assert int(answer.one(b"retry-after") or b"0") >= 1
        assert (await proxy.ask(SDXL, proxy.ada)).status == 200, "what the operator prices needs no list"
        assert fal.runs == ["/fal.run/fal-ai/fast-sdxl"]
        assert await proxy.money(proxy.ada) == (250_000, 0)
        assert total(samples(proxy.proxy.app), "fal_proxy_price_lookup_failures_total") == 1


async def test_without_a_budget_nobody_asks_what_anything_costs(tmp_path: Path) -> None:
    fal = Fal()
    async with served(fal.service) as url, limited(url, tmp_path, fetching(tmp_path, wide())) as proxy:
        assert (await proxy.ask(NEW, proxy.ada)).status == 200
        assert fal.questions == []


async def test_prices_survive_a_restart_without_fal(tmp_path: Path) -> None:
    fal = Fal({"fal-ai/flux/dev": "0.1"})
    async with served(fal.service) as url:
        async with limited(url, tmp_path, fetching(tmp_path)) as proxy:
            assert (await proxy.ask(RUN, proxy.ada)).status == 200
            key = proxy.proxy.user_key
        fal.says = refusing(500)
        async with limited(url, tmp_path, fetching(tmp_path), user_key=key) as proxy:
            assert (await proxy.ask(RUN, proxy.ada)).status == 200
            assert len(fal.questions) == 1


async def test_a_file_that_cannot_be_written_is_a_word_in_the_log_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fal = Fal({"fal-ai/flux/dev": "0.1", "fal-ai/fast-sdxl": "0.2"})
    (tmp_path / "mine.txt").write_text("mine")
    settings = fetching(tmp_path, file=str(tmp_path / "mine.txt"))
    async with served(fal.service) as url, limited(url, tmp_path, settings) as proxy:
        assert (await proxy.ask(RUN, proxy.ada)).status == 200
        assert (await proxy.ask(SDXL, proxy.ada)).status == 200
    assert (tmp_path / "mine.txt").read_text() == "mine"
    said = [record.getMessage() for record in caplog.records if "is no price list of ours" in record.getMessage()]
    assert len(said) == 2, "once when it is read and once when it is written"


async def test_our_books_over_fetched_prices_are_fals_to_the_last_micro_dollar(tmp_path: Path, lines: Lines) -> None:
    async with emulated(speed=500, seed=3) as fal, limited(fal.url, tmp_path, fetching(tmp_path)) as proxy:
        asked = [
            (RUN, b'{"prompt": "a pier", "num_images": 3}', 75_000),
            (SDXL, b'{"prompt": "a pier"}', 2_500),
            (("POST", "/fal.run/fal-ai/kling-video/v2/text-to-video"), b'{"prompt": "x", "duration": "5"}', 1_400_000),
        ]
        paid = 0
        for kind, body, cost in asked:
            assert (await proxy.ask(kind, proxy.ada, body)).status == 200
            paid += cost
            assert await proxy.money(proxy.ada) == (paid, 0), kind
        refused(await proxy.ask(NEW, proxy.ada), 403, "endpoint_denied")
        whisper = await proxy.ask(
            ("POST", "/fal.run/fal-ai/whisper"), proxy.ada, b'{"audio_url": "https://example.com/a.mp3"}'
        )
        assert whisper.status == 200
        events = fal.app._world.bills.between(0, float("inf"))
        [heard] = [event.units for event in events if event.endpoint == "fal-ai/whisper"]
        usd = heard * 111 / 100_000
        spent, _ = await proxy.money(proxy.ada)
        assert 0 <= spent - paid - usd * 1_000_000 < 1, "rounded up once"


CONFIG = """
[server]
hosts = ["127.0.0.1"]
[identity]
sources = ["key"]
[plans.default]
endpoints = ["fal-ai/flux/dev"]
budget = "1.00/day"
[price_feed]
mode = "fetch"
[admin]
port = 0
"""


async def test_serve_keeps_its_prices_beside_the_settings_file(tmp_path: Path) -> None:
    fal = Fal({"fal-ai/flux/dev": "0.1"})
    (tmp_path / "fal-proxy.toml").write_text(CONFIG)
    key = add(tmp_path / "users.toml", "ada", "default")
    kept = tmp_path / "fal-prices.json"
    async with served(fal.service) as url:
        environ = clean_environment(FAL_KEY=FAL_KEY.reveal(), FAL_PROXY_UPSTREAM=url)
        with running(["serve", "--port", "0"], tmp_path, environ) as proxy:
            async with raw_client(proxy.port) as client:
                await client.send(request("POST", MOUNT + RUN[1], {"Authorization": f"Bearer {key}"}, b"{}"))
                async with asyncio.timeout(30):
                    assert (await client.answer()).status == 200
                    while not kept.exists():
                        await turns(1)
    assert kept.stat().st_mode & 0o777 == 0o600
    assert fal.keys == [FAL_KEY.reveal()]
