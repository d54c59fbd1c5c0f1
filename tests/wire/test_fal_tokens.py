"""Token mode: fal's own tokens go to callers of a plan that opted in; strictly asked for, and paid for by the second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from fal_proxy.settings import InputRule
from support.emulated import Emulated, emulated
from support.limited import Limit, limited, limiting, limits, refused, wide
from support.lines import Lines
from support.proxied import FAL_KEY, proxied
from support.raw import RawAnswer
from support.realtime import ask as tell
from support.realtime import opened
from support.tokens import LCM, MINTED, PAID, TOKEN_MODE, TOKENS, handing

limit = limiting
REALTIME_TOKENS = ("POST", "/rest.fal.ai/tokens/realtime")


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
