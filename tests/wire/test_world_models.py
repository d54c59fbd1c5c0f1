"""World models: sessions on wma.fal.run that live by their heartbeats, belong to their callers and are paid as they go."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from fal_proxy.admission import settler
from fal_proxy.direct import SESSION_SECONDS
from fal_proxy.settings import InputRule, Plan, Realtime, State
from fal_proxy.stores import Store
from fal_proxy.upstream.keys import KeyPool
from support.emulated import Emulated, emulated
from support.limited import Clock, Fields, Limit, Limited, Say, limited, limiting, limits, refused, reset, said, wide
from support.lines import Lines
from support.proxied import FAL_KEY
from support.raw import RawAnswer
from support.scripts import ok

limit = limiting
WMA = Realtime(wma=True, usd_per_second=0.001)
PAID: dict[str, Any] = {"prices": {"default": 0.04}, "realtime": WMA}
APP = "fal-ai/world"
OFFER = {"app_id": APP, "sdp": "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n", "type": "offer"}
AHEAD = round(SESSION_SECONDS * 1000)  # what a session costs at once, in micro-dollars


def at(path: str) -> tuple[str, str]:
    """Return the request for a path of wma.fal.run."""
    return ("POST", "/wma.fal.run" + path)


@pytest.fixture(autouse=True)
def looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every turn of the settler look at what is held."""
    monkeypatch.setattr(settler, "LOOK_SECONDS", 0.0)


@dataclass
class World:
    """A proxy in front of an emulator; both live by one clock."""

    ours: Limited
    fal: Emulated

    async def ask(self, path: str, body: object, caller: Fields | None = None) -> RawAnswer:
        """Ask wma.fal.run, as ada unless told otherwise."""
        return await self.ours.ask(at(path), self.ours.ada if caller is None else caller, json.dumps(body).encode())

    async def open(self, caller: Fields | None = None) -> str:
        """Open a session and return its id."""
        answer = await self.ask("/session", OFFER, caller)
        assert answer.status == 200, answer
        opened = json.loads(answer.body)
        assert opened["type"] == "answer"
        return str(opened["session_id"])

    async def beat(self, session: str, caller: Fields | None = None) -> RawAnswer:
        """Send one heartbeat."""
        return await self.ask("/session/heartbeat", {"session_id": session}, caller)

    async def sessions(self) -> int:
        """Return how many places ada holds."""
        return int((await self.ours.me(self.ours.ada))["realtime"]["in_use"])


@asynccontextmanager
async def world(
    folder: Path, plan: Plan | None = None, *, store: Store | None = None, **changes: Any
) -> AsyncIterator[World]:
    """Run emulator and proxy."""
    clock = Clock()
    async with emulated(clock=clock) as fal:
        settings = limits(folder, plan or wide(budget="1.00/day"), **{**PAID, **changes})
        async with limited(fal.url, folder, settings, clock=clock, store=store) as ours:
            yield World(ours, fal)


async def test_session_lives_by_its_heartbeats_and_fal_sees_only_what_was_understood(tmp_path: Path) -> None:
    async with world(tmp_path) as its:
        ice = await its.ask("/ice", {"app_id": APP})
        assert (ice.status, "ice_servers" in json.loads(ice.body)) == (200, True)
        doubled = json.dumps(OFFER).replace("{", '{"app_id": "fal-ai/other", ', 1).encode()
        answer = await its.ours.ask(at("/session"), its.ours.ada, doubled)
        session = json.loads(answer.body)["session_id"]
        assert its.fal.last.body == msgspec.json.encode(OFFER)
        for _ in range(3):
            its.ours.clock.advance(5)
            beat = await its.beat(session)
            assert (beat.status, json.loads(beat.body)) == (200, {"alive": True})
        assert [entry.header("authorization") for entry in its.fal.app.journal] == [f"Key {FAL_KEY.reveal()}"] * 5


async def test_session_is_paid_ahead_and_then_as_it_goes(tmp_path: Path) -> None:
    async with world(tmp_path) as its:
        session = await its.open()
        assert await its.ours.money(its.ours.ada) == (0, AHEAD)
        for beats in range(1, 5):
            its.ours.clock.advance(5)
            await its.beat(session)
            assert await its.ours.money(its.ours.ada) == (beats * 5_000, AHEAD)
        await its.beat(session)
        assert await its.ours.money(its.ours.ada) == (20_000, AHEAD)  # no time has passed
        its.ours.clock.advance(SESSION_SECONDS - 0.5)
        await its.ours.turn()
        assert await its.sessions() == 1
        its.ours.clock.advance(0.5)
        await its.ours.turn()
        assert await its.ours.money(its.ours.ada) == (20_000 + AHEAD, 0)
        assert await its.sessions() == 0


