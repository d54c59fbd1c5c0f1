"""A job's end, from fal's webhook to its owner's page and to the books."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fal_proxy.webhooks import events
from support.emulated import emulated
from support.hub import Hub, hubbed
from support.limited import COMPLETED, NAMED, SUBMIT, refused, units, wide
from support.peers import Serve
from support.scripts import ok

Start = Callable[..., Awaitable[Hub]]
BUDGET = wide(concurrent=1, budget="1.00/day")
PRICES = {"default": 0.04}


@pytest.fixture
async def start(serve: Serve, tmp_path: Path) -> AsyncIterator[Start]:
    """Return a function that runs a proxy with the hub until the test ends."""
    async with contextlib.AsyncExitStack() as stack:

        async def run(*arguments: Any, **changes: Any) -> Hub:
            return await stack.enter_async_context(hubbed(serve, tmp_path, *arguments, **changes))

        yield run


@pytest.fixture
def fast_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let streams beat often: the first beat says that a backlog is over."""
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.05)


@pytest.mark.usefixtures("fast_heart")
async def test_a_job_whose_tab_was_closed_is_settled_and_there_on_return_without_one_poll(start: Start) -> None:
    hub = await start(BUDGET, prices=PRICES)
    page = await hub.page()
    job = await hub.submit(page)
    refused(await hub.limited.ask(SUBMIT, page), 429, "concurrency_limited")
    hub.fal.says |= {"status": COMPLETED, "result": ok(b"{}", units("2"), NAMED)}
    assert (await hub.post(hub.webhook(job, {"images": []}))).status == 200
    await hub.limited.turn()
    assert await hub.limited.money(page) == (80_000, 0), "what fal billed"
    assert await hub.limited.in_use(page) == 0
    async with hub.listen(page) as stream:
        event = (await stream.backlog())[0]
    received_at = event.pop("received_at")
    assert isinstance(received_at, float)
    assert event == {
        "request_id": job,
        "endpoint_id": "fal-ai/flux/dev",
        "status": "OK",
        "payload": {"images": []},
    }
    assert hub.fal.seen.count("status") == hub.fal.seen.count("result") == 1, "asked by the settler alone"


async def test_the_emulators_webhook_reaches_an_open_page(serve: Serve, tmp_path: Path) -> None:
    async with emulated(speed=200) as fal, hubbed(serve, tmp_path, upstream=fal.url) as hub:
        ada = hub.limited.ada
        async with hub.listen(ada) as stream:
            job = await hub.submit(ada)
            event = await stream.next()
        assert (event["request_id"], event["status"]) == (job, "OK")
        assert event["payload"]["images"]
        deliveries = await fal.delivered()
        assert [(each.status, each.outcome) for each in deliveries] == [(200, "delivered")]
