"""Two replicas and one Redis: fal tells either of them, and the page at the other one learns of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fal_proxy.settings import State
from fal_proxy.webhooks import events
from support.hub import Hub, hubbed
from support.limited import COMPLETED, NAMED, Fal, Fields, refused, units, wide
from support.peers import Serve
from support.redis import RedisServer, redis_server
from support.scripts import ok


@dataclass
class Replicas:
    """Two proxies that share everything but a process."""

    here: Hub
    there: Hub

    @property
    def ada(self) -> Fields:
        """The caller who is known at both."""
        return self.here.limited.ada


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """Return a Redis of the module's own."""
    with redis_server() as server:
        yield server


@pytest.fixture
async def replicas(serve: Serve, tmp_path: Path, redis: RedisServer) -> AsyncIterator[Replicas]:
    """Run both until the test ends."""
    redis.command("FLUSHALL")
    fal, state = Fal(), State(url=redis.url)
    plan, prices = wide(budget="1.00/day"), {"default": 0.04}
    async with contextlib.AsyncExitStack() as stack:
        here = await stack.enter_async_context(hubbed(serve, tmp_path, plan, fal=fal, state=state, prices=prices))
        key = here.limited.proxy.user_key
        other = hubbed(serve, tmp_path, plan, fal=fal, state=state, prices=prices, user_key=key)
        yield Replicas(here, await stack.enter_async_context(other))


async def test_an_event_reaches_the_page_at_the_other_replica(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 600.0)
    here, there = replicas.here, replicas.there
    async with there.listen(replicas.ada) as stream, here.listen(replicas.ada) as own:
        assert await stream.block() == await own.block() == b"retry: 2000"
        job = await here.submit(replicas.ada)
        assert (await here.post(here.webhook(job, {"n": 1}))).status == 200
        event = await stream.next()
        assert event == await own.next()
    assert (event["request_id"], event["payload"]) == (job, {"n": 1})


async def test_a_job_of_one_replica_may_end_at_the_other_and_is_told_and_settled_once(replicas: Replicas) -> None:
    here, there = replicas.here, replicas.there
    here.fal.says |= {"status": COMPLETED, "result": ok(b"{}", units("2"), NAMED)}
    jobs = [await here.submit(replicas.ada) for _ in range(3)]
    path = here.callback
    for job in jobs:
        answers = await asyncio.gather(*(hub.post(hub.webhook(job, path=path)) for hub in (here, there) * 3))
        assert {answer.status for answer in answers} == {200}
    receipts = [hub.receipts() for hub in (here, there)]
    assert sum(each.get("filed", 0) for each in receipts) == 3
    assert sum(each.get("duplicate", 0) for each in receipts) == 15
    for hub in (here, there):
        await hub.limited.turn()
    assert await there.limited.money(replicas.ada) == (240_000, 0)
    async with there.listen(replicas.ada) as stream:
        assert [(await stream.next())["request_id"] for _ in jobs] == jobs
        last = stream.last
    job = await here.finish(replicas.ada)
    async with there.listen(replicas.ada, last) as stream:
        assert (await stream.next())["request_id"] == job, "resumed at another replica"


async def test_while_redis_is_away_fal_is_asked_to_come_again_and_streams_stay(
    replicas: Replicas, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.1)
    here, there = replicas.here, replicas.there
    async with there.listen(replicas.ada) as stream:
        assert await stream.backlog() == []
        job = await here.submit(replicas.ada)
        redis.pause()
        try:
            refused(await here.post(here.webhook(job)), 503, "store_unavailable")
        finally:
            redis.resume()
        async with asyncio.timeout(20):
            while (await here.post(here.webhook(job))).status != 200:
                pass
            assert (await stream.next())["request_id"] == job
        assert here.receipts()["filed"] == 1
