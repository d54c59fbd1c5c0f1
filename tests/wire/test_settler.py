"""What ends a job: what its caller sees of it, the settler's own questions when nobody looks, or its lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from fal_proxy.stores.memory import MemoryStore
from support.limited import (
    COMPLETED,
    NAMED,
    SUBMIT,
    Clock,
    Fal,
    Limit,
    Limited,
    Say,
    cancel,
    events,
    limited,
    limiting,
    limits,
    refused,
    reset,
    result,
    said,
    status,
    status_stream,
    units,
    wide,
)
from support.peers import Peer, Serve
from support.proxied import FAL_KEY
from support.scripts import ok

limit = limiting
PLAN = wide(concurrent=1, budget="1.00/day")
PRICES = {"default": 0.04}
BILLED = ok(b"{}", units("2"), NAMED)
Kind = tuple[str, str]


async def job_of(running: Limited) -> str:
    """Submit a job that takes the only slot, and return its id."""
    job = await running.submit(running.ada)
    refused(await running.ask(SUBMIT, running.ada), 429, "concurrency_limited")
    return job


def _split(data: bytes) -> Say:
    async def script(peer: Peer) -> None:
        await peer.drip(data)

    return script


SEEN = [
    ("status", status, COMPLETED, (0, 40_000), "a status answer"),
    ("status", status, _split(COMPLETED), (0, 40_000), "a status answer in pieces"),
    ("status", status, ok(b'{"status":"COMPLETED","error":"x"}'), (0, 40_000), "a job that failed"),
    ("status_stream", status_stream, events(b'{"status":"COMPLETED"}'), (0, 40_000), "a status stream"),
    ("status_stream", status_stream, _split(events(b"{}", b'{"status":"COMPLETED"}')), (0, 40_000), "in pieces"),
    ("result", result, BILLED, (80_000, 0), "its result"),
    ("cancel", cancel, ok(b'{"status":"OK"}'), (0, 0), "a cancellation before it ran"),
]


@pytest.mark.parametrize(("name", "kind", "say", "money", "reason"), SEEN)
async def test_a_slot_is_free_as_soon_as_an_answer_says_that_the_job_is_over(
    name: str, kind: Callable[[str], Kind], say: Say, money: tuple[int, int], reason: str, limit: Limit
) -> None:
    running, fal = await limit(PLAN, prices=PRICES)
    job = await job_of(running)
    fal.says[name] = say
    assert (await running.ask(kind(job), running.ada)).status == 200
    assert await running.in_use(running.ada) == 0, reason
    assert await running.money(running.ada) == money, "the slot is free at once, the money waits for the result"
    await running.submit(running.ada)


NOT_SEEN = [
    ("status", status, said(202, b'{"status":"IN_PROGRESS","note":"COMPLETED"}'), "a word somewhere else"),
    ("status", status, said(404, b'{"status":"COMPLETED"}'), "no status answer"),
    ("status", status, ok(b'["COMPLETED"]'), "no object"),
    ("status_stream", status_stream, events(b'{"status":"IN_PROGRESS"}'), "a stream that ended early"),
    ("status_stream", status_stream, said(500, b'data: {"status":"COMPLETED"}\n\n'), "an error is no stream"),
    ("result", result, said(400, b"{}", NAMED), "the result before completion"),
    ("result", result, said(202), "as above"),
    ("cancel", cancel, said(202, b'{"status":"CANCELLATION_REQUESTED"}'), "a runner has it"),
    ("cancel", cancel, said(400, b'{"status":"ALREADY_COMPLETED"}'), "the result will tell"),
]


@pytest.mark.parametrize(("name", "kind", "say", "reason"), NOT_SEEN)
async def test_a_slot_is_held_while_no_answer_says_that_the_job_is_over(
    name: str, kind: Callable[[str], Kind], say: Say, reason: str, limit: Limit
) -> None:
    running, fal = await limit(PLAN, prices=PRICES)
    job = await job_of(running)
    fal.says[name] = say
    await running.ask(kind(job), running.ada)
    assert await running.in_use(running.ada) == 1, reason
    assert await running.money(running.ada) == (0, 40_000), reason


async def test_a_job_that_nobody_polls_is_settled_by_asking_fal(limit: Limit) -> None:
    running, fal = await limit(PLAN, prices=PRICES)
    job = await job_of(running)
    fal.says.update(status=COMPLETED, result=BILLED)
    running.clock.advance(9.9)
    await running.turn()
    assert fal.seen == ["submit"], "its caller may still come"
    running.clock.advance(0.1)
    await running.turn()
    assert fal.paths[1:] == [f"/queue.fal.run/fal-ai/flux/requests/{job}{end}" for end in ("/status", "")]
    assert await running.in_use(running.ada) == 0
    assert await running.money(running.ada) == (80_000, 0)
    running.clock.advance(600)
    await running.turn()
    assert len(fal.seen) == 3, "what is settled is not asked about again"


async def test_the_settler_asks_with_our_key_and_says_who_we_are(serve: Serve, tmp_path: Path) -> None:
    fal = Fal()
    upstream = serve(fal.script)
    async with limited(upstream, tmp_path) as running:
        await running.submit(running.ada)
        running.clock.advance(10)
        await running.turn()
        sent = b"".join(bytes(peer.received) for peer in upstream.peers).rpartition(b"/status HTTP/1.1\r\n")[2].lower()
        assert b"authorization: key " + FAL_KEY.reveal().encode() in sent
        assert b"x-fal-client-proxy: fal-proxy/" in sent
        assert b"bearer" not in sent


async def test_questions_come_10_seconds_after_the_last_poll_then_ever_more_rarely(limit: Limit) -> None:
    running, fal = await limit(PLAN, prices=PRICES)
    job = await job_of(running)
    for _ in range(5):
        running.clock.advance(8)
        await running.ask(status(job), running.ada)
        await running.turn()
    assert fal.seen.count("status") == 5, "only the caller's own"
    polled = running.clock.now
    asked = []
    for _ in range(300):
        running.clock.advance(1)
        before = len(fal.seen)
        await running.turn()
        if len(fal.seen) > before:
            asked.append(running.clock.now - polled)
    assert asked == [10, 30, 70, 130, 190, 250]
    await running.ask(status(job), running.ada)
    running.clock.advance(10)
    before = len(fal.seen)
    await running.turn()
    assert len(fal.seen) == before + 1, "a poll begins anew"


BROKEN: list[tuple[str, Say, str]] = [
    ("status", reset, "no answer to the status"),
    ("status", said(500), "an error instead of a status"),
    ("status", said(404), "fal does not know it for the moment"),
    ("status", ok(b"<html>"), "no JSON"),
    ("result", reset, "no answer to the result"),
    ("result", said(502), "something in front of the result"),
    ("result", said(404, b"{}"), "as above"),
]


@pytest.mark.parametrize(("name", "say", "reason"), BROKEN)
async def test_a_broken_answer_settles_nothing_and_is_asked_for_again(
    name: str, say: Say, reason: str, limit: Limit
) -> None:
    running, fal = await limit(PLAN, prices=PRICES)
    await job_of(running)
    fal.says.update(status=COMPLETED, result=BILLED)
    fal.says[name] = say
    running.clock.advance(10)
    await running.turn()
    assert await running.money(running.ada) == (0, 40_000), reason
    fal.says.update(status=COMPLETED, result=BILLED)
    running.clock.advance(20)
    await running.turn()
    assert await running.money(running.ada) == (80_000, 0), reason
    assert await running.in_use(running.ada) == 0


FAILED = [
    (said(422, b"{}", NAMED), (0, 0), "the job failed and was not billed"),
    (said(422, b"{}", NAMED, units("0.25")), (10_000, 0), "failed and billed"),
    (said(499, b"{}", NAMED), (40_000, 0), "cancelled by somebody else"),
    (ok(), (40_000, 0), "no word about money"),
]


@pytest.mark.parametrize(("answer", "money", "reason"), FAILED)
async def test_the_settler_knows_the_table_of_results(
    answer: bytes, money: tuple[int, int], reason: str, limit: Limit
) -> None:
    running, fal = await limit(PLAN, prices=PRICES)
    await job_of(running)
    fal.says.update(status=COMPLETED, result=answer)
    running.clock.advance(10)
    await running.turn()
    assert await running.money(running.ada) == money, reason
    assert await running.in_use(running.ada) == 0


async def test_a_job_that_never_ends_is_charged_as_reserved_with_its_lease_and_a_late_word_still_counts(
    limit: Limit,
) -> None:
    running, fal = await limit(PLAN, prices=PRICES)
    job = await job_of(running)
    running.clock.advance(3599)
    assert await running.in_use(running.ada) == 1
    running.clock.advance(1)
    assert await running.in_use(running.ada) == 0
    assert await running.money(running.ada) == (40_000, 0)
    running.clock.advance(12 * 3600)
    fal.says["result"] = BILLED
    assert (await running.ask(result(job), running.ada)).status == 200
    assert await running.money(running.ada) == (80_000, 0)


async def test_two_settlers_of_one_store_never_ask_twice(serve: Serve, tmp_path: Path) -> None:
    fal, clock = Fal(), Clock()
    upstream, store = serve(fal.script), MemoryStore(clock=clock)
    settings = limits(tmp_path, wide(budget="9.00/day"), prices=PRICES)
    async with limited(upstream, tmp_path, settings, clock=clock, store=store) as one:
        key = one.proxy.user_key
        async with limited(upstream, tmp_path, settings, clock=clock, store=store, user_key=key) as other:
            jobs = [await one.submit(one.ada) for _ in range(40)]
            fal.says.update(status=COMPLETED, result=BILLED)
            clock.advance(10)
            while fal.seen.count("result") < len(jobs):
                before = len(fal.seen)
                await asyncio.gather(one.turn(), other.turn())
                assert len(fal.seen) > before
            assert [fal.seen.count(kind) for kind in ("status", "result")] == [40, 40]
            assert len(set(fal.paths[40:])) == 80
            assert await other.money(other.ada) == (40 * 80_000, 0)


async def test_a_departed_submit_is_settled_without_its_caller(limit: Limit) -> None:
    running, fal = await limit(PLAN, prices=PRICES)
    fal.says["submit"] = reset
    refused(await running.ask(SUBMIT, running.ada), 500, "upstream_outcome_unknown")
    await running.idle()
    running.clock.advance(600)
    await running.turn()
    assert fal.seen == ["submit"], "a job without an id cannot be asked about"
    assert await running.money(running.ada) == (40_000, 0)
