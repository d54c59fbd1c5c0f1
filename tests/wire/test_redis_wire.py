"""The same proxy on a real Redis: two of them are one, and without Redis nothing that must be counted is sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fal_proxy.admission import settler
from fal_proxy.settings import Realtime, Settings, State
from fal_proxy.stores.link import PROBE_SECONDS
from fal_proxy.stores.redis import RedisStore
from support.limited import (
    COMPLETED,
    INITIATE,
    NETWORK,
    RUN,
    STREAM,
    SUBMIT,
    Clock,
    Fal,
    Limited,
    cancel,
    hold,
    limited,
    limits,
    refused,
    result,
    status,
    units,
    wide,
)
from support.peers import Serve, Upstream, turns
from support.proxied import MOUNT
from support.raw import RawAnswer, raw_client, request
from support.redis import RedisServer, redis_server
from support.scripts import ok

PRICES = {"default": 0.04}
EVERY_KIND = [RUN, STREAM, SUBMIT, status("job-1"), result("job-1"), cancel("job-1"), INITIATE]


@contextlib.asynccontextmanager
async def two(upstream: Upstream, folder: Path, settings: Settings) -> AsyncIterator[tuple[Limited, Limited]]:
    """Run two proxies on one Redis and with one file of keys."""
    async with (
        limited(upstream, folder, settings) as one,
        limited(upstream, folder, settings, user_key=one.proxy.user_key) as other,
    ):
        yield one, other


def shared(folder: Path, redis: RedisServer, *, local: bool = False, **plan: object) -> Settings:
    """Return settings with a plan on a Redis."""
    state = State(url=redis.url, on_failure="local" if local else "deny")
    return limits(folder, wide(**plan), state=state, prices=PRICES)


async def test_session_that_is_kept_alive_elsewhere_keeps_its_place(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settler, "LOOK_SECONDS", 0.0)
    fal, clock = Fal(), Clock()
    fal.says["initiate"] = ok(b'{"session_id":"6f","alive":true}')
    settings = limits(
        tmp_path, wide(budget="1.00/day"), realtime=Realtime(wma=True, usd_per_second=0.001), prices=PRICES
    )
    upstream = serve(fal.script)
    with redis_server() as redis:
        stores = [RedisStore(redis.url, clock) for _ in range(2)]
        async with (
            limited(upstream, tmp_path, settings, store=stores[0]) as one,
            limited(upstream, tmp_path, settings, store=stores[1], user_key=one.proxy.user_key) as other,
        ):
            await kept_alive_elsewhere(one, other, clock)


async def kept_alive_elsewhere(one: Limited, other: Limited, clock: Clock) -> None:
    """Open a session with one proxy and keep it alive with the other."""
    offer = b'{"app_id":"a/b","sdp":"v=0","type":"offer"}'
    assert (await one.ask(("POST", "/wma.fal.run/session"), one.ada, offer)).status == 200
    for _ in range(12):
        clock.advance(15)  # three minutes: twice as long as Redis waits for a process
        beat = await other.ask(("POST", "/wma.fal.run/session/heartbeat"), one.ada, b'{"session_id":"6f"}')
        assert beat.status == 200
        await one.turn()
    assert (await other.me(one.ada))["realtime"]["in_use"] == 1
    assert await other.money(one.ada) == (180_000, 20_000)
    clock.advance(20)
    await one.turn()
    assert (await other.me(one.ada))["realtime"]["in_use"] == 0
    assert await other.money(one.ada) == (200_000, 0)


async def ready(running: Limited) -> RawAnswer:
    """Return the answer of /readyz."""
    async with raw_client(running.proxy.port) as client:
        await client.send(request("GET", "/readyz"))
        return await client.answer()


async def test_two_proxies_share_rates_slots_and_budgets(serve: Serve, tmp_path: Path) -> None:
    fal = Fal()
    with redis_server() as redis:
        settings = shared(tmp_path, redis, submit="4/hour", concurrent=2, budget="0.12/total")
        async with two(serve(fal.script), tmp_path, settings) as (one, other):
            fal.says["run"] = hold
            async with raw_client(one.proxy.port) as client:
                await client.send(request("POST", MOUNT + RUN[1], one.ada, b"{}"))
                await fal.arrived.wait()
                assert (await other.me(other.ada))["concurrent"] == {"limit": 2, "in_use": 1}
                job = await other.submit(other.ada)
                refused(await one.ask(SUBMIT, one.ada), 429, "concurrency_limited")
                assert await one.money(one.ada) == (0, 80_000)
                client.reset()
                await one.idle()
            assert await other.money(other.ada) == (40_000, 40_000)
            fal.says["result"] = ok(b"{}", units("0.5"))
            assert (await one.ask(result(job), one.ada)).status == 200
            async with asyncio.timeout(2):
                while await other.money(other.ada) != (60_000, 0):
                    await turns(1)
            fal.says["run"] = ok(b"{}", units("1.5"))
            assert (await other.ask(RUN, other.ada)).status == 200
            async with asyncio.timeout(2):
                while await one.money(one.ada) != (120_000, 0):
                    await turns(1)
            assert "your budget of $0.12 in all" in refused(await one.ask(RUN, one.ada), 402, "budget_exhausted")
            fal.says["run"] = ok()
            assert [(await one.ask(RUN, bob)).status for bob in [one.user("bob")] * 3] == [200] * 3
            assert [(await other.ask(RUN, other.ada)).status] == [402], "a refusal has consumed no place"


async def test_two_proxies_admit_exactly_n_of_a_thousand(serve: Serve, tmp_path: Path) -> None:
    fal = Fal()
    with redis_server() as redis:
        settings = shared(tmp_path, redis, submit="23/hour")
        async with two(serve(fal.script), tmp_path, settings) as (one, other):

            async def some(running: Limited) -> Counter[int]:
                """Ask 25 times, one after the other on one connection; what a stalled machine refused, again."""
                seen: Counter[int] = Counter()
                async with raw_client(running.proxy.port) as client:
                    while seen[200] + seen[429] < 25:
                        await client.send(request("POST", MOUNT + RUN[1], running.ada, b"{}"))
                        answer = await client.answer()
                        seen[answer.status] += 1
                        if answer.status == 503:
                            await asyncio.sleep(PROBE_SECONDS)
                return seen

            counted = sum(await asyncio.gather(*map(some, [one, other] * 20)), Counter())
            assert counted[200] + counted[429] == 1000, counted
            # An admission whose answer came too late holds its place and was refused: never more, and else exactly.
            assert 23 - counted[503] <= counted[200] <= 23
            assert len(fal.seen) == counted[200]
            over = await other.ask(RUN, other.ada)
            sentence = refused(over, 429, "rate_limited")
            assert sentence.startswith("the limit is 23/hour runs, streams and submits; the next is possible in ")
            seconds = int(over.one(b"retry-after") or 0)
            assert 3590 < seconds <= 3660
            assert over.one(b"ratelimit") == b'"submit-3600";r=0;t=%d' % seconds


async def test_two_proxies_share_ownership(serve: Serve, tmp_path: Path) -> None:
    fal = Fal()
    with redis_server() as redis:
        async with two(serve(fal.script), tmp_path, shared(tmp_path, redis)) as (one, other):
            job = await one.submit(one.ada)
            assert (await other.ask(status(job), other.ada)).status == 202
            refused(await other.ask(status(job), other.user("bob")), 404, "unknown_request")
            refused(await other.ask(status(job), NETWORK), 404, "unknown_request")
            refused(await other.ask(status(job, "fal-ai/other"), other.ada), 404, "unknown_request")
            bare = await other.submit(NETWORK)
            assert (await one.ask(status(bare), [("X-Forwarded-For", "192.0.2.7")])).status == 202
            refused(await one.ask(status(bare), one.ada), 404, "unknown_request")
            fal.says["status"] = COMPLETED
            assert (await other.ask(status(job), other.ada)).status == 200
            assert await one.in_use(one.ada) == 0


async def test_one_after_the_other_fit_a_limit_of_one_at_a_time(serve: Serve, tmp_path: Path) -> None:
    fal = Fal()
    with redis_server() as redis:
        async with two(serve(fal.script), tmp_path, shared(tmp_path, redis, concurrent=1)) as both:
            for turn in range(100):
                running = both[turn % 2]
                assert (await running.ask(RUN, running.ada)).status == 200, f"run {turn}"


@pytest.mark.parametrize("away", ["crashed", "hanging"])
async def test_without_redis_everything_is_503_and_nothing_reaches_fal(away: str, serve: Serve, tmp_path: Path) -> None:
    fal = Fal()
    with redis_server() as redis:
        async with limited(serve(fal.script), tmp_path, shared(tmp_path, redis, budget="1.00/day")) as running:
            assert (await ready(running)).status == 200
            await running.submit(running.ada)
            redis.stop() if away == "crashed" else redis.pause()
            for kind in [*EVERY_KIND, ("GET", "/me")]:
                answer = await running.ask(kind, running.ada)
                assert "cannot count right now" in refused(answer, 503, "store_unavailable")
                assert answer.one(b"retry-after") == b"1"
            assert fal.seen == ["submit"]
            down = await ready(running)
            assert (down.status, b"the store does not answer" in down.body) == (503, True)
            if away == "hanging":
                redis.resume()
                async with asyncio.timeout(2):
                    while (await ready(running)).status != 200:
                        await turns(1)
                assert (await running.ask(status("job-1"), running.ada)).status == 202, "nothing is forgotten"
                assert await running.money(running.ada) == (0, 40_000)


async def test_local_on_failure_keeps_runs_going_and_refuses_what_must_be_remembered(
    serve: Serve, tmp_path: Path
) -> None:
    fal = Fal()
    with redis_server() as redis:
        settings = shared(tmp_path, redis, local=True, submit="5/hour", concurrent=1)
        async with limited(serve(fal.script), tmp_path, settings) as running:
            job = await running.submit(running.ada)
            fal.says["status"] = COMPLETED
            assert (await running.ask(status(job), running.ada)).status == 200
            redis.stop()
            for kind in (SUBMIT, status(job), result(job), cancel(job)):
                refused(await running.ask(kind, running.ada), 503, "store_unavailable")
            for kind in (RUN, STREAM, RUN, STREAM, RUN):
                assert (await running.ask(kind, running.ada)).status == 200, "also one at a time"
            assert "5/hour" in refused(await running.ask(RUN, running.ada), 429, "rate_limited")
            assert (await running.ask(INITIATE, running.ada)).status == 200
            assert fal.seen.count("submit") == 1


async def test_local_on_failure_refuses_whatever_needs_a_budget(serve: Serve, tmp_path: Path) -> None:
    fal = Fal()
    with redis_server() as redis:
        settings = shared(tmp_path, redis, local=True, budget="1.00/day")
        async with limited(serve(fal.script), tmp_path, settings) as running:
            assert (await running.ask(RUN, running.ada)).status == 200
            redis.stop()
            for kind in (RUN, STREAM, SUBMIT):
                refused(await running.ask(kind, running.ada), 503, "store_unavailable")
            assert fal.seen == ["run"]
