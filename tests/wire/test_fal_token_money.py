"""What fal's tokens cost: their lives by the second, ahead; a repeat what it adds; nothing only when fal refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from support.emulated import emulated
from support.limited import NETWORK, Clock, Fields, Limit, Limited, Say, limited, limiting, limits, refused, reset, said
from support.peers import PATIENCE, Peer
from support.proxied import MOUNT
from support.raw import raw_client, request
from support.scripts import ok
from support.tokens import LCM, MINTED, PAID, TOKEN_MODE, TOKENS, handing

limit = limiting


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


async def test_anonymous_callers_pay_from_their_networks_purse_too(tmp_path: Path) -> None:
    clock = Clock()
    async with emulated(clock=clock) as fal:
        settings = limits(tmp_path, handing(budget="1.00/day"), **PAID)
        async with limited(fal.url, tmp_path, settings, clock=clock) as ours:
            page = await ours.page()
            assert (await ours.ask(TOKENS, page, LCM)).status == 201
            assert await _spent(ours, page) == await _spent(ours, NETWORK) == 120_000


async def _spent(ours: Limited, caller: Fields) -> int:
    return (await ours.money(caller))[0]
