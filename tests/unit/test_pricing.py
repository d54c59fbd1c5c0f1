"""Prices, reservations and charges: money is exact and rounded up once."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fal_proxy.errors import Refusal
from fal_proxy.headers import billable_units
from fal_proxy.policy.pricing import (
    Price,
    Prices,
    charge_for,
    faults,
    reservation_microusd,
)

LIST = Prices(
    {
        "default": 0.05,
        "fal-ai/flux/dev": 0.025,
        "fal-ai/**": 0.1,
        "fal-ai/flux/**": {"usd": 0.03, "reserve_units": 4, "units_from": "num_images"},
        "fal-ai/*": 7,
        "a/b+c": 1,
    }
)

FOUND = [
    ("fal-ai/flux/dev", "0.025", "the exact id before every glob"),
    ("fal-ai/flux/schnell", "0.03", "the longest glob"),
    ("fal-ai/flux", "0.03", "** is also nothing, and the longer glob wins over *"),
    ("fal-ai/whisper", "0.1", "fal-ai/** is longer than fal-ai/*"),
    ("me/app", "0.05", "the default"),
    ("FAL-AI/flux/DEV", "0.025", "no other case buys another price"),
    ("a/b%2Bc", "1", "nor does a needless escape"),
]


@pytest.mark.parametrize(("endpoint_id", "usd", "reason"), FOUND, ids=[row[2] for row in FOUND])
def test_price_is_found_by_exact_id_then_longest_glob_then_default(endpoint_id: str, usd: str, reason: str) -> None:
    price = LIST.price_of(endpoint_id)
    assert price is not None
    assert price.usd == Fraction(usd), reason


def test_without_a_default_an_unlisted_endpoint_has_no_price() -> None:
    assert Prices({"a/b": 0}).price_of("a/c") is None
    assert not Prices({"a/b": 0}).needs_input("a/c")
    assert Prices({}).price_of("a/b") is None


def test_input_is_needed_exactly_where_units_come_from_it() -> None:
    assert LIST.needs_input("fal-ai/flux/schnell")
    assert not LIST.needs_input("fal-ai/flux/dev")
    assert not LIST.needs_input("me/app")


MALFORMED: list[tuple[dict[str, object], str, str]] = [
    ({"a/b": -0.01}, "a/b: must be USD per unit", "a negative price"),
    ({"a/b": float("nan")}, "a/b: must be USD per unit", "no number"),
    ({"a/b": float("inf")}, "a/b: must be USD per unit", "no finite number"),
    ({"a/b": Decimal("NaN")}, "a/b: must be USD per unit", "no number, exactly"),
    ({"a/b": True}, "a/b: must be USD per unit", "a boolean"),
    ({"a/b": "0.05"}, "a/b: must be USD per unit", "a text"),
    ({"a/b": {}}, "a/b: usd: must be a number", "a table without a price"),
    ({"a/b": {"usd": -1}}, "a/b: usd: must be a number", "a negative price in a table"),
    ({"a/b": {"usd": 1, "reserve_units": -1}}, "reserve_units: must be a number", "a negative reservation"),
    ({"a/b": {"usd": 1, "units_from": 3}}, "units_from: must name", "a field that is no name"),
    ({"a/b": {"usd": 1, "units_from": "a.b"}}, "units_from: must name", "a path"),
    ({"a/b": {"usd": 1, "price": 1}}, "price: no such key", "an unknown key"),
    ({"/a/b": 1}, "is no endpoint glob", "a leading slash"),
    ({"a/b**": 1}, "** must be a whole segment", "half a wildcard"),
    ({"a/b": 1, "A/b": 2}, "A/b: is a/b in another spelling", "two prices for one endpoint"),
]


@pytest.mark.parametrize(("prices", "fault", "reason"), MALFORMED, ids=[row[2] for row in MALFORMED])
def test_malformed_price_is_named_and_never_compiled(prices: dict[str, object], fault: str, reason: str) -> None:
    assert [found for found in faults(prices) if fault in found], (reason, list(faults(prices)))
    with pytest.raises(ValueError, match=r"."):
        Prices(prices)


RESERVED: list[tuple[dict[str, Any], int, str]] = [
    ({}, 120_000, "absent: as many as reserve_units says"),
    ({"num_images": 2}, 60_000, "as many as asked"),
    ({"num_images": 0}, 0, "none"),
    ({"num_images": 10_000}, 300_000_000, "the most that may be asked"),
    ({"num_images": 1.5}, 45_000, "fractions of a unit"),
    ({"num_images": 0.1}, 3_000, "a fraction means what it spells"),
    ({"num_images": 1e-9}, 1, "the least costs a micro-dollar"),
]


@pytest.mark.parametrize(("sent", "microusd", "reason"), RESERVED, ids=[row[2] for row in RESERVED])
def test_reservation_is_price_times_units(sent: dict[str, Any], microusd: int, reason: str) -> None:
    price = LIST.price_of("fal-ai/flux/x")
    assert price is not None
    assert reservation_microusd(price, sent) == microusd, reason


@pytest.mark.parametrize("units", ["2", True, None, [], {}, -1, -0.5, 10_001, 10_000.5, 10**30, math.nan, math.inf])
def test_units_that_are_no_number_in_range_are_refused(units: object) -> None:
    price = Price(Fraction(1), units_from="n")
    with pytest.raises(Refusal, match="n must be a number from 0 to 10000") as caught:
        reservation_microusd(price, {"n": units})
    assert caught.value.error_type == "input_denied"


def test_price_without_units_from_ignores_the_input() -> None:
    assert reservation_microusd(Price(Fraction(1, 40)), {"num_images": "many"}) == 25_000


UNITS: list[tuple[list[bytes], str | None, str]] = [
    ([b"1"], "1", "an integer"),
    ([b"0"], "0", "nothing"),
    ([b"2.50000001"], "2.50000001", "eight places"),
    ([b"999999999999.99999999"], "999999999999.99999999", "the largest"),
    ([], None, "absent"),
    ([b"1", b"1"], None, "twice, even equally"),
    ([b"1, 2"], None, "a list"),
    ([b""], None, "empty"),
    ([b"-1"], None, "negative"),
    ([b"+1"], None, "a sign"),
    ([b"1e3"], None, "an exponent"),
    ([b".5"], None, "nothing before the point"),
    ([b"1."], None, "nothing behind the point"),
    ([b"1.123456789"], None, "nine places"),
    ([b"1234567890123"], None, "thirteen digits"),
    ([b" 1"], None, "a blank"),
    ([b"1\n"], None, "a line end"),
    (["\u0661".encode()], None, "digits of another script"),
    ([b"NaN"], None, "no number"),
]


@pytest.mark.parametrize(("lines", "units", "reason"), UNITS, ids=[row[2] for row in UNITS])
def test_units_header_counts_only_as_one_plain_line(lines: list[bytes], units: str | None, reason: str) -> None:
    assert billable_units(list(lines)) == units, reason


CHARGED = [
    ("0.025", "1", 25_000, "an ordinary price"),
    ("0.0000001", "1", 1, "less than a micro-dollar costs one"),
    ("0.0000001", "10", 1, "ten tenths are exactly one"),
    ("0.0000001", "11", 2, "rounded up once, behind the multiplication"),
    ("0.1", "3", 300_000, "no binary dust: 0.1 * 3 is not 0.30000000000000004"),
    (
        "0.123456789",
        "999999999999.99999999",
        123_456_789_000_000_000,
        "more digits than a default decimal context holds",
    ),
    ("0", "5", 0, "free"),
]


@pytest.mark.parametrize(("usd", "units", "microusd", "reason"), CHARGED, ids=[row[3] for row in CHARGED])
def test_charge_is_exact(usd: str, units: str, microusd: int, reason: str) -> None:
    assert charge_for(usd, units) == microusd, reason


AMOUNTS = st.decimals(0, 1000, places=9).map(Fraction)
BILLED = st.decimals(0, 10**6, places=8)


@given(AMOUNTS, BILLED)
def test_charge_is_never_below_the_price_and_less_than_a_micro_dollar_above(usd: Fraction, units: Decimal) -> None:
    exact = usd * Fraction(units) * 1_000_000
    assert exact <= charge_for(str(usd), str(units)) < exact + 1


@given(AMOUNTS, AMOUNTS, BILLED, BILLED)
def test_charge_grows_with_price_and_units(usd: Fraction, more: Fraction, units: Decimal, further: Decimal) -> None:
    assert charge_for(str(usd), str(units)) <= charge_for(str(usd + more), str(units + further))


@given(st.floats(0, 10_000))
def test_reservation_equals_the_charge_for_the_same_units(units: float) -> None:
    price = Price(Fraction(1, 40), units_from="n")
    assert reservation_microusd(price, {"n": units}) == charge_for("1/40", str(Decimal(repr(units))))


@given(st.decimals(0, 1000, places=6))
def test_price_is_what_the_settings_spell(usd: Decimal) -> None:
    for spelled in (float(str(usd)), usd):
        price = Prices({"default": spelled}).price_of("a/b")
        assert price is not None
        assert price.usd == Fraction(usd)
