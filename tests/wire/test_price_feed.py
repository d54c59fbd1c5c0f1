"""Prices that fal names: exact, fetched once, kept while fresh, and never a way to make us ask without end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from fractions import Fraction
from pathlib import Path

import pytest

from fal_proxy.environment import Secret
from fal_proxy.errors import Refusal
from fal_proxy.platform_api import feed as feeds
from fal_proxy.platform_api.price_list import PriceList
from fal_proxy.policy.pricing import Prices
from support.peers import PATIENCE, turns
from support.price_list import Fal, Fed, fed, page, refusing, row
from support.proxied import FAL_KEY
from support.services import Reply, served

FLUX, SDXL, NEW = "fal-ai/flux/dev", "fal-ai/fast-sdxl", "fal-ai/new"


@pytest.fixture
async def url(fal: Fal) -> AsyncIterator[str]:
    async with served(fal.service) as running:
        yield running


@pytest.fixture
def fal() -> Fal:
    return Fal({FLUX: "0.025", SDXL: "0.0025"})


@pytest.fixture
async def one(url: str, tmp_path: Path) -> AsyncIterator[Fed]:
    running = fed(url, tmp_path)
    yield running
    await running.feed.close()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no time pass between two questions, and none after a failure."""
    monkeypatch.setattr(feeds, "SPACING_SECONDS", 0.0)
    monkeypatch.setattr(feeds, "FIRST_PAUSE_SECONDS", 0.0)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await turns(1)


async def _arrived(fal: Fal, questions: int) -> None:
    async with asyncio.timeout(PATIENCE):
        await fal.service.arrived(questions)


async def _refused(running: Fed, name: str) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        await running.usd(name)
    assert refusal.value.error_type == "store_unavailable"
    assert refusal.value.status == 503
    assert any(header == b"retry-after" for header, _ in refusal.value.headers)
    return refusal.value


ORDER = [
    ({FLUX: 0.5, "default": 0.01}, FLUX, "1/2", 0, "the operator's exact price"),
    ({"fal-ai/**": 0.4, "default": 0.01}, FLUX, "2/5", 0, "the operator's glob"),
    ({"fal-ai/**": 0.4}, "FAL-AI/Flux/dev", "2/5", 0, "in any spelling"),
    ({"default": 0.01}, FLUX, "1/40", 1, "fal's own is better than the default"),
    ({}, FLUX, "1/40", 1, "and better than nothing"),
    ({}, "FAL-AI/Flux/dev", "1/40", 1, "in any spelling"),
    ({"default": 0.01}, NEW, "1/100", 1, "fal names none: the default"),
    ({}, NEW, None, 1, "nobody names one"),
    ({"default": 0.01}, "a,b/c", "1/100", 0, "what cannot be an id of fal's is not asked about"),
    ({}, "a/" + "b" * 200, None, 0, "as above"),
    ({}, "a/%2F", None, 0, "as above"),
]


@pytest.mark.parametrize(("prices", "name", "usd", "questions", "why"), ORDER)
async def test_the_operators_words_come_first_then_fals_then_the_default(
    prices: dict[str, float], name: str, usd: str | None, questions: int, why: str, one: Fed, fal: Fal
) -> None:
    price = await PriceList(Prices(prices), one.feed).price_of(name)
    assert (None if price is None else str(price.usd)) == usd, why
    assert len(fal.questions) == questions, why


TEXTS = [
    ("0.1", Fraction(1, 10), "no float in between"),
    ("0.0196608", Fraction(196608, 10**7), "as fal writes it"),
    ("0.10000000000000000001", Fraction(10**19 + 1, 10**20), "twenty digits"),
    ("2.5e-3", Fraction(1, 400), "an exponent"),
    ("3", Fraction(3), "a whole number"),
    ("1e1", Fraction(10), "as above"),
]


@pytest.mark.parametrize(("text", "usd", "why"), TEXTS)
async def test_a_price_is_exactly_the_decimal_that_fal_wrote_also_after_a_restart(
    text: str, usd: Fraction, why: str, one: Fed, fal: Fal, url: str, tmp_path: Path
) -> None:
    fal.prices[FLUX] = text
    price = await one.feed.price_of(FLUX)
    assert price is not None
    assert price.usd == usd, why
    await _until(one.file.path.exists)
    again = fed(url, tmp_path)
    try:
        kept = await again.feed.price_of(FLUX)
        assert kept == price, why
        assert len(fal.questions) == 1, "the file knew it"
    finally:
        await again.feed.close()


