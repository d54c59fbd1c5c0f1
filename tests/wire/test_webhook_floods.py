"""Floods of webhooks: what nobody but a stranger sends costs no key operation and no fetch, and meets a ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fal_proxy.address_guard import PER_MINUTE
from support.hub import Hub, Signed, StartHub, key_of, starting, verifications
from support.limited import refused
from support.proxied import MOUNT
from support.raw import raw_client, request

start, count = starting, verifications


async def flooded(hub: Hub, webhooks: Sequence[Signed], count: int, addresses: int = 1) -> list[int]:
    """Send so many webhooks in turn, from so many addresses; return the statuses."""
    statuses = []
    async with raw_client(hub.limited.proxy.port) as client:
        for number in range(count):
            webhook = webhooks[number % len(webhooks)]
            address = [("X-Forwarded-For", f"192.0.2.{number % addresses}")] if addresses > 1 else []
            await client.send(request("POST", MOUNT + webhook.path, [*webhook.fields, *address], webhook.body))
            statuses.append((await client.answer()).status)
    return statuses


async def test_a_flood_of_strangers_costs_no_key_operation_and_no_fetch(start: StartHub, count: list[bytes]) -> None:
    hub = await start()
    job = await hub.submit(hub.limited.ada)
    good = hub.webhook(job)
    floods = [replace(good, path="/webhooks/" + "A" * 300), replace(good, timestamp="1"), replace(good, body=b"{}")]
    floods += [replace(good, request_id="job-7", body=good.body.replace(b"job-1", b"job-7"))]
    statuses = await flooded(hub, floods, 2000, addresses=200)
    assert set(statuses) == {400, 401, 404}
    assert count == []
    assert hub.fetches == 0
    assert (await hub.post(good)).status == 200
    assert (len(count), hub.fetches) == (1, 1)


async def test_made_up_capabilities_from_one_address_meet_its_ceiling_and_others_do_not(start: StartHub) -> None:
    hub = await start()
    job = await hub.submit(hub.limited.ada)
    made_up = replace(hub.webhook(job), path="/webhooks/" + "A" * 100)
    statuses = await flooded(hub, [made_up], PER_MINUTE + 10)
    assert statuses == [404] * PER_MINUTE + [429] * 10
    assert (await hub.limited.ask(("GET", "/me"), hub.limited.ada)).status == 200, "which is the webhooks' own"


async def test_forged_signatures_from_one_address_are_judged_to_a_ceiling_and_fetch_twice_a_minute_at_most(
    start: StartHub, count: list[bytes]
) -> None:
    hub = await start()
    job = await hub.submit(hub.limited.ada)
    forged = replace(hub.webhook(job), key=key_of(2))
    statuses = await flooded(hub, [forged], PER_MINUTE + 100)
    assert statuses == [401] * PER_MINUTE + [429] * 100
    assert len(count) <= PER_MINUTE + 1
    assert hub.fetches <= 2
    refused(await hub.post(hub.webhook(job)), 429, "rate_limited")
    assert hub.receipts() == {"forged": PER_MINUTE, "unjudged": 101}
    elsewhere = [*hub.webhook(job).fields, ("X-Forwarded-For", "198.51.100.7")]
    answer = await hub.limited.ask(("POST", hub.callback), elsewhere, hub.webhook(job).body)
    assert answer.status == 200, "fal itself is elsewhere"


async def test_good_webhooks_of_one_address_have_no_ceiling(start: StartHub) -> None:
    hub = await start()
    job = await hub.submit(hub.limited.ada)
    good = hub.webhook(job)
    assert set(await flooded(hub, [good], PER_MINUTE + 50)) == {200}
