"""Lines name fal's own request ids, and what the settler charges has a line too: so lines can be held against bills."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.limited import (
    COMPLETED,
    NAMED,
    RUN,
    STREAM,
    SUBMIT,
    Fal,
    Limit,
    cancel,
    events,
    limited,
    limiting,
    limits,
    refused,
    result,
    said,
    status,
    status_stream,
    units,
    wide,
)
from support.lines import Lines, samples, total
from support.peers import Serve
from support.scripts import ok

limit = limiting
PLAN = wide(budget="1.00/day")
PRICES = {"default": 0.04}
UUID = "00000000-0000-4000-8000-00000000abcd"

NAMES = [
    (RUN, "run", ok(b"{}", b"x-fal-request-id: " + UUID.encode()), UUID, "the answer's own id"),
    (STREAM, "stream", events(b"1").replace(b"\r\n", b"\r\nx-fal-request-id: s-1\r\n", 1), "s-1", "a stream's head"),
    (RUN, "run", ok(b"{}"), None, "an answer of something before the app"),
    (RUN, "run", ok(b"{}", b"x-fal-request-id: " + b"x" * 200), "x" * 128, "bounded"),
    (RUN, "run", ok(b"{}", b"x-fal-request-id: a\xc2\x9b1"), "a\xc2\N{REPLACEMENT CHARACTER}1", "printable"),
    (SUBMIT, "submit", None, "job-1", "the id in the body"),
    (SUBMIT, "submit", ok(b'{"request_id":"real"}', b"x-fal-request-id: gateway"), "real", "the body's wins"),
]


@pytest.mark.parametrize(("asked", "kind", "say", "named", "why"), NAMES)
async def test_line_names_the_request_that_fal_answered(
    asked: tuple[str, str], kind: str, say: bytes | None, named: str | None, why: str, limit: Limit, lines: Lines
) -> None:
    running, fal = await limit(PLAN, prices=PRICES)
    if say is not None:
        fal.says[kind] = say
    assert (await running.ask(asked, running.ada)).status == 200
    [line] = await lines.exactly(1)
    assert (line["kind"], line["request_id"]) == (kind, named), why


async def test_lines_about_a_job_name_the_job_whatever_the_answer_is_called(limit: Limit, lines: Lines) -> None:
    running, fal = await limit(PLAN, prices=PRICES)
    job = await running.submit(running.ada)
    fal.says["result"] = said(400, b"{}", b"x-fal-request-id: another")
    for asked in (status(job), status_stream(job), result(job), cancel(job)):
        await running.ask(asked, running.ada)
    written = await lines.exactly(5)
    assert [line["request_id"] for line in written] == [job] * 5
    refused(await running.ask(status("nobodys"), running.ada), 404, "unknown_request")
    assert (await lines.exactly(6))[-1]["request_id"] == "nobodys", "support can see what was asked for"


SETTLED = [
    (ok(b"{}", units("2"), NAMED), "2", 80_000, "fal billed"),
    (ok(), None, 40_000, "no word about money"),
    (said(422, b"{}", NAMED, units("0")), "0", 0, "failed and free"),
]


@pytest.mark.parametrize(("answer", "billed", "cost", "why"), SETTLED)
async def test_what_the_settler_learns_leaves_a_line_and_is_counted(
    answer: bytes, billed: str | None, cost: int, why: str, limit: Limit, lines: Lines
) -> None:
    running, fal = await limit(PLAN, prices=PRICES)
    job = await running.submit(running.ada)
    fal.says.update(status=COMPLETED, result=answer)
    running.clock.advance(10)
    await running.turn()
    submitted, settled = await lines.exactly(2)
    assert submitted["cost_microusd"] is None
    expected = {
        "kind": "settled",
        "request_id": job,
        "endpoint": "fal-ai/flux/dev",
        "units": billed,
        "cost_microusd": cost,
        "decision": "admitted",
        **{name: submitted[name] for name in ("caller", "source", "plan")},
    }
    assert {name: settled[name] for name in expected} == expected, why
    spent, reserved = await running.money(running.ada)
    assert (spent, reserved) == (cost, 0), "the lines add up to the books"
    found = samples(running.proxy.app)
    assert total(found, "fal_proxy_exchanges_total", kind="settled") == 1
    assert total(found, "fal_proxy_cost_microusd_total", plan="default") == cost


FETCHED = [
    (ok(b"{}", units("2"), NAMED), 80_000, "fal billed"),
    (ok(), 40_000, "no word about money: charged as reserved"),
    (said(422, b"{}", NAMED, units("0")), None, "not known to have ended: it stays reserved"),
]


@pytest.mark.parametrize(("answer", "cost", "why"), FETCHED)
async def test_the_line_of_a_fetched_result_says_what_it_charges(
    answer: bytes, cost: int | None, why: str, limit: Limit, lines: Lines
) -> None:
    running, fal = await limit(PLAN, prices=PRICES)
    job = await running.submit(running.ada)
    fal.says["result"] = answer
    for _ in range(2):
        await running.ask(result(job), running.ada)
    _, first, again = await lines.exactly(3)
    assert first["cost_microusd"] == cost, why
    assert not again["cost_microusd"], "once"
    assert await running.money(running.ada) == (cost or 0, 0 if cost else 40_000)
    assert total(samples(running.proxy.app), "fal_proxy_cost_microusd_total", plan="default") == (cost or 0)


async def test_what_the_store_has_charged_is_told_before_the_end_of_the_process(
    serve: Serve, tmp_path: Path, lines: Lines
) -> None:
    async with limited(serve(Fal().script), tmp_path, limits(tmp_path, PLAN, prices=PRICES)) as running:
        job = await running.submit(running.ada)
        running.clock.advance(3600)
    submitted, told = await lines.exactly(2)
    assert (told["kind"], told["request_id"], told["cost_microusd"]) == ("settled", job, 40_000)
    assert (told["caller"], told["reason"]) == (submitted["caller"], "nobody has learnt in time how it ended")


async def test_a_job_without_a_price_is_settled_without_a_cost(limit: Limit, lines: Lines) -> None:
    running, fal = await limit(wide())
    await running.submit(running.ada)
    fal.says.update(status=COMPLETED, result=ok(b"{}", units("2"), NAMED))
    running.clock.advance(10)
    await running.turn()
    settled = (await lines.exactly(2))[-1]
    assert (settled["kind"], settled["units"], settled["cost_microusd"]) == ("settled", "2", None)


async def test_a_settler_that_learns_nothing_leaves_no_line(limit: Limit, lines: Lines) -> None:
    running, _ = await limit(PLAN, prices=PRICES)
    await running.submit(running.ada)
    running.clock.advance(10)
    await running.turn()
    await lines.exactly(1)
