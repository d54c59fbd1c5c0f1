"""Deliveries while they run: how many at a time, how soon, cut by the end of the process, with a mailbox that is away."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from contract.post import event
from fal_proxy.errors import StoreUnavailable
from fal_proxy.stores.mailbox import CLAIM_SECONDS, Delivery
from fal_proxy.stores.mailbox_memory import MemoryMailbox
from fal_proxy.webhooks import deliveries
from support.delivering import HOOK, Arrived, Start, answering, read_post, start_delivering
from support.peers import Peer

start = start_delivering


async def test_slow_host_holds_up_no_other(start: Start) -> None:
    paths: list[str] = []

    async def script(peer: Peer) -> None:
        post = await read_post(peer)
        paths.append(post.target)
        if "fast" in post.target:
            await peer.send(b"HTTP/1.1 200 X\r\ncontent-length: 0\r\n\r\n")
        await peer.wait_gone()

    app = start(script)
    made = app.deliveries(hosts=("slow.example", "fast.example"))
    for at in range(40):
        await app.file(f"slow-{at}", forward_url="https://slow.example/hook")
    for at in range(20):
        await app.file(f"fast-{at}", forward_url="https://fast.example/hook")
    running = asyncio.create_task(made.run())
    async with asyncio.timeout(10):
        while app.attempts()["delivered"] < 20:  # noqa: ASYNC110 -- the metrics tell nobody
            await asyncio.sleep(0.005)
    assert paths.count("/slow.example/hook") == 4
    assert paths.count("/fast.example/hook") == 20
    running.cancel()
    await asyncio.wait([running])


async def test_sixteen_are_under_way_at_most(start: Start) -> None:
    at_once = most = 0

    async def script(peer: Peer) -> None:
        nonlocal at_once, most
        await read_post(peer)
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.02)
        at_once -= 1
        await peer.send(b"HTTP/1.1 200 X\r\ncontent-length: 0\r\n\r\n")
        await peer.wait_gone()

    app = start(script)
    made = app.deliveries(hosts=[f"host-{at}.example" for at in range(10)])
    for at in range(80):
        await app.file(f"job-{at}", forward_url=f"https://host-{at % 10}.example/")
    running = asyncio.create_task(made.run())
    async with asyncio.timeout(10):
        while app.attempts()["delivered"] < 80:  # noqa: ASYNC110 -- the metrics tell nobody
            await asyncio.sleep(0.005)
    assert most == 16
    running.cancel()
    await asyncio.wait([running])


async def test_event_that_is_filed_is_delivered_at_once_not_at_the_next_look(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "TICK_SECONDS", 3600)
    arrived: list[Arrived] = []
    app = start(answering(arrived=arrived))
    running = asyncio.create_task(app.deliveries().run())
    for at in range(3):
        await asyncio.sleep(0)
        await app.file(f"job-{at}", forward_url=HOOK)
        async with asyncio.timeout(5):
            while app.attempts()["delivered"] <= at:  # noqa: ASYNC110 -- the metrics tell nobody
                await asyncio.sleep(0.002)
    running.cancel()
    await asyncio.wait([running])


async def test_attempt_that_is_cut_by_the_end_of_the_process_is_made_again(start: Start) -> None:
    gone = asyncio.Event()

    async def stall(peer: Peer) -> None:
        await read_post(peer)
        await peer.wait_gone()
        gone.set()

    arrived: list[Arrived] = []
    app = start(stall, answering(arrived=arrived))
    running = asyncio.create_task(app.deliveries().run())
    await app.file("job", forward_url=HOOK)
    async with asyncio.timeout(5):
        while not app.running[0].under_way:  # noqa: ASYNC110 -- it tells nobody
            await asyncio.sleep(0.002)
    await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])
    async with asyncio.timeout(5):
        await gone.wait()
    assert app.running[0].under_way == 0
    again = app.deliveries()
    await app.turn(again)
    assert arrived == [], "its claim has not ended"
    app.now += CLAIM_SECONDS
    await app.turn(again)
    assert [post.headers["webhook-id"] for post in arrived] == ["msg_job"]
    assert await app.counts() == (1, 0, 0)


async def test_mailbox_that_is_away_when_it_should_hear_of_a_success_is_told_by_the_next_one(start: Start) -> None:
    arrived: list[Arrived] = []
    app = start(answering(arrived=arrived))

    class Away(MemoryMailbox):
        away = True

        async def delivered(self, number: int) -> None:
            if self.away:
                raise StoreUnavailable("Redis does not answer")
            await super().delivered(number)

    app.mailbox = mailbox = Away(clock=lambda: app.now)
    await app.file("job", forward_url=HOOK)
    await app.turn()
    assert await app.counts() == (1, 1, 0)
    mailbox.away = False
    app.now += CLAIM_SECONDS
    await app.turn()
    assert await app.counts() == (1, 0, 0)
    assert len(arrived) == 2


async def test_mailbox_that_is_away_ends_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "TICK_SECONDS", 0.01)

    class Away(MemoryMailbox):
        away = 3

        async def claim(self, limit: int, per_host: int, busy: Mapping[str, int]) -> Sequence[Delivery]:
            self.away -= 1
            if self.away > 0:
                raise StoreUnavailable("Redis does not answer")
            if self.away == 0:
                raise RuntimeError("a fault of ours")
            return await super().claim(limit, per_host, busy)

    app = start(answering())
    app.mailbox = Away(clock=lambda: app.now)
    await app.mailbox.file(event("job", forward_url=HOOK))
    running = asyncio.create_task(app.deliveries().run())
    async with asyncio.timeout(5):
        while app.attempts()["delivered"] == 0:  # noqa: ASYNC110 -- the metrics tell nobody
            await asyncio.sleep(0.005)
    running.cancel()
    await asyncio.wait([running])
