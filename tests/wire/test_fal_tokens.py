"""Token mode: fal's own tokens go to callers of a plan that opted in; strictly asked for, and paid for by the second."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from fal_proxy.settings import InputRule, Plan, Realtime
from support.emulated import Emulated, emulated
from support.limited import NETWORK, Clock, Limit, Limited, Say, limited, limiting, limits, refused, reset, said, wide
from support.lines import Lines
from support.peers import PATIENCE, Peer
from support.proxied import FAL_KEY, MOUNT, proxied
from support.raw import RawAnswer, raw_client, request
from support.realtime import ask as tell
from support.realtime import opened
from support.scripts import ok

limit = limiting
TOKENS = ("POST", "/rest.fal.ai/tokens/")
REALTIME_TOKENS = ("POST", "/rest.fal.ai/tokens/realtime")
TOKEN_MODE = Realtime(mode="token", token_seconds=120, usd_per_second=0.001)
LCM = b'{"allowed_apps":["lcm"],"token_expiration":120}'
PAID: dict[str, Any] = {"prices": {"default": 0.04}, "realtime": TOKEN_MODE}
MINTED = said(201, b'"fal.s.token"')


def handing(**changes: Any) -> Plan:
    """Return a plan that opens everything and hands out fal's tokens."""
    return wide(realtime_token=True, **changes)


async def minted(fal: Emulated, folder: Path, body: bytes, kind: tuple[str, str] = TOKENS) -> tuple[RawAnswer, object]:
    """Return the answer to one token request, and what fal was asked."""
    async with limited(fal.url, folder, limits(folder, handing(), realtime=TOKEN_MODE)) as ours:
        answer = await ours.ask(kind, ours.ada, body)
    assert fal.last.header("authorization") == f"Key {FAL_KEY.reveal()}"
    return answer, json.loads(fal.last.body)


class Rebuilt(NamedTuple):
    """A token request, and the one that fal sees."""

    reason: str
    kind: tuple[str, str]
    body: bytes
    seen: dict[str, Any]


REBUILT = [
    Rebuilt("what the clients send", TOKENS, LCM, {"allowed_apps": ["lcm"], "token_expiration": 120}),
    Rebuilt(
        "no longer than the settings say",
        TOKENS,
        b'{"allowed_apps":["lcm"],"token_expiration":86400}',
        {"allowed_apps": ["lcm"], "token_expiration": 120},
    ),
    Rebuilt(
        "shorter if asked",
        TOKENS,
        b'{"token_expiration":30,"allowed_apps":["lcm"]}',
        {"allowed_apps": ["lcm"], "token_expiration": 30},
    ),
    Rebuilt(
        "never without an end",
        TOKENS,
        b'{"allowed_apps":["lcm"]}',
        {"allowed_apps": ["lcm"], "token_expiration": 120},
    ),
    Rebuilt(
        "of two equal keys the last is judged, and only that is sent",
        TOKENS,
        b'{"allowed_apps":["a","b"],"allowed_apps":["lcm"],"token_expiration":9}',
        {"allowed_apps": ["lcm"], "token_expiration": 9},
    ),
    Rebuilt(
        "the newer route, as fal's documents have it",
        REALTIME_TOKENS,
        b'{"allowed_apps":["fal-ai/lcm/realtime"],"duration":600}',
        {"allowed_apps": ["fal-ai/lcm/realtime"], "duration": 120},
    ),
    Rebuilt(
        "and as others use it",
        REALTIME_TOKENS,
        b'{"app":"fal-ai/lcm"}',
        {"allowed_apps": ["fal-ai/lcm"], "duration": 120},
    ),
]


@pytest.mark.parametrize("case", REBUILT, ids=[case.reason for case in REBUILT])
async def test_fal_is_asked_for_one_app_and_a_bounded_life_and_nothing_else(case: Rebuilt, tmp_path: Path) -> None:
    async with emulated() as fal:
        answer, seen = await minted(fal, tmp_path, case.body, case.kind)
    assert (answer.status, answer.one(b"content-type")) == (201, b"application/json")
    assert seen == case.seen
    assert answer.one(b"cache-control") == b"no-store"


async def test_token_opens_a_socket_of_fals_without_us(tmp_path: Path) -> None:
    async with emulated() as fal:
        answer, _ = await minted(fal, tmp_path, LCM)
        token = json.loads(answer.body)
        async with opened(fal, f"/fal-ai/lcm/realtime?fal_jwt_token={token}", headers={}) as socket:
            assert (await tell(socket, {"n": 1}))["input"] == {"n": 1}