async def test_heartbeat_that_nobody_pays_for_does_not_reach_fal(tmp_path: Path) -> None:
    async with world(tmp_path, wide(budget="0.03/day")) as its:
        session = await its.open()  # 0.02
        for status in (200, 200, 402):
            its.ours.clock.advance(5)
            assert (await its.beat(session)).status == status
        assert len(its.fal.app.journal) == 3
        assert await its.ours.money(its.ours.ada) == (10_000, AHEAD)


async def test_servers_for_a_session_cost_nothing_and_take_no_place(tmp_path: Path) -> None:
    async with world(tmp_path, wide(budget="1.00/day", submit="1/hour")) as its:
        for _ in range(3):
            assert (await its.ask("/ice", {"app_id": APP})).status == 200
        assert await its.ours.money(its.ours.ada) == (0, 0)
        assert await its.sessions() == 0
        session = await its.open()  # the one submit of the hour
        assert (await its.beat(session)).status == 200
        refused(await its.ask("/session", OFFER), 429, "rate_limited")


async def test_heartbeat_that_comes_too_late_keeps_nothing_alive(tmp_path: Path) -> None:
    async with world(tmp_path) as its:
        session = await its.open()
        its.ours.clock.advance(SESSION_SECONDS - 1)  # longer than the emulator's patience
        assert json.loads((await its.beat(session)).body) == {"alive": False}
        assert await its.ours.money(its.ours.ada) == (0, AHEAD)
        its.ours.clock.advance(1)
        asked = len(its.fal.app.journal)
        refused(await its.beat(session), 404, "unknown_request")
        await its.ours.turn()
        assert len(its.fal.app.journal) == asked
        assert await its.ours.money(its.ours.ada) == (AHEAD, 0)


async def test_session_belongs_to_its_caller(tmp_path: Path) -> None:
    async with world(tmp_path) as its:
        session, asked = await its.open(), len(its.fal.app.journal)
        bob = its.ours.user("bob")
        stranger = refused(await its.beat(session, bob), 404, "unknown_request")
        assert refused(await its.beat("6f1e", bob), 404, "unknown_request") == stranger  # whether it exists is not told
        assert await its.ours.money(bob) == (0, 0)
        assert len(its.fal.app.journal) == asked
        assert (await its.beat(session)).status == 200


async def test_session_is_nobodys_job(tmp_path: Path) -> None:
    async with world(tmp_path) as its:
        session = await its.open()
        for path in (session, f"{session}/status"):
            answer = await its.ours.ask(("GET", f"/queue.fal.run/wma/{session}/requests/{path}"), its.ours.ada)
            refused(answer, 404, "unknown_request")
        its.ours.clock.advance(15)
        await its.ours.turn()
        assert {entry.host for entry in its.fal.app.journal} == {"wma.fal.run"}  # the settler asks nothing of the queue


async def test_sessions_are_counted_until_their_heartbeats_stop(tmp_path: Path) -> None:
    async with world(tmp_path, wide(realtime_sessions=2)) as its:
        first, _ = await its.open(), await its.open()
        refused(await its.ask("/session", OFFER), 429, "concurrency_limited")
        for _ in range(5):
            its.ours.clock.advance(5)
            assert json.loads((await its.beat(first)).body) == {"alive": True}
        await its.ours.turn()
        assert await its.sessions() == 1
        await its.open()
        assert await its.sessions() == 2


class Denied(NamedTuple):
    """A session that nobody gets."""

    reason: str
    status: int
    error_type: str
    path: str = "/session"
    body: dict[str, Any] = OFFER
    plan: dict[str, Any] = {}  # noqa: RUF012 -- nobody changes it
    changes: dict[str, Any] = {}  # noqa: RUF012 -- nobody changes it


DENIED = [
    Denied("off by default", 403, "mode_off", changes={"realtime": Realtime()}),
    Denied("no servers either", 403, "mode_off", "/ice", {"app_id": APP}, changes={"realtime": Realtime()}),
    Denied("not opened", 403, "endpoint_denied", plan={"endpoints": ("fal-ai/flux/**",)}),
    Denied("nor its servers", 403, "endpoint_denied", "/ice", {"app_id": APP}, plan={"endpoints": ("fal-ai/flux/**",)}),
    Denied("judged inputs", 403, "endpoint_denied", changes={"inputs": (InputRule(endpoint="Fal-AI/*", drop=("x",)),)}),
    Denied("no price", 403, "endpoint_denied", plan={"budget": "1.00/day"}, changes={"realtime": Realtime(wma=True)}),
    Denied("no money", 402, "budget_exhausted", plan={"budget": "0.01/day"}),
    Denied("no sessions", 429, "concurrency_limited", plan={"realtime_sessions": 0}),
    Denied("an unknown field", 422, "input_denied", body={**OFFER, "session_id": "x"}),
    Denied("no offer", 422, "input_denied", body={**OFFER, "type": "answer"}),
    Denied("a query", 422, "input_denied", "/session?app_id=fal-ai/flux"),
    Denied("a larger body than any offer", 413, "body_too_large", body={**OFFER, "sdp": "v" * 300_000}),
    Denied("an unknown session", 404, "unknown_request", "/session/heartbeat", {"session_id": "x"}),
    Denied("another path", 400, "invalid_target", "/sessions"),
]


