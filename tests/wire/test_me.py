"""`GET {mount}/me`: where a caller stands, in exactly the documented shape, at no cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from fal_proxy.address_guard import PER_MINUTE
from fal_proxy.settings import AnonymousSource, Identity, KeySource
from support.limited import (
    NETWORK,
    OURS,
    RUN,
    SUBMIT,
    Fields,
    Limit,
    Limited,
    hold,
    limiting,
    refused,
    status,
    units,
    wide,
)
from support.proxied import MOUNT
from support.raw import raw_client, request
from support.scripts import ok

limit = limiting
ME = ("GET", "/me")
PLAN = wide(submit="20/minute; 200/day", read="2400/minute", upload="60/hour", concurrent=4)
MIDNIGHT = 1_800_057_600.0


def rate(limit: int, used: int = 0, reset: int = 0) -> dict[str, int]:
    """Return one rate as it is shown."""
    return {"limit": limit, "remaining": limit - used, "reset_seconds": reset}


def shown(factor: int, source: str, submits: int = 0, reads: int = 0, uploads: int = 0) -> dict[str, Any]:
    """Return what a caller of PLAN is shown after so many requests, all in the first second."""
    return {
        "plan": "default",
        "source": source,
        "limits": {
            "submit": [
                rate(20 * factor, submits, 61 if submits else 0),
                rate(200 * factor, submits, 87840 if submits else 0),
            ],
            "read": [rate(2400 * factor, reads, 61 if reads else 0)],
            "upload": [rate(60 * factor, uploads, 3660 if uploads else 0)],
        },
        "concurrent": {"limit": 4 * factor, "in_use": 0},
        "realtime": {"limit": factor, "in_use": 0},
        "budget": None,
    }


async def read(limited: Limited, caller: Fields) -> dict[str, Any]:
    """Return what a caller is shown, without the id, whose form is checked here."""
    answer = await limited.ask(ME, caller)
    assert (answer.status, answer.one(b"content-type")) == (200, b"application/json")
    assert answer.one(b"cache-control") == b"no-store"
    assert answer.one(b"ratelimit") is None
    body: dict[str, Any] = msgspec.json.decode(answer.body)
    assert list(body) == ["id", "plan", "source", "limits", "concurrent", "realtime", "budget"]
    shown_id = body.pop("id")
    assert isinstance(shown_id, str)
    assert len(shown_id) == 12
    assert "ada" not in shown_id
    return body


async def test_a_key_holder_sees_exactly_the_documented_shape(limit: Limit) -> None:
    limited, _ = await limit(PLAN)
    assert await read(limited, limited.ada) == shown(1, "key")
    job = await limited.submit(limited.ada)
    for _ in range(3):
        await limited.ask(status(job), limited.ada)
    await limited.ask(("POST", "/rest.fal.ai/storage/upload/initiate"), limited.ada)
    after = shown(1, "key", submits=1, reads=3, uploads=1)
    assert await read(limited, limited.ada) == {**after, "concurrent": {"limit": 4, "in_use": 1}}
    assert await read(limited, limited.user("bob")) == shown(1, "key")


async def test_a_cookie_caller_sees_their_own_counters_and_a_network_its_own(tmp_path: Path, limit: Limit) -> None:
    key = KeySource(file=str(tmp_path / "users.toml"))
    sources = Identity(("key", "anonymous"), key=key, anonymous=AnonymousSource(network_factor=3))
    limited, _ = await limit(PLAN, identity=sources)
    page = await limited.page()
    assert await read(limited, page) == shown(1, "anonymous")
    assert await read(limited, NETWORK) == shown(3, "anonymous")
    await limited.ask(RUN, page)
    assert await read(limited, page) == shown(1, "anonymous", submits=1)
    assert await read(limited, NETWORK) == shown(3, "anonymous", submits=1), "the page counts for its network too"
    await limited.ask(RUN, NETWORK)
    assert await read(limited, page) == shown(1, "anonymous", submits=1)
    assert await read(limited, [("X-Forwarded-For", "192.0.2.7")]) == shown(3, "anonymous")


async def test_a_browser_gets_its_cookie_and_keeps_its_id(limit: Limit) -> None:
    limited, _ = await limit(PLAN)
    first = await limited.ask(ME, [OURS])
    cookie = (first.one(b"set-cookie") or b"").decode().partition(";")[0]
    assert cookie.startswith("fal_proxy_anon=")
    ids = [(await limited.me([OURS, ("Cookie", cookie)]))["id"] for _ in range(2)]
    assert ids[0] == ids[1] != msgspec.json.decode(first.body)["id"]


BUDGETS = [("1.00/day", 1_000_000, MIDNIGHT), ("0.5/hour", 500_000, 1_800_003_600.0), ("2/total", 2_000_000, None)]


@pytest.mark.parametrize(("text", "most", "resets_at"), BUDGETS)
async def test_a_budget_shows_what_is_spent_and_reserved_and_when_it_starts_anew(
    text: str, most: int, resets_at: float | None, limit: Limit
) -> None:
    limited, fal = await limit(wide(budget=text, total_budget="9/day"), total_budget="9/day", prices={"default": 0.04})

    async def budget() -> Any:
        return (await limited.me(limited.ada))["budget"]

    fixed = {"limit_microusd": most, "resets_at": resets_at}
    assert await budget() == {**fixed, "spent_microusd": 0, "reserved_microusd": 0}
    await limited.submit(limited.ada)
    fal.says["run"] = ok(b"{}", units("1.5"))
    await limited.ask(RUN, limited.ada)
    assert await budget() == {**fixed, "spent_microusd": 60_000, "reserved_microusd": 40_000}


async def test_budgets_of_the_plan_and_the_deployment_are_nobodys_to_see(limit: Limit) -> None:
    limited, _ = await limit(wide(total_budget="9/day"), total_budget="9/day", prices={"default": 0.04})
    await limited.submit(limited.ada)
    assert (await limited.me(limited.ada))["budget"] is None


async def test_a_run_in_progress_holds_a_slot_that_is_shown(limit: Limit) -> None:
    limited, fal = await limit(wide(concurrent=2))
    fal.says["run"] = hold
    async with raw_client(limited.proxy.port) as client:
        await client.send(request("POST", MOUNT + RUN[1], limited.ada, b"{}"))
        await fal.arrived.wait()
        assert (await limited.me(limited.ada))["concurrent"] == {"limit": 2, "in_use": 1}


async def test_it_costs_nothing_and_asks_nobody(limit: Limit) -> None:
    limited, fal = await limit(wide(submit="1/minute", read="1/minute", upload="1/minute"))
    for _ in range(10):
        before = await limited.me(limited.ada)
    assert before["limits"] == {"submit": [rate(1)], "read": [rate(1)], "upload": [rate(1)]}
    assert fal.seen == []
    await limited.submit(limited.ada)
    refused(await limited.ask(SUBMIT, limited.ada), 429, "rate_limited")
    assert (await limited.me(limited.ada))["limits"]["submit"] == [rate(1, 1, 61)], "also for who is over the limit"


DENIED = [
    ("GET", "/me", [("Authorization", "Bearer fpk_nobody")], 401, "unidentified", "a key that nobody has"),
    ("GET", "/me", [("Origin", "https://evil.example")], 403, "origin_denied", "a foreign page"),
    ("GET", "/me", [("Sec-Fetch-Site", "cross-site")], 403, "origin_denied", "an image in a foreign page"),
    ("POST", "/me", [], 405, "method_not_allowed", "it is only read"),
    ("GET", "/me?a=b", [], 405, "method_not_allowed", "it has no query"),
]


@pytest.mark.parametrize(("method", "path", "fields", "code", "error_type", "reason"), DENIED)
async def test_it_is_refused_to_whoever_must_not_read_it(
    method: str, path: str, fields: Fields, code: int, error_type: str, reason: str, limit: Limit
) -> None:
    limited, _ = await limit(PLAN)
    refused(await limited.ask((method, path), fields), code, error_type)


async def test_without_an_anonymous_source_it_is_401_without_a_key(tmp_path: Path, limit: Limit) -> None:
    sources = Identity(("key",), key=KeySource(file=str(tmp_path / "users.toml")))
    limited, _ = await limit(PLAN, identity=sources)
    for caller in (NETWORK, [OURS]):
        refused(await limited.ask(ME, caller), 401, "unidentified")
    assert (await limited.ask(ME, limited.ada)).status == 200


async def test_a_key_of_a_plan_that_is_gone_is_403(limit: Limit) -> None:
    limited, _ = await limit(PLAN)
    refused(await limited.ask(ME, limited.user("carl", "gold")), 403, "endpoint_denied")


async def test_an_address_that_asks_too_often_is_told_to_wait_and_its_relay_goes_on(limit: Limit) -> None:
    limited, _ = await limit(PLAN)
    async with raw_client(limited.proxy.port) as client:
        for _ in range(PER_MINUTE):
            await client.send(request(*("GET", MOUNT + "/me"), limited.ada))
            assert (await client.answer()).status == 200
    over = await limited.ask(ME, NETWORK)
    assert "600 requests a minute" in refused(over, 429, "rate_limited")
    assert 0 < int(over.one(b"retry-after") or 0) <= 60
    assert (await limited.ask(RUN, limited.ada)).status == 200