class Denied(NamedTuple):
    """A token that nobody gets."""

    reason: str
    status: int
    error_type: str
    body: bytes = LCM
    path: str = "/tokens/"
    endpoints: tuple[str, ...] = ("**",)
    changes: dict[str, Any] = {}  # noqa: RUF012 -- nobody changes it


DENIED = [
    Denied("another alias", 403, "endpoint_denied", endpoints=("fal-ai/flux/**",)),
    Denied("one path of the alias", 403, "endpoint_denied", endpoints=("fal-ai/lcm/realtime",)),
    Denied("all below the alias, but not itself", 403, "endpoint_denied", endpoints=("fal-ai/lcm/*",)),
    Denied("another owner's", 403, "endpoint_denied", b'{"app":"evil/lcm"}', endpoints=("fal-ai/lcm/**",)),
    Denied("a path opens no less", 403, "endpoint_denied", b'{"app":"fal-ai/lcm/x"}', endpoints=("fal-ai/lcm/x",)),
    Denied("two apps", 422, "input_denied", b'{"allowed_apps":["lcm","flux"]}'),
    Denied("all apps", 422, "input_denied", b'{"allowed_apps":["*"]}'),
    Denied("paths", 422, "input_denied", b'{"allowed_apps":["lcm"],"allowed_paths":["/"]}'),
    Denied("no body", 422, "input_denied", b""),
    Denied("a query", 422, "input_denied", path="/tokens/?allowed_apps=flux"),
    Denied("more than any request is long", 413, "body_too_large", b" " * 20_000 + LCM),
    Denied(
        "inputs of the alias are judged",
        403,
        "endpoint_denied",
        changes={"inputs": (InputRule(endpoint="fal-ai/LCM/img2img", drop=("x",)),)},
    ),
    Denied(
        "inputs of something of the alias are counted",
        403,
        "endpoint_denied",
        changes={"prices": {"fal-ai/lcm/**": {"usd": 1, "units_from": "num_images"}}},
    ),
]


@pytest.mark.parametrize("case", DENIED, ids=[case.reason for case in DENIED])
async def test_token_that_would_open_too_much_is_refused_before_anything_is_dialled(case: Denied, limit: Limit) -> None:
    plan = handing(endpoints=case.endpoints)
    ours, fal = await limit(plan, realtime=TOKEN_MODE, **case.changes)
    answer = await ours.ask(("POST", "/rest.fal.ai" + case.path), ours.ada, case.body)
    refused(answer, case.status, case.error_type)
    assert fal.seen == []


@pytest.mark.parametrize("glob", ["**", "fal-ai/**", "fal-ai/lcm/**", "*/lcm/**"])
async def test_bare_alias_needs_one_owners_whole_alias(glob: str, limit: Limit) -> None:
    ours, fal = await limit(handing(endpoints=(glob,)), realtime=TOKEN_MODE)
    fal.says["initiate"] = MINTED
    answer = await ours.ask(TOKENS, ours.ada, LCM)
    assert (answer.status, answer.body) == (201, b'"fal.s.token"')


async def test_plan_that_has_not_opted_in_gets_neither_token_nor_ticket(limit: Limit) -> None:
    ours, fal = await limit(wide(), realtime=TOKEN_MODE)
    assert "realtime_token" in refused(await ours.ask(TOKENS, ours.ada, LCM), 403, "mode_off")
    assert fal.seen == []


async def test_opted_in_plan_gets_a_ticket_as_long_as_sockets_are_relayed(limit: Limit) -> None:
    ours, fal = await limit(handing())
    answer = await ours.ask(TOKENS, ours.ada, LCM)
    assert answer.status == 201
    assert fal.seen == []


async def test_no_socket_goes_through_us_in_token_mode(tmp_path: Path) -> None:
    async with emulated() as fal:
        settings = limits(tmp_path, handing(), realtime=TOKEN_MODE)
        async with proxied(fal.url, tmp_path, settings) as proxy:
            url = f"{proxy.url.replace('http', 'ws', 1)}/fal.run/fal-ai/lcm/realtime"
            with pytest.raises(InvalidStatus) as caught:
                async with connect(url, additional_headers=proxy.bearer, proxy=None):
                    pass
        assert len(fal.app.journal) == 0
    body = json.loads(caught.value.response.body or b"")
    assert (caught.value.response.status_code, body["error_type"]) == (403, "mode_off")


