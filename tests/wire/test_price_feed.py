"""Prices that fal names: exact, fetched once, kept while fresh, and never a way to make us ask without end."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from pathlib import Path

import pytest

from fal_proxy.errors import Refusal
from fal_proxy.platform_api.price_list import PriceList
from fal_proxy.policy.pricing import Prices
from support import feeding
from support.feeding import FLUX, NEW, SDXL, Fed, fed, refused, until
from support.peers import turns
from support.price_list import Fal, page, refusing, row

fal, url, one, at_once = feeding.fal, feeding.url, feeding.one, feeding.at_once

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
    await until(one.file.path.exists)
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
    await feeding.asked(fal, 2)
    fal.service.gate.set()
    await until(lambda: one.feed.age_seconds() == 0)
    assert await one.usd(FLUX) == "1/2"


async def test_a_price_beyond_its_age_counts_for_nothing_until_fal_has_been_asked(
    one: Fed, fal: Fal, at_once: None
) -> None:
    prices = PriceList(Prices({"default": 0.001}), one.feed)
    assert await one.usd(FLUX) == "1/40"
    fal.says = refusing(500)
    one.wall.now += 3599
    assert await one.usd(FLUX) == "1/40", "fal fails, and the price is not too old yet"
    await until(lambda: one.feed.failures == 1)
    one.wall.now += 1
    refusal = await refused(one, FLUX)
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
        await until(lambda: FLUX.encode() in one.feed._absent)
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
    await refused(one, FLUX)


async def test_a_question_that_fal_dislikes_does_not_forget_a_price(one: Fed, fal: Fal, at_once: None) -> None:
    await one.usd(FLUX)
    fal.says = refusing(400)
    one.wall.now += 60
    assert await one.usd(FLUX) == "1/40"
    await until(lambda: one.feed.failures == 1)
    assert one.feed.known == 1
    assert await one.usd(NEW) is None, "but of one that it never knew, that is an answer"
