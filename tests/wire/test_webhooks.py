"""A job's end, from fal's webhook to its owner's page and to the books."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fal_proxy.settings import InputRule
from fal_proxy.webhooks import events
from support.emulated import emulated
from support.hub import StartHub, hubbed, starting
from support.limited import COMPLETED, NAMED, SUBMIT, refused, units, wide
from support.peers import Serve
from support.scripts import ok

start = starting
BUDGET = wide(concurrent=1, budget="1.00/day")
PRICES = {"default": 0.04}


@pytest.fixture
def fast_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let streams beat often: the first beat says that a backlog is over."""
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.05)


@pytest.mark.usefixtures("fast_heart")
async def test_a_job_whose_tab_was_closed_is_settled_and_there_on_return_without_one_poll(start: StartHub) -> None:
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


async def test_an_endpoint_whose_input_is_judged_has_the_hubs_webhook_and_no_other_parameter(start: StartHub) -> None:
    hub = await start(inputs=(InputRule(endpoint="fal-ai/**", clamp={"num_images": (1, 2)}),))
    for query in ("", "?fal_webhook=https%3A%2F%2Fapp.example.com%2Fhook"):
        job = await hub.submit(hub.limited.ada, query, b'{"num_images": 9}')
        assert hub.fal.inputs[-1] == b'{"num_images":2}'
        assert (await hub.post(hub.webhook(job))).status == 200
    refused(
        await hub.limited.ask((SUBMIT[0], SUBMIT[1] + "?fal_max_queue_length=3"), hub.limited.ada), 422, "input_denied"
    )


FAULTS = [
    ("webhook_late=20", set(), "after a while"),
    ("webhook_early", {"unknown_request"}, "before the answer to its submit"),
    ("webhook_twice", {"duplicate"}, "side by side"),
    ("webhook_disorder", set(), "out of order"),
    ("webhook_forged@0.8", {"forged"}, "by a stranger, then by fal"),
    ("webhook_unknown@0.8", {"unknown_request"}, "of a job that nobody submitted, then of this one"),
    ("webhook_expired@0.8", {"untimely"}, "signed ten minutes ago, then now"),
    ("webhook_rotated", {"forged"}, "each by a new key"),
    ("webhook_huge@0.8", {"too_large"}, "20 MiB, then what it really is"),
    ("webhook_truncated@0.8", {"malformed"}, "half, then whole"),
]


@pytest.mark.usefixtures("fast_heart")
@pytest.mark.parametrize(("fault", "refused_as", "reason"), FAULTS, ids=[row[0] for row in FAULTS])
async def test_however_fals_webhooks_go_wrong_each_job_is_told_of_once(
    fault: str, refused_as: set[str], reason: str, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fal_proxy.identity.published.UNKNOWN_SECONDS", 0.0)
    async with (
        emulated(speed=200, faults=f"fal-ai/**:{fault}") as fal,
        hubbed(serve, tmp_path, upstream=fal.url) as hub,
        hub.listen(hub.limited.ada) as stream,
    ):
        assert await stream.backlog() == []
        jobs = [await hub.submit(hub.limited.ada) for _ in range(4)]
        async with asyncio.timeout(20):
            told = [(await stream.next())["request_id"] for _ in jobs]
        assert sorted(told) == sorted(jobs), reason
        assert await stream.backlog() == []
        receipts = hub.receipts()
        assert receipts.pop("filed") == 4
        if fault == "webhook_rotated":
            refused_as = refused_as & set(receipts)  # if a key went before it was asked for
        assert set(receipts) == refused_as
        assert {each.outcome for each in fal.app.deliveries} <= {"delivered", "retry"}