NO_PRICE = [
    (row(FLUX, "0.025", currency="EUR"), "another currency"),
    (row(FLUX, "0.025", currency="usd"), "a currency that is none"),
    (row(FLUX, "0"), "free of charge is for the operator to say"),
    (row(FLUX, "-1"), "less than nothing"),
    (row(FLUX, "1e400000000"), "a number that would fill the memory"),
    (row(FLUX, "1e-400000000"), "as above"),
    (row(FLUX, "0." + "0" * 30 + "1"), "more decimals than any price"),
    (row(FLUX, "10000.01"), "a fortune"),
    (row(FLUX, '"NaN"'), "no number"),
    (row(FLUX, "null"), "none"),
    ('{"endpoint_id":"fal-ai/flux/dev"}', "a row without a price"),
    ("17", "no row"),
    (row("fal-ai/flux", "0.025"), "another endpoint's, which nobody asked about"),
]


@pytest.mark.parametrize(("broken", "why"), NO_PRICE)
async def test_what_is_no_price_in_dollars_is_none_and_spoils_no_other(
    broken: str, why: str, one: Fed, fal: Fal
) -> None:
    fal.says = lambda _: page(broken, row(SDXL, "0.5"))
    assert await asyncio.gather(*map(one.usd, (NEW, FLUX, SDXL))) == [None, None, "1/2"], why
    assert await one.usd(FLUX) is None
    assert len(fal.questions) == 1, "what has no price is remembered"


async def test_of_two_prices_for_one_endpoint_the_higher_counts(one: Fed, fal: Fal) -> None:
    fal.says = lambda _: page(row(FLUX, "0.5"), row(FLUX, "0.7"), row(FLUX, "0.6"))
    assert await one.usd(FLUX) == "7/10"


async def test_pages_are_followed_with_their_cursor(one: Fed, fal: Fal) -> None:
    pages = [page(row(SDXL, "1"), cursor="a b&c=/+"), page(cursor="2"), page(row(FLUX, "0.5"))]
    fal.says = lambda _: pages.pop(0)
    assert await one.usd(FLUX) == "1/2"
    assert fal.cursors == ["a b&c=/+", "2"]


async def test_whoever_asks_at_once_is_answered_by_one_question_and_the_rest_by_fifty(
    one: Fed, fal: Fal, at_once: None
) -> None:
    names = [f"fal-ai/model-{number}" for number in range(60)]
    fal.prices.update(dict.fromkeys(names, "0.5"))
    fal.service.gate.clear()
    asked = [asyncio.create_task(one.usd(name)) for name in [names[0]] * 20]
    await _arrived(fal, 1)
    asked += [asyncio.create_task(one.usd(name)) for name in names]
    await turns()
    fal.service.gate.set()
    assert set(await asyncio.gather(*asked)) == {"1/2"}
    assert [len(ids) for ids in fal.questions] == [1, 50, 9]
    assert await one.usd(names[5]) == "1/2"
    assert len(fal.questions) == 3


async def test_a_price_that_has_grown_old_is_asked_for_anew_while_it_still_counts(
    one: Fed, fal: Fal, at_once: None
) -> None:
    assert await one.usd(FLUX) == "1/40"
    fal.prices[FLUX] = "0.5"
    one.wall.now += 59
    assert await one.usd(FLUX) == "1/40"
    await turns()
    assert len(fal.questions) == 1
    one.wall.now += 1
    fal.service.gate.clear()
    assert await one.usd(FLUX) == "1/40", "nobody waits for the new one"
    assert one.feed.age_seconds() == 60
    await _arrived(fal, 2)
    fal.service.gate.set()
    await _until(lambda: one.feed.age_seconds() == 0)
    assert await one.usd(FLUX) == "1/2"


async def test_a_price_beyond_its_age_counts_for_nothing_until_fal_has_been_asked(
    one: Fed, fal: Fal, at_once: None
) -> None:
    prices = PriceList(Prices({"default": 0.001}), one.feed)
    assert await one.usd(FLUX) == "1/40"
    fal.says = refusing(500)
    one.wall.now += 3599
    assert await one.usd(FLUX) == "1/40", "fal fails, and the price is not too old yet"
    await _until(lambda: one.feed.failures == 1)
    one.wall.now += 1
    refusal = await _refused(one, FLUX)
    assert FLUX in refusal.detail
    with pytest.raises(Refusal, match="cannot be asked"):
        await prices.price_of(FLUX)  # the default is known to be wrong
    fal.says = None
    fal.prices[FLUX] = "0.03"
    assert await one.usd(FLUX) == "3/100", "the request itself waits for the answer"


