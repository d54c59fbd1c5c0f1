"""What an open socket counts for: a place, an opening, a minute's money at a time; and how its limits end it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from fal_proxy.errors import StoreUnavailable
from fal_proxy.lifecycle import Stage as LifeStage
from fal_proxy.settings import Realtime
from support.limited import refused, wide
from support.lines import Lines
from support.peers import Peer, turns
from support.sockets import StartStage, stage
from support.websocket import CLOSE, PONG, TEXT, CallerEnd, FalEnd, frame, opened

start = stage
PATIENCE = 10.0
MINUTE = 600_000  # at a cent a second
CENT = Realtime(usd_per_second=0.01)


async def test_places_are_the_plans_and_runs_have_their_own(start: StartStage) -> None:
    on = await start(wide(realtime_sessions=2, concurrent=1))
    async with opened(on.proxy, on.ada) as one, opened(on.proxy, on.ada):
        me = await on.limited.me(on.ada)
        assert (me["realtime"], me["concurrent"]) == ({"limit": 2, "in_use": 2}, {"limit": 1, "in_use": 0})
        answer = await on.refused(on.ada)
        assert refused(answer, 429, "concurrency_limited").startswith("you have 2 realtime sessions in progress")
        assert answer.one(b"retry-after") == b"5"
        assert await on.sessions(on.limited.user("bea")) == 0
        await one.close(1000)
        await one.end()
        await on.left(1)
        async with opened(on.proxy, on.ada):
            assert await on.sessions() == 2


async def test_an_opening_counts_as_a_submit(start: StartStage) -> None:
    on = await start(wide(realtime_sessions=9, submit="2/minute"))
    for left in (1, 0):
        async with opened(on.proxy, on.ada):
            assert (await on.limited.me(on.ada))["limits"]["submit"][0]["remaining"] == left
    answer = await on.refused(on.ada)
    refused(answer, 429, "rate_limited")
    assert answer.one(b"retry-after") == b"61"
    assert len(on.upstream.peers) == 2


Way = Callable[[CallerEnd, FalEnd], Awaitable[None]]


async def caller_closes(caller: CallerEnd, _: FalEnd) -> None:
    await caller.close(1000)


async def caller_vanishes(caller: CallerEnd, _: FalEnd) -> None:
    caller.client.reset()


async def caller_breaks(caller: CallerEnd, _: FalEnd) -> None:
    await caller.client.send(b"\xff" * 100)


async def fal_closes(_: CallerEnd, fal: FalEnd) -> None:
    await fal.close(4000)


async def fal_vanishes(_: CallerEnd, fal: FalEnd) -> None:
    fal.peer.reset()


async def fal_breaks(_: CallerEnd, fal: FalEnd) -> None:
    await fal.peer.send(b"\xff" * 100)


async def both_close(caller: CallerEnd, fal: FalEnd) -> None:
    await asyncio.gather(caller.close(1000), fal.close(1001))


@pytest.mark.parametrize(
    "way", [caller_closes, caller_vanishes, caller_breaks, fal_closes, fal_vanishes, fal_breaks, both_close]
)
async def test_however_it_ends_the_place_is_free_and_the_minute_paid(start: StartStage, lines: Lines, way: Way) -> None:
    on = await start(wide(realtime_sessions=1, budget="10.00/day"), realtime=CENT)
    async with opened(on.proxy, on.ada) as caller:
        fal = await on.fal.next()
        assert await on.sessions() == 1
        assert await on.limited.money(on.ada) == (0, MINUTE)
        await way(caller, fal)
        await on.left()
        assert await on.limited.money(on.ada) == (MINUTE, 0)
        assert await caller.end()
        async with opened(on.proxy, on.ada):
            pass
    found = [line for line in map(json.loads, lines.text) if line["kind"] == "realtime"]
    assert found[0]["cost_microusd"] == MINUTE


async def test_each_minute_is_charged_ahead_until_the_budget_ends_it(
    start: StartStage, monkeypatch: pytest.MonkeyPatch, lines: Lines
) -> None:
    monkeypatch.setattr("fal_proxy.relay.websocket.LEASE_SECONDS", 0.25)
    plan = wide(realtime_sessions=1, budget="0.10/day")
    on = await start(plan, realtime=Realtime(usd_per_second=0.1))  # a lease of 25,000
    async with opened(on.proxy, on.ada) as caller:
        fal = await on.fal.next()
        code, reason = await caller.end()
        assert code == 4402
        assert reason.startswith("your budget of $0.10 per day does not cover this request")
        assert (await fal.frame()).closing == (1000, "")
    await on.left()
    assert await on.limited.money(on.ada) == (100_000, 0)
    refused(await on.refused(on.ada), 402, "budget_exhausted")
    line = next(line for line in map(json.loads, lines.text) if line["kind"] == "realtime")
    assert (line["cost_microusd"], line["ending"], line["status"]) == (100_000, "cut", 101)
    assert line["reason"].startswith("closed with 4402 by the proxy")


async def test_everybodys_budget_ends_it_too(start: StartStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fal_proxy.relay.websocket.LEASE_SECONDS", 0.2)
    on = await start(realtime=Realtime(usd_per_second=0.1), total_budget="0.05/day")
    async with opened(on.proxy, on.ada) as caller:
        code, reason = await caller.end()
        assert (code, reason[:24]) == (4402, "the budget of this proxy")


async def test_a_store_that_is_away_at_a_renewal_closes_with_1013(
    start: StartStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fal_proxy.relay.websocket.LEASE_SECONDS", 0.2)
    on = await start(wide(realtime_sessions=1, budget="10.00/day"), realtime=CENT)
    async with opened(on.proxy, on.ada) as caller:
        fal = await on.fal.next()

        async def away(*_: object) -> None:
            raise StoreUnavailable("away")

        with monkeypatch.context() as patch:
            patch.setattr(on.proxy.app._gateway.gate.store, "admit", away)
            assert (await caller.end())[0] == 1013
        assert (await fal.frame()).closing == (1000, "")
    await on.left()


async def test_without_a_budget_nothing_is_charged(start: StartStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fal_proxy.relay.websocket.LEASE_SECONDS", 0.05)
    on = await start(realtime=Realtime(idle_seconds=0.5))
    async with opened(on.proxy, on.ada) as caller:
        assert (await caller.end())[0] == 1000
    assert (await on.limited.me(on.ada))["budget"] is None


async def test_silence_of_both_sides_ends_it_and_a_ping_is_silence(start: StartStage, lines: Lines) -> None:
    on = await start(realtime=Realtime(idle_seconds=0.6))
    async with opened(on.proxy, on.ada) as caller:
        fal = await on.fal.next()
        await caller.send(9, b"ping")
        assert (await caller.frame()).opcode == PONG
        assert await caller.end() == (1000, "the session was idle")
        assert (await fal.frame()).closing == (1000, "")
    [line] = await lines.exactly(1)
    assert (line["ending"], line["reason"]) == ("complete", "closed with 1000 by the proxy: the session was idle")


@pytest.mark.parametrize("talker", ["caller", "fal"])
async def test_one_side_talking_is_no_silence_and_its_length_ends_it(start: StartStage, talker: str) -> None:
    on = await start(realtime=Realtime(idle_seconds=0.8, session_seconds=2.0, messages="1000/second"))
    async with opened(on.proxy, on.ada) as caller:
        fal = await on.fal.next()
        side = caller if talker == "caller" else fal

        async def talk() -> None:
            while True:
                await side.send(TEXT, b"x")
                await asyncio.sleep(0.05)  # the pace of the talk

        talking = asyncio.ensure_future(talk())
        assert await caller.end() == (1000, "the session has reached its length")
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)


async def test_a_fal_that_answers_no_ping_is_gone(start: StartStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fal_proxy.relay.websocket.PING_SECONDS", 0.1)
    on = await start()
    async with opened(on.proxy, on.ada) as caller:
        await on.fal.next()  # and read nothing
        assert await caller.end() == (1011, "fal does not answer any more")
    await on.left()


async def test_a_fal_that_answers_pings_is_not(start: StartStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fal_proxy.relay.websocket.PING_SECONDS", 0.05)
    on = await start(realtime=Realtime(idle_seconds=1.0))
    async with opened(on.proxy, on.ada) as caller:
        fal = await on.fal.next()

        async def answer() -> None:
            while (asked := await fal.frame()).opcode != CLOSE:
                if asked.opcode == 9:
                    await fal.peer.send(frame(PONG, asked.data, masked=False))

        answering = asyncio.ensure_future(answer())
        assert await caller.end() == (1000, "the session was idle")
        await asyncio.wait_for(answering, PATIENCE)


async def test_draining_closes_open_sockets_and_refuses_new_ones(start: StartStage) -> None:
    on = await start()
    async with opened(on.proxy, on.ada) as caller:
        fal = await on.fal.next()
        on.proxy.app.lifecycle.reach(LifeStage.DRAINING)
        assert await caller.end() == (1012, "this proxy is about to end")
        assert (await fal.frame()).closing == (1000, "")
        await turns()
        refused(await on.refused(on.ada), 503, "draining")


async def test_draining_does_not_wait_for_a_handshake_under_way(start: StartStage) -> None:
    async def silent(peer: Peer) -> None:
        await peer.wait_gone()

    on = await start(wide(realtime_sessions=1, budget="10.00/day"), silent, realtime=CENT)
    refusing = asyncio.ensure_future(on.refused(on.ada))
    await (await on.upstream.peer()).arrived(1)
    on.proxy.app.lifecycle.reach(LifeStage.DRAINING)
    refused(await refusing, 503, "draining")
    await on.upstream.left()
