"""How fal is asked for prices: few questions for many callers, pauses after a failure, no flood for made-up names."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fal_proxy.environment import Secret
from fal_proxy.errors import Refusal
from fal_proxy.platform_api import feed as feeds
from support import feeding
from support.feeding import FLUX, NEW, SDXL, Fed, fed, refused, until
from support.peers import turns
from support.price_list import Fal, page, refusing
from support.proxied import FAL_KEY
from support.services import Reply

fal, url, one, at_once = feeding.fal, feeding.url, feeding.one, feeding.at_once


async def test_whoever_asks_at_once_is_answered_by_one_question_and_the_rest_by_fifty(
    one: Fed, fal: Fal, at_once: None
) -> None:
    names = [f"fal-ai/model-{number}" for number in range(60)]
    fal.prices.update(dict.fromkeys(names, "0.5"))
    fal.service.gate.clear()
    asked = [asyncio.create_task(one.usd(name)) for name in [names[0]] * 20]
    await feeding.asked(fal, 1)
    asked += [asyncio.create_task(one.usd(name)) for name in names]
    await turns()
    fal.service.gate.set()
    assert set(await asyncio.gather(*asked)) == {"1/2"}
    assert [len(ids) for ids in fal.questions] == [1, 50, 9]
    assert await one.usd(names[5]) == "1/2"
    assert len(fal.questions) == 3


BROKEN: list[tuple[Callable[[list[str]], Reply], str]] = [
    (refusing(500), "an error of fal's"),
    (refusing(429), "too many questions"),
    (refusing(401, body=b'{"error":{"type":"authorization_error","message":"Authentication required"}}'), "a bad key"),
    (refusing(403, body=b"<html>Just a moment...</html>"), "something in front of fal"),
    (refusing(301), "a redirect"),
    (lambda _: Reply(200, b"<html>"), "no JSON"),
    (lambda _: Reply(200, b"[]"), "no price list"),
    (lambda _: Reply(200, b"[" * 100_000), "a bomb"),
    (lambda _: Reply(200, b'{"prices":[' + b" " * 2_000_000 + b"]}"), "more than anybody needs"),
    (lambda _: page(cursor="again"), "pages without end"),
    (lambda _: page(cursor="x" * 5000), "a cursor that fits no request"),
]


@pytest.mark.parametrize(("says", "why"), BROKEN)
async def test_an_answer_that_says_nothing_is_503_and_a_pause(
    says: Callable[[list[str]], Reply], why: str, one: Fed, fal: Fal, caplog: pytest.LogCaptureFixture
) -> None:
    fal.says = says
    await refused(one, FLUX)
    asked = len(fal.questions)
    for _ in range(20):
        await refused(one, FLUX)
        await refused(one, SDXL)
    assert len(fal.questions) == asked, "nobody is asked during the pause"
    assert (one.feed.failures, one.feed.lookups) == (1, 1), why
    assert "cannot be asked for prices" in caplog.text
    assert FAL_KEY.reveal() not in caplog.text


async def test_pauses_double_up_to_half_a_minute_and_end_with_an_answer(
    one: Fed, fal: Fal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(feeds, "SPACING_SECONDS", 0.0)
    fal.says = refusing(500)
    for _ in range(7):
        one.feed._resume_at = 0.0
        await refused(one, FLUX)
    said = [record.getMessage().rpartition(" in ")[2] for record in caplog.records]
    assert said == [f"{seconds} s" for seconds in (1, 2, 4, 8, 16, 30, 30)]
    fal.says, one.feed._resume_at = None, 0.0
    assert await one.usd(FLUX) == "1/40"
    fal.says = refusing(500)
    await refused(one, NEW)
    assert caplog.records[-1].getMessage().endswith("in 1 s")


async def test_no_answer_in_time_is_503_and_the_answer_serves_the_next(
    one: Fed, fal: Fal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "WAIT_SECONDS", 0.02)
    fal.service.gate.clear()
    await refused(one, FLUX)
    fal.service.gate.set()
    await until(lambda: one.feed.known == 1)
    assert await one.usd(FLUX) == "1/40"
    assert len(fal.questions) == 1


async def test_a_caller_who_leaves_does_not_end_the_question_of_the_others(one: Fed, fal: Fal) -> None:
    fal.service.gate.clear()
    leaver, stayer = asyncio.create_task(one.usd(FLUX)), asyncio.create_task(one.usd(FLUX))
    await feeding.asked(fal, 1)
    leaver.cancel()
    await asyncio.wait([leaver])
    fal.service.gate.set()
    assert await stayer == "1/40"


async def test_made_up_ids_make_no_flood_of_questions(one: Fed, fal: Fal) -> None:
    names = [f"made-up/{number}" for number in range(1000)]

    async def ask(name: str) -> str:
        try:
            return str(await one.usd(name))
        except Refusal as refusal:
            return refusal.error_type

    began = time.monotonic()
    answers = await asyncio.gather(*map(ask, names))
    took = time.monotonic() - began
    assert set(answers) == {"None", "store_unavailable"}
    assert answers.count("store_unavailable") >= 1000 - feeds.MAX_WAITING
    assert all(len(ids) <= 50 for ids in fal.questions)
    assert len(fal.questions) <= took / feeds.SPACING_SECONDS + 1
    asked = len(fal.questions)
    known = [name for name, answer in zip(names, answers, strict=True) if answer == "None"]
    assert len(known) >= 50
    assert set(await asyncio.gather(*map(ask, known))) == {"None"}
    assert len(fal.questions) == asked, "they are remembered as made up"


async def test_what_is_remembered_as_made_up_is_bounded(one: Fed, at_once: None) -> None:
    for begin in range(0, 2500, 100):
        await asyncio.gather(*(one.usd(f"made-up/{number}") for number in range(begin, begin + 100)))
    assert len(one.feed._absent) == feeds.MAX_ABSENT
    assert one.feed.known == 0


def _strict(fal: Fal) -> None:
    """Let fal refuse a whole question for one id that it does not know, as its documentation allows."""
    fal.says = lambda ids: None if all(name in fal.prices for name in ids) else Reply(404, b"{}")


async def test_one_unknown_id_does_not_spoil_a_question_for_the_others(one: Fed, fal: Fal, at_once: None) -> None:
    names = [f"fal-ai/model-{number}" for number in range(20)]
    fal.prices = dict.fromkeys(names, "0.5")
    _strict(fal)
    fal.service.gate.clear()
    asked = [asyncio.create_task(one.usd(name)) for name in (FLUX, *names, "made-up/one", "made-up/two")]
    await feeding.asked(fal, 1)
    fal.service.gate.set()
    assert await asyncio.gather(*asked) == [None, *["1/2"] * 20, None, None]
    assert len(fal.questions) < 25, "by halves, not one by one"
    assert one.feed.failures == 0


async def test_what_plans_name_and_what_was_priced_is_asked_about_first_and_apart(
    url: str, fal: Fal, tmp_path: Path, at_once: None
) -> None:
    running = fed(url, tmp_path, named=(SDXL,))
    _strict(fal)
    try:
        assert await running.usd(FLUX) == "1/40"
        running.wall.now += 60
        fal.service.gate.clear()
        asked = [asyncio.create_task(running.usd(f"made-up/{number}")) for number in range(60)]
        await feeding.asked(fal, 2)
        asked += [asyncio.create_task(running.usd(name)) for name in (SDXL, FLUX)]
        await turns()
        fal.service.gate.set()
        assert (await asked[-2], await asked[-1]) == ("1/400", "1/40")
        await until(lambda: len(fal.questions) > 3)
        assert sorted(fal.questions[2]) == [SDXL, FLUX]
        for task in asked:
            task.cancel()
    finally:
        await running.feed.close()


async def test_after_a_failure_the_next_key_asks_and_no_key_loses_its_turn(
    url: str, fal: Fal, tmp_path: Path, at_once: None
) -> None:
    good = Secret("bbbbbbbb-0000-4000-8000-00000000feed:" + "b2" * 16)
    running = fed(url, tmp_path, FAL_KEY, good)
    pool = running.feed._keys
    first = pool.choose()
    try:
        fal.says = lambda _: Reply(401, b"{}") if fal.keys[-1] == FAL_KEY.reveal() else None
        await refused(running, FLUX)
        assert await running.usd(FLUX) == "1/40"
        assert fal.keys == [FAL_KEY.reveal(), good.reveal()]
        assert pool.choose() is not first
        assert pool.resting() == 0, "what the platform API says of a key does not set it aside"
    finally:
        await running.feed.close()


async def test_without_a_usable_key_nobody_is_asked(one: Fed, fal: Fal) -> None:
    [key] = one.feed._keys.accepted()
    key.answered(401, b'{"detail":"invalid key credentials"}', from_job=False, paid=True)
    await refused(one, FLUX)
    assert fal.questions == []


async def test_closing_ends_what_is_under_way(url: str, fal: Fal, tmp_path: Path) -> None:
    running = fed(url, tmp_path)
    fal.service.gate.clear()
    asked = asyncio.create_task(running.usd(FLUX))
    await feeding.asked(fal, 1)
    await running.feed.close()
    with pytest.raises(Refusal):
        await asked
