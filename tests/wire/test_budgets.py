"""Money on the wire: whose budget refuses, what is set aside, and what every ending costs to the micro-dollar."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fal_proxy.settings import AnonymousSource, Identity, KeySource
from support.limited import (
    COMPLETED,
    NAMED,
    NETWORK,
    RUN,
    STREAM,
    SUBMIT,
    Limit,
    Limited,
    Say,
    cancel,
    events,
    hold,
    limiting,
    refused,
    reset,
    result,
    said,
    status,
    units,
    wide,
)
from support.lines import Lines
from support.peers import Peer
from support.proxied import MOUNT
from support.raw import raw_client, request
from support.scripts import ok

limit = limiting
PRICES: dict[str, Any] = {"default": 0.04}
UNTIL_MIDNIGHT = "does not cover this request; it starts anew in 16 h"
Kind = tuple[str, str]

WHOSE = [
    ({"budget": "0.10/day"}, "", f"your budget of $0.10 per day {UNTIL_MIDNIGHT}"),
    ({"total_budget": "0.10/day"}, "", f"the budget of your plan of $0.10 per day {UNTIL_MIDNIGHT}"),
    ({}, "0.10/day", f"the budget of this proxy of $0.10 per day {UNTIL_MIDNIGHT}"),
    ({"budget": "0.10/total"}, "", "your budget of $0.10 in all does not cover this request"),
    ({"budget": "1.00/day", "total_budget": "0.10/hour"}, "", "it starts anew in 60 min"),
]


@pytest.mark.parametrize("kind", [RUN, STREAM, SUBMIT], ids=["run", "stream", "submit"])
@pytest.mark.parametrize(("plan", "total", "sentence"), WHOSE)
async def test_402_says_whose_budget_is_exhausted_and_until_when(
    plan: dict[str, str], total: str, sentence: str, kind: Kind, limit: Limit
) -> None:
    limited, fal = await limit(wide(**plan), total_budget=total, prices=PRICES)
    bill = [("run", ok(b"{}", units("1"))), ("stream", ok(b"{}", units("1")))]
    fal.says.update(bill)
    for _ in range(2):
        assert (await limited.ask(kind, limited.ada)).status == 200
    assert sentence in refused(await limited.ask(kind, limited.ada), 402, "budget_exhausted")
    assert len(fal.seen) == 2, "what is refused reaches nobody"
    bobs = await limited.ask(kind, limited.user("bob"))
    shared = bool(total or "total_budget" in plan)
    assert bobs.status == (402 if shared else 200), "a budget of one's own is one's own"


async def test_a_budget_starts_anew_with_its_period_and_not_before(limit: Limit) -> None:
    limited, fal = await limit(wide(budget="0.05/day"), prices=PRICES)
    fal.says["run"] = ok(b"{}", units("1"))
    assert (await limited.ask(RUN, limited.ada)).status == 200
    limited.clock.advance(16 * 3600 - 1)
    assert "in 1 s" in refused(await limited.ask(RUN, limited.ada), 402, "budget_exhausted")
    limited.clock.advance(1)
    assert (await limited.ask(RUN, limited.ada)).status == 200


async def test_a_network_has_a_budget_of_its_own_and_is_named_when_that_is_exhausted(
    limit: Limit, tmp_path: Path
) -> None:
    key = KeySource(file=str(tmp_path / "users.toml"))
    sources = Identity(("key", "anonymous"), key=key, anonymous=AnonymousSource(network_factor=2))
    limited, fal = await limit(wide(budget="0.05/day"), prices=PRICES, identity=sources)
    pages = [await limited.page() for _ in range(3)]
    for page in pages[:2]:
        assert (await limited.ask(RUN, page)).status == 200
        assert "your budget of $0.05 per day" in refused(await limited.ask(RUN, page), 402, "budget_exhausted")
    for caller in (pages[2], NETWORK):
        sentence = refused(await limited.ask(RUN, caller), 402, "budget_exhausted")
        assert sentence == f"the budget of your network of $0.10 per day {UNTIL_MIDNIGHT}"
    assert (await limited.ask(RUN, limited.ada)).status == 200
    assert len(fal.seen) == 3


@pytest.mark.parametrize("plan", [{"budget": "1.00/day"}, {"total_budget": "1.00/day"}, {}])
async def test_what_has_no_price_is_denied_under_any_budget_and_free_without_one(
    plan: dict[str, str], limit: Limit
) -> None:
    total = "" if plan else "1.00/day"
    limited, fal = await limit(wide(**plan), total_budget=total, prices={"other/**": 0.01})
    for kind in (RUN, STREAM, SUBMIT):
        sentence = refused(await limited.ask(kind, limited.ada), 403, "endpoint_denied")
        assert sentence == "fal-ai/flux/dev has no price here, and budgets need one ([prices])"
    assert (await limited.ask(("POST", "/fal.run/other/app"), limited.ada)).status == 200
    assert fal.seen == ["run"]


async def test_without_a_budget_nothing_needs_a_price(limit: Limit) -> None:
    limited, _ = await limit(wide())
    assert (await limited.ask(RUN, limited.ada)).status == 200


COUNTED = {"fal-ai/**": {"usd": 0.003, "reserve_units": 2, "units_from": "num_images"}}
INPUTS = [
    (b'{"num_images": 3}', 9_000, "as many as are asked for"),
    (b'{"num_images": 0}', 0, "none"),
    (b'{"num_images": 1.5}', 4_500, "a fraction"),
    (b'{"num_images": 10000}', 30_000_000, "the most"),
    (b'{"num_images": 0.0001}', 1, "rounded up to a micro-dollar"),
    (b"{}", 6_000, "absent: what is set aside without it"),
    (b'{"num_images": 10001}', None, "more than the most"),
    (b'{"num_images": -1}', None, "less than none"),
    (b'{"num_images": "3"}', None, "a string"),
    (b'{"num_images": true}', None, "true is no number"),
    (b'{"num_images": null}', None, "null is not absent"),
    (b'{"num_images": [3]}', None, "a list"),
    (b'{"num_images": 1e400}', None, "beyond every number"),
    (b"[]", None, "no object"),
    (b"", 6_000, "no body is an empty input"),
    (b" ", None, "blank is not empty"),
    (b'{"num_images": 3', None, "no JSON"),
]


@pytest.mark.parametrize(("given", "reserved", "reason"), INPUTS)
async def test_units_from_the_input_decide_what_is_reserved(
    given: bytes, reserved: int | None, reason: str, limit: Limit
) -> None:
    limited, fal = await limit(wide(budget="100.00/day", submit="1/minute"), prices=COUNTED)
    if reserved is None:
        for kind in (RUN, STREAM, SUBMIT):
            refused(await limited.ask(kind, limited.ada, given), 422, "input_denied")
        assert fal.seen == [], reason
        assert await limited.money(limited.ada) == (0, 0), reason
        assert (await limited.ask(RUN, limited.ada)).status == 200, "what is refused consumes nothing"
        return
    fal.says["run"] = hold
    async with raw_client(limited.proxy.port) as client:
        await client.send(request("POST", MOUNT + RUN[1], limited.ada, given))
        await fal.arrived.wait()
        assert await limited.money(limited.ada) == (0, reserved), reason
    assert msgspec.json.decode(fal.inputs[0]) == msgspec.json.decode(given or b"{}")


async def test_a_content_type_does_not_hide_the_input_that_the_price_needs(limit: Limit) -> None:
    limited, fal = await limit(wide(budget="0.01/day"), prices=COUNTED)
    dear = b'{"num_images": 4}'
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/octet-stream"):
        answer = await limited.ask(RUN, [*limited.ada, ("Content-Type", kind)], dear)
        assert answer.status in (402, 422), kind
    assert fal.seen == []


async def _cut_after_units(peer: Peer) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-fal-billable-units: 0.5\r\ncontent-length: 99\r\n"
    await peer.send(head + b"\r\ndata: {}\n\n")
    peer.close()


ENDS: list[tuple[Kind, Say, int, int, str]] = [
    (RUN, ok(b"{}", units("2.5")), 200, 100_000, "fal's word replaces the reservation"),
    (RUN, ok(b"{}", units("0.00001234")), 200, 1, "rounded up to a micro-dollar"),
    (RUN, ok(b"{}", units("0")), 200, 0, "nothing was billed"),
    (RUN, ok(), 200, 40_000, "fal says nothing: as reserved"),
    (RUN, ok(b"{}", units("-1")), 200, 40_000, "what is no units field says nothing"),
    (RUN, ok(b"{}", units("1e3")), 200, 40_000, "as above"),
    (RUN, ok(b"{}", units("3"), units("4")), 200, 40_000, "nor do two lines"),
    (RUN, said(422), 422, 0, "refused by fal"),
    (RUN, said(422, b"{}", units("0.5")), 422, 20_000, "refused and billed"),
    (RUN, said(503), 503, 0, "an error of fal's"),
    (RUN, said(499), 499, 40_000, "cancelled, perhaps too late"),
    (RUN, reset, 500, 40_000, "an unknown outcome"),
    (STREAM, events(b"1"), 200, 40_000, "a stream without units"),
    (STREAM, events(b"1").replace(b"\r\n\r\n", b"\r\nx-fal-billable-units: 2\r\n\r\n", 1), 200, 80_000, "with units"),
    (STREAM, _cut_after_units, 200, 20_000, "units in the head of a cut stream"),
    (STREAM, said(500), 500, 0, "an error instead of a stream"),
    (SUBMIT, said(422), 422, 0, "fal did not take the job"),
    (SUBMIT, said(429), 429, 0, "as above"),
    (SUBMIT, reset, 500, 40_000, "the job may be queued"),
    (SUBMIT, ok(), 200, 40_000, "a job whose id nobody knows"),
]


@pytest.mark.parametrize(("kind", "say", "code", "spent", "reason"), ENDS)
async def test_every_ending_costs_what_the_table_says(
    kind: Kind, say: Say, code: int, spent: int, reason: str, limit: Limit
) -> None:
    limited, fal = await limit(wide(budget="1.00/day"), prices=PRICES)
    fal.says.update(dict.fromkeys(["run", "stream", "submit"], say))
    assert (await limited.ask(kind, limited.ada)).status == code
    await limited.idle()
    assert await limited.money(limited.ada) == (spent, 0), reason


@pytest.mark.parametrize("kind", [RUN, STREAM], ids=["run", "stream"])
async def test_hanging_up_is_no_refund(kind: Kind, limit: Limit) -> None:
    limited, fal = await limit(wide(budget="1.00/day"), prices=PRICES)
    fal.says.update(run=hold, stream=hold)
    async with raw_client(limited.proxy.port) as client:
        await client.send(request(kind[0], MOUNT + kind[1], limited.ada, b"{}"))
        await fal.arrived.wait()
        assert await limited.money(limited.ada) == (0, 40_000)
        client.reset()
        await limited.idle()
    assert await limited.money(limited.ada) == (40_000, 0)


@pytest.mark.parametrize("kind", [RUN, STREAM, SUBMIT], ids=["run", "stream", "submit"])
async def test_what_never_reached_fal_is_released(kind: Kind, limit: Limit) -> None:
    limited, _ = await limit(wide(budget="1.00/day"), prices=PRICES, unreachable=True)
    refused(await limited.ask(kind, limited.ada), 502, "upstream_unreachable")
    await limited.idle()
    assert await limited.money(limited.ada) == (0, 0)


async def _after(limited: Limited, fal: Any, job: str, *, seen: bool, answer: bytes) -> tuple[int, int]:
    fal.says.update(status=COMPLETED, result=answer)
    if seen:
        await limited.ask(status(job), limited.ada)
    await limited.ask(result(job), limited.ada)
    return await limited.money(limited.ada)


RESULTS = [
    (False, ok(b"{}", units("2")), (80_000, 0), "a result is known by its 200"),
    (False, ok(), (40_000, 0), "without units it costs what was reserved"),
    (False, said(202, b"{}", units("2")), (0, 40_000), "202 is no result"),
    (False, said(400), (0, 40_000), "still in progress"),
    (False, said(422, b"{}", NAMED, units("0")), (0, 40_000), "nobody has seen it complete yet"),
    (True, said(422, b"{}", NAMED), (0, 0), "complete and failed"),
    (True, said(422, b"{}", NAMED, units("0.5")), (20_000, 0), "complete, failed and billed"),
    (True, said(499, b"{}", NAMED), (40_000, 0), "complete and cancelled"),
    (True, said(404), (0, 40_000), "something in front of the job says 404"),
    (True, said(502), (0, 40_000), "or 502"),
    (True, said(504, b"{}", NAMED), (0, 0), "the job itself timed out"),
]


@pytest.mark.parametrize(("seen", "answer", "money", "reason"), RESULTS)
async def test_a_job_costs_what_its_known_result_says(
    seen: bool, answer: bytes, money: tuple[int, int], reason: str, limit: Limit
) -> None:
    limited, fal = await limit(wide(budget="1.00/day"), prices=PRICES)
    job = await limited.submit(limited.ada)
    assert await limited.money(limited.ada) == (0, 40_000)
    assert await _after(limited, fal, job, seen=seen, answer=answer) == money, reason


async def test_repeated_results_charge_once_and_fals_latest_word_counts(limit: Limit) -> None:
    limited, fal = await limit(wide(budget="1.00/day"), prices=PRICES)
    job, _other = [await limited.submit(limited.ada) for _ in range(2)]
    fal.says["result"] = ok(b"{}", units("2"))
    with Lines() as lines:
        answers = await asyncio.gather(*(limited.ask(result(job), limited.ada) for _ in range(20)))
        await limited.idle()
    assert {answer.status for answer in answers} == {200}
    assert await limited.money(limited.ada) == (80_000, 40_000), "the other job is still open"
    assert sorted(line["cost_microusd"] for line in (json.loads(text) for text in lines.text)) == [0] * 19 + [80_000], (
        "and one line tells of it"
    )
    fal.says["result"] = ok(b"{}", units("3"))
    await limited.ask(result(job), limited.ada)
    assert await limited.money(limited.ada) == (120_000, 40_000)
    fal.says["result"] = ok()
    await limited.ask(result(job), limited.ada)
    assert await limited.money(limited.ada) == (120_000, 40_000), "silence replaces nothing"


CANCELS = [
    (ok(b'{"status":"OK"}'), (0, 0), "it never ran"),
    (ok(b'{"success":true}'), (0, 0), "an older spelling"),
    (said(202, b'{"status":"CANCELLATION_REQUESTED"}'), (0, 40_000), "a runner has it already"),
    (said(400, b'{"status":"ALREADY_COMPLETED"}'), (0, 40_000), "too late"),
    (ok(b"{}"), (0, 40_000), "says nothing"),
]


@pytest.mark.parametrize(("answer", "money", "reason"), CANCELS)
async def test_a_cancelled_job_is_released_only_when_it_never_ran(
    answer: bytes, money: tuple[int, int], reason: str, limit: Limit
) -> None:
    limited, fal = await limit(wide(budget="1.00/day"), prices=PRICES)
    job = await limited.submit(limited.ada)
    fal.says["cancel"] = answer
    await limited.ask(cancel(job), limited.ada)
    assert await limited.money(limited.ada) == money, reason
    assert await _after(limited, fal, job, seen=False, answer=ok(b"{}", units("1"))) == (40_000, 0), "fal's word wins"