class Repeated(NamedTuple):
    """A second token, some time after one of 120 s: what it adds to 0.12 USD."""

    reason: str
    later: float
    body: bytes
    caller: str
    added_microusd: int


FLUX = b'{"allowed_apps":["flux"],"token_expiration":120}'
REPEATED = [
    Repeated("the client's refresh at 90 % pays for the time that has passed", 108, LCM, "ada", 108_000),
    Repeated("at once: nothing is added", 0, LCM, "ada", 0),
    Repeated("a fraction of a second", 0.25, LCM, "ada", 250),
    Repeated("a shorter one adds nothing", 30, b'{"app":"lcm","duration":60}', "ada", 0),
    Repeated("after its end: a whole life", 120, LCM, "ada", 120_000),
    Repeated("another app has a lease of its own", 60, FLUX, "ada", 120_000),
    Repeated("so has another caller", 60, LCM, "bob", 120_000),
]


@pytest.mark.parametrize("case", REPEATED, ids=[case.reason for case in REPEATED])
async def test_repeat_of_a_token_extends_one_lease(case: Repeated, limit: Limit) -> None:
    ours, fal = await limit(handing(total_budget="1.00/day", budget="1.00/day"), **PAID)
    fal.says["initiate"] = MINTED
    assert (await ours.ask(TOKENS, ours.ada, LCM)).status == 201
    assert await ours.money(ours.ada) == (120_000, 0)
    ours.clock.advance(case.later)
    caller = ours.ada if case.caller == "ada" else ours.user("bob")
    before, _ = await ours.money(caller)
    assert (await ours.ask(TOKENS, caller, case.body)).status == 201
    assert await ours.money(caller) == (before + case.added_microusd, 0)


async def test_hour_of_refreshing_costs_an_hour_and_what_is_ahead(limit: Limit) -> None:
    ours, fal = await limit(handing(budget="10.00/day"), **PAID)
    fal.says["initiate"] = MINTED
    for _ in range(34):
        assert (await ours.ask(TOKENS, ours.ada, LCM)).status == 201
        ours.clock.advance(108)
    assert await ours.money(ours.ada) == ((33 * 108 + 120) * 1000, 0)


async def test_tokens_asked_for_at_once_are_paid_once(limit: Limit) -> None:
    ours, fal = await limit(handing(budget="10.00/day"), **PAID)
    fal.says["initiate"] = MINTED
    answers = await asyncio.gather(*(ours.ask(TOKENS, ours.ada, LCM) for _ in range(12)))
    assert {answer.status for answer in answers} == {201}
    assert await ours.money(ours.ada) == (120_000, 0)


class Ended(NamedTuple):
    """How fal's answer ends, what the caller hears, and what is charged."""

    reason: str
    say: Say
    status: int
    charged_microusd: int


async def _half(peer: Peer) -> None:
    await peer.send(MINTED[:-4])
    peer.reset()


ENDED = [
    Ended("minted", MINTED, 201, 120_000),
    Ended("refused by fal", said(403, b'{"detail":"no"}'), 403, 0),
    Ended("fal is out of order", said(503), 503, 0),
    Ended("nobody knows", reset, 500, 120_000),
    Ended("cut within the token", _half, 500, 120_000),
    Ended("cut within a refusal", lambda peer: _cut(peer, said(403, b'{"detail":"no"}')), 500, 120_000),
    Ended("coded, so that it cannot be read", ok(b"x", b"content-encoding: gzip"), 500, 120_000),
]


async def _cut(peer: Peer, answer: bytes) -> None:
    await peer.send(answer[:-4])
    peer.reset()


@pytest.mark.parametrize("case", ENDED, ids=[case.reason for case in ENDED])
async def test_token_is_charged_unless_fal_refused_it(case: Ended, limit: Limit) -> None:
    ours, fal = await limit(handing(budget="1.00/day"), **PAID)
    fal.says["initiate"] = case.say
    answer = await ours.ask(TOKENS, ours.ada, LCM)
    assert answer.status == case.status
    assert await ours.money(ours.ada) == (case.charged_microusd, 0)
    # What was charged is covered, whatever became of it: the repeat does not pay for it again.
    fal.says["initiate"] = MINTED
    assert (await ours.ask(TOKENS, ours.ada, LCM)).status == 201
    assert await ours.money(ours.ada) == (120_000, 0)