async def test_a_price_that_fal_leaves_out_counts_until_it_is_too_old(one: Fed, fal: Fal, at_once: None) -> None:
    prices = PriceList(Prices({"default": 0.001}), one.feed)
    assert await one.usd(FLUX) == "1/40"
    del fal.prices[FLUX]
    one.wall.now += 60
    for _ in range(5):
        assert await one.usd(FLUX) == "1/40"
        await _until(lambda: FLUX.encode() in one.feed._absent)
    assert len(fal.questions) == 2, "that fal names none is remembered"
    one.wall.now += 3540
    assert await one.usd(FLUX) is None
    price = await prices.price_of(FLUX)
    assert price is not None
    assert str(price.usd) == "1/1000", "fal has said that it names none"
    assert len(fal.questions) == 2


async def test_an_old_price_that_fal_leaves_out_is_none(one: Fed, fal: Fal, at_once: None) -> None:
    assert await one.usd(FLUX) == "1/40"
    del fal.prices[FLUX]
    one.wall.now += 3600
    assert await one.usd(FLUX) is None


async def test_a_clock_that_steps_back_makes_prices_old_not_young(one: Fed, fal: Fal) -> None:
    await one.usd(FLUX)
    fal.says = refusing(500)
    one.wall.now -= 7200
    await _refused(one, FLUX)


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
    await _refused(one, FLUX)
    asked = len(fal.questions)
    for _ in range(20):
        await _refused(one, FLUX)
        await _refused(one, SDXL)
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
        await _refused(one, FLUX)
    said = [record.getMessage().rpartition(" in ")[2] for record in caplog.records]
    assert said == [f"{seconds} s" for seconds in (1, 2, 4, 8, 16, 30, 30)]
    fal.says, one.feed._resume_at = None, 0.0
    assert await one.usd(FLUX) == "1/40"
    fal.says = refusing(500)
    await _refused(one, NEW)
    assert caplog.records[-1].getMessage().endswith("in 1 s")


async def test_no_answer_in_time_is_503_and_the_answer_serves_the_next(
    one: Fed, fal: Fal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "WAIT_SECONDS", 0.02)
    fal.service.gate.clear()
    await _refused(one, FLUX)
    fal.service.gate.set()
    await _until(lambda: one.feed.known == 1)
    assert await one.usd(FLUX) == "1/40"
    assert len(fal.questions) == 1


async def test_a_caller_who_leaves_does_not_end_the_question_of_the_others(one: Fed, fal: Fal) -> None:
    fal.service.gate.clear()
    leaver, stayer = asyncio.create_task(one.usd(FLUX)), asyncio.create_task(one.usd(FLUX))
    await _arrived(fal, 1)
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
    await _arrived(fal, 1)
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
        await _arrived(fal, 2)
        asked += [asyncio.create_task(running.usd(name)) for name in (SDXL, FLUX)]
        await turns()
        fal.service.gate.set()
        assert (await asked[-2], await asked[-1]) == ("1/400", "1/40")
        await _until(lambda: len(fal.questions) > 3)
        assert sorted(fal.questions[2]) == [SDXL, FLUX]
        for task in asked:
            task.cancel()
    finally:
        await running.feed.close()


async def test_a_question_that_fal_dislikes_does_not_forget_a_price(one: Fed, fal: Fal, at_once: None) -> None:
    await one.usd(FLUX)
    fal.says = refusing(400)
    one.wall.now += 60
    assert await one.usd(FLUX) == "1/40"
    await _until(lambda: one.feed.failures == 1)
    assert one.feed.known == 1
    assert await one.usd(NEW) is None, "but of one that it never knew, that is an answer"


async def test_after_a_failure_the_next_key_asks_and_no_key_loses_its_turn(
    url: str, fal: Fal, tmp_path: Path, at_once: None
) -> None:
    good = Secret("bbbbbbbb-0000-4000-8000-00000000feed:" + "b2" * 16)
    running = fed(url, tmp_path, FAL_KEY, good)
    pool = running.feed._keys
    first = pool.choose()
    try:
        fal.says = lambda _: Reply(401, b"{}") if fal.keys[-1] == FAL_KEY.reveal() else None
        await _refused(running, FLUX)
        assert await running.usd(FLUX) == "1/40"
        assert fal.keys == [FAL_KEY.reveal(), good.reveal()]
        assert pool.choose() is not first
        assert pool.resting() == 0, "what the platform API says of a key does not set it aside"
    finally:
        await running.feed.close()


async def test_without_a_usable_key_nobody_is_asked(one: Fed, fal: Fal) -> None:
    [key] = one.feed._keys.accepted()
    key.answered(401, b'{"detail":"invalid key credentials"}', from_job=False, paid=True)
    await _refused(one, FLUX)
    assert fal.questions == []


async def test_closing_ends_what_is_under_way(url: str, fal: Fal, tmp_path: Path) -> None:
    running = fed(url, tmp_path)
    fal.service.gate.clear()
    asked = asyncio.create_task(running.usd(FLUX))
    await _arrived(fal, 1)
    await running.feed.close()
    with pytest.raises(Refusal):
        await asked
