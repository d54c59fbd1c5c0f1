"""Limits as an app meets them: told in words who is over one, and never met by polling as the official clients do."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from client.stage import staged
from fal_proxy.identity.key import add
from fal_proxy.settings import Plan
from support.limited import Limit, Limited, limiting, limits, status, wide
from support.node import Node
from support.proxied import MOUNT
from support.raw import raw_client, request

limit = limiting
# What an operator gets who sets nothing but the endpoints.
DEFAULTS = Plan(endpoints=("**",))


async def test_a_user_over_the_limit_is_told_what_is_exhausted_and_when_it_returns(node: Node, tmp_path: Path) -> None:
    settings = limits(tmp_path, wide(submit="2/minute"))
    async with staged(node, tmp_path, anonymous=False, settings=settings) as stage:
        other = add(tmp_path / "users.toml", "bob", "default")
        seen = await stage.play(
            "limits.mjs", "over", endpoint="emulator/echo", input={"prompt": "p"}, admitted=2, other=other
        )

        for error in seen["refused"].values():
            assert (error["name"], error["status"]) == ("ApiError", 429)
            assert error["body"]["error_type"] == "rate_limited"
            words = r"the limit is 2/minute runs, streams and submits; the next is possible in (\d+) s"
            told = re.fullmatch(words, error["message"])
            assert told
            assert 30 < int(told[1]) <= 61
        assert seen["data"]["input"] == {"prompt": "p"}, "another user is unaffected"
        assert stage.targets("fal.run") == ["POST /emulator/echo"] * 2, "the client's repetitions never reach fal"


@pytest.fixture
async def polled(limit: Limit) -> tuple[Limited, bytes]:
    """Return a proxy with default limits and the request for the status of a job that waits for ever."""
    running, _ = await limit(DEFAULTS)
    job = await running.submit(running.ada)
    return running, request("GET", MOUNT + status(job)[1] + "?logs=0", running.ada)


async def test_polling_twice_a_second_for_ten_minutes_never_trips_a_limit(polled: tuple[Limited, bytes]) -> None:
    running, poll = polled
    async with raw_client(running.proxy.port) as client:
        for _ in range(1200):
            running.clock.advance(0.5)
            await client.send(poll)
            answer = await client.answer()
            assert answer.status == 202
        assert answer.one(b"ratelimit") == b'"read-60";r=2279;t=1'
    limits_now = (await running.me(running.ada))["limits"]
    assert limits_now["submit"][0] == {"limit": 20, "remaining": 20, "reset_seconds": 0}
    assert limits_now["submit"][1]["remaining"] == 199, "the one submit of today"


async def test_two_subscribe_calls_of_the_python_client_fit_the_default_read(polled: tuple[Limited, bytes]) -> None:
    """Each follows the queue and waits for the result: two loops that poll every 100 ms, so forty reads a second."""
    running, poll = polled
    async with raw_client(running.proxy.port) as client:
        for _ in range(600):
            for _loop in range(4):
                await client.send(poll)
                assert (await client.answer()).status == 202
            running.clock.advance(0.1)
        await client.send(poll)
        over = await client.answer()
    assert over.status == 429, "and not one more, so the minute was counted in full"
    assert "2400/minute reads" in msgspec.json.decode(over.body)["message"]