@pytest.mark.parametrize("case", DENIED, ids=[case.reason for case in DENIED])
async def test_session_that_may_not_be_is_refused_before_anything_is_dialled(case: Denied, limit: Limit) -> None:
    ours, fal = await limit(wide(**case.plan), **{**PAID, **case.changes})
    refused(await ours.ask(at(case.path), ours.ada, json.dumps(case.body).encode()), case.status, case.error_type)
    assert fal.seen == []


OPENED = ok(b'{"session_id":"6f","sdp":"v=0","type":"answer"}')


class Ended(NamedTuple):
    """What fal says to a session's opening and to its heartbeat 5 s later, and what is spent and reserved then."""

    reason: str
    opened: Say
    beat: Say
    statuses: tuple[int, int]
    spent_microusd: int
    reserved_microusd: int


ENDED = [
    Ended("opened and alive", OPENED, ok(b'{"alive":true}'), (200, 200), 5_000, AHEAD),
    Ended("opened and over", OPENED, ok(b'{"alive":false}'), (200, 200), 0, AHEAD),
    Ended("opened, and a heartbeat is refused", OPENED, said(404), (200, 404), 0, AHEAD),
    Ended("opened, and nobody knows of the heartbeat", OPENED, reset, (200, 500), 5_000, AHEAD),
    Ended("opened, and an answer of another kind", OPENED, ok(b"[]"), (200, 200), 5_000, AHEAD),
    Ended("refused", said(422), OPENED, (422, 404), 0, 0),
    Ended("nobody knows", reset, OPENED, (500, 404), AHEAD, 0),
    Ended("opened without a name", ok(b"{}"), OPENED, (200, 404), AHEAD, 0),
]


@pytest.mark.parametrize("case", ENDED, ids=[case.reason for case in ENDED])
async def test_what_fal_says_decides_what_is_paid(case: Ended, limit: Limit) -> None:
    ours, fal = await limit(wide(budget="1.00/day"), **PAID)
    fal.says["initiate"] = case.opened
    first = await ours.ask(at("/session"), ours.ada, json.dumps(OFFER).encode())
    ours.clock.advance(5)
    fal.says["initiate"] = case.beat
    second = await ours.ask(at("/session/heartbeat"), ours.ada, b'{"session_id":"6f"}')
    assert (first.status, second.status) == case.statuses
    assert await ours.money(ours.ada) == (case.spent_microusd, case.reserved_microusd)
    sessions = (await ours.me(ours.ada))["realtime"]["in_use"]
    assert sessions == (1 if case.reserved_microusd else 0)


async def test_places_are_kept_and_counted_where_nobody_counts_money(tmp_path: Path) -> None:
    async with world(tmp_path, wide(), state=State(ownership="off")) as its:
        session = await its.open()
        its.ours.clock.advance(10)
        assert json.loads((await its.beat(session)).body) == {"alive": True}
        its.ours.clock.advance(15)
        await its.ours.turn()
        assert await its.sessions() == 1
        its.ours.clock.advance(5)
        await its.ours.turn()
        assert await its.sessions() == 0


async def test_heartbeats_go_up_with_the_key_that_opened_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    of_job = KeyPool.of_job

    def noted(pool: KeyPool, key_id: str) -> Any:
        asked.append(key_id)
        return of_job(pool, key_id)

    monkeypatch.setattr(KeyPool, "of_job", noted)
    async with world(tmp_path) as its:
        chosen = its.ours.proxy.app.keys.choose().id
        await its.beat(await its.open())
    assert asked == [chosen]


async def test_access_line_names_the_app_and_the_cost(tmp_path: Path, lines: Lines) -> None:
    async with world(tmp_path) as its:
        session = await its.open()
        its.ours.clock.advance(5)
        await its.beat(session)
        opened, beat = await lines.exactly(2)
        assert (opened["kind"], opened["endpoint"], opened["cost_microusd"]) == ("wma", APP, None)
        assert (beat["kind"], beat["cost_microusd"]) == ("wma", 5_000)
        its.ours.clock.advance(SESSION_SECONDS)
        await its.ours.turn()
        over = (await lines.exactly(3))[-1]
        assert (over["kind"], over["endpoint"], over["cost_microusd"]) == ("settled", APP, AHEAD)
        assert (over["caller"], over["plan"]) == (opened["caller"], opened["plan"])
        assert await its.ours.money(its.ours.ada) == (5_000 + AHEAD, 0)
    assert session not in "".join(lines.text)