async def test_token_that_was_never_asked_for_costs_nothing(limit: Limit) -> None:
    ours, _ = await limit(handing(budget="1.00/day"), unreachable=True, **PAID)
    refused(await ours.ask(TOKENS, ours.ada, LCM), 502, "upstream_unreachable")
    assert await ours.money(ours.ada) == (0, 0)


async def test_token_of_a_caller_who_has_left_is_read_to_its_end_and_charged(limit: Limit) -> None:
    ours, fal = await limit(handing(budget="1.00/day"), **PAID)
    left, told = asyncio.Event(), asyncio.Event()

    async def late(peer: Peer) -> None:
        await left.wait()
        await peer.send(MINTED)
        told.set()

    fal.says["initiate"] = late
    async with raw_client(ours.proxy.port) as client:
        await client.send(request("POST", MOUNT + TOKENS[1], ours.ada, LCM))
        async with asyncio.timeout(PATIENCE):
            await fal.arrived.wait()
    left.set()
    async with asyncio.timeout(PATIENCE):
        await told.wait()
    await ours.idle()
    assert await ours.money(ours.ada) == (120_000, 0)


async def test_budget_that_does_not_cover_a_lifetime_refuses_it(limit: Limit) -> None:
    ours, fal = await limit(handing(budget="0.20/day"), **PAID)
    fal.says["initiate"] = MINTED
    assert (await ours.ask(TOKENS, ours.ada, LCM)).status == 201
    refused(await ours.ask(TOKENS, ours.ada, FLUX), 402, "budget_exhausted")
    ours.clock.advance(60)
    assert (await ours.ask(TOKENS, ours.ada, LCM)).status == 201  # 0.06 more of 0.20
    ours.clock.advance(60)
    refused(await ours.ask(TOKENS, ours.ada, LCM), 402, "budget_exhausted")
    assert await ours.money(ours.ada) == (180_000, 0)
    assert fal.seen == ["initiate"] * 2


async def test_budget_needs_a_price_of_a_second(limit: Limit) -> None:
    free = msgspec.structs.replace(TOKEN_MODE, usd_per_second=None)
    ours, fal = await limit(handing(budget="1.00/day"), prices={"default": 0.04}, realtime=free)
    sentence = refused(await ours.ask(TOKENS, ours.ada, LCM), 403, "endpoint_denied")
    assert "realtime.usd_per_second" in sentence
    assert fal.seen == []


async def test_token_counts_as_a_submit_and_takes_no_place(limit: Limit) -> None:
    ours, fal = await limit(handing(submit="2/hour", read="1/hour", concurrent=1, realtime_sessions=1), **PAID)
    fal.says["initiate"] = MINTED
    for left in (b"1", b"0"):
        answer = await ours.ask(TOKENS, ours.ada, LCM)
        assert answer.status == 201
        assert b";r=" + left + b";" in (answer.one(b"ratelimit") or b"")
    refused(await ours.ask(TOKENS, ours.ada, LCM), 429, "rate_limited")
    standing = await ours.me(ours.ada)
    assert (standing["concurrent"]["in_use"], standing["realtime"]["in_use"]) == (0, 0)


async def test_no_log_holds_the_token(limit: Limit, lines: Lines) -> None:
    ours, fal = await limit(handing(budget="1.00/day"), **PAID)
    fal.says["initiate"] = MINTED
    assert (await ours.ask(TOKENS, ours.ada, LCM)).body == b'"fal.s.token"'
    [line] = await lines.exactly(1)
    assert (line["kind"], line["cost_microusd"]) == ("token", 120_000)
    assert "fal.s.token" not in lines.text[0]


async def test_anonymous_callers_pay_from_their_networks_purse_too(tmp_path: Path) -> None:
    clock = Clock()
    async with emulated(clock=clock) as fal:
        settings = limits(tmp_path, handing(budget="1.00/day"), **PAID)
        async with limited(fal.url, tmp_path, settings, clock=clock) as ours:
            page = await ours.page()
            assert (await ours.ask(TOKENS, page, LCM)).status == 201
            assert await _spent(ours, page) == await _spent(ours, NETWORK) == 120_000


async def _spent(ours: Limited, caller: list[tuple[str, str]]) -> int:
    return (await ours.money(caller))[0]
