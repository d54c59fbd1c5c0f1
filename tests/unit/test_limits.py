"""What a plan grants: the grammars of rates and budgets, and when periods end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fal_proxy.admission.limits import compile_limits, parse_budget
from fal_proxy.admission.rates import RatePerWindow, parse_rates
from fal_proxy.settings import Plan
from fal_proxy.stores import Period
from fal_proxy.stores.periods import Calendar, label, resets_at

PERIODS: tuple[Period, ...] = get_args(Period)

RATES = [
    ("20/minute; 200/day", ((20, 60), (200, 86400)), "the default"),
    ("5 per 2 hour", ((5, 7200),), "several of a window"),
    ("1/second", ((1, 1),), "the shortest"),
    ("", (), "no limit at all"),
]


@pytest.mark.parametrize(("text", "rates", "reason"), RATES, ids=[row[2] for row in RATES])
def test_rates_have_the_grammar_of_limits(text: str, rates: tuple[tuple[int, int], ...], reason: str) -> None:
    assert tuple((rate.limit, rate.window_seconds) for rate in parse_rates(text)) == rates, reason


def test_rate_keeps_the_operators_own_words() -> None:
    assert parse_rates("20 per minute") == (RatePerWindow(20, 60, "20/minute"),)


@pytest.mark.parametrize("text", ["x", "0/minute", "1/fortnight", ";;", "-1/day", "1.5/day", "20/minute; x"])
def test_malformed_rate_is_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"no list of rates|admits at least 1"):
        parse_rates(text)


def test_concurrency_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        compile_limits(Plan(concurrent=0))


def test_no_budget_is_no_budget() -> None:
    assert parse_budget("") is None


BUDGETS = [
    ("1.00/day", (1_000_000, "day")),
    ("50/month", (50_000_000, "month")),
    ("0/total", (0, "total")),
    ("0.000001/hour", (1, "hour")),
    ("999999999.999999/week", (999_999_999_999_999, "week")),
]


@pytest.mark.parametrize(("text", "budget"), BUDGETS)
def test_budget_is_an_amount_per_period(text: str, budget: tuple[int, str]) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    "text",
    [
        "1",
        "1/",
        "/day",
        "1/year",
        "1/days",
        "-1/day",
        "1e3/day",
        "$1/day",
        "1 / day",
        "1,5/day",
        "1/Day",
        "nan/day",
        "1.0000001/day",
        "1/day\n",
        "1/day/day",
        "1.00/day; 2/month",
        "1234567890/day",
        ".5/day",
        "\u0661/day",
    ],
)
def test_malformed_budget_is_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no budget such as 1\.00/day"):
        parse_budget(text)


def _at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


ENDS: list[tuple[Period, str, str, str]] = [
    ("hour", "2025-12-31T23:59:59.999", "2026-01-01T00:00:00", "an hour over new year"),
    ("day", "2024-02-29T00:00:00", "2024-03-01T00:00:00", "a leap day, from its first second"),
    ("week", "2026-01-04T23:59:59", "2026-01-05T00:00:00", "Sunday is the last day"),
    ("week", "2026-01-05T00:00:00", "2026-01-12T00:00:00", "Monday is the first"),
    ("week", "2025-12-31T12:00:00", "2026-01-05T00:00:00", "a week over new year is one"),
    ("month", "2025-12-01T00:00:00", "2026-01-01T00:00:00", "December"),
    ("month", "2024-02-29T23:59:59.5", "2024-03-01T00:00:00", "February of a leap year"),
    ("month", "2026-11-30T23:59:59", "2026-12-01T00:00:00", "November"),
]


@pytest.mark.parametrize(("period", "now", "end", "reason"), ENDS, ids=[row[3] for row in ENDS])
def test_period_ends_in_utc(period: Period, now: str, end: str, reason: str) -> None:
    assert resets_at(period, _at(now)) == _at(end), reason


@given(st.sampled_from(PERIODS[:-1]), st.floats(0, 10**10))
def test_the_end_of_a_period_is_the_first_moment_of_the_next(period: Period, now: float) -> None:
    end = resets_at(period, now)
    assert end is not None
    assert now < end <= now + timedelta(days=31).total_seconds()
    assert label(period, end) != label(period, now)
    assert label(period, end - 1) == label(period, now)


def test_total_never_ends() -> None:
    assert (label("total", 0), resets_at("total", 0)) == (label("total", 10**10), resets_at("total", 10**10))


@given(st.lists(st.floats(0, 10**6), min_size=1, max_size=20), st.sampled_from(PERIODS))
def test_calendar_says_what_the_functions_say(steps: list[float], period: Period) -> None:
    calendar, now = Calendar(), 1_790_000_000.0
    for step in steps:
        now += step
        assert calendar.at(period, now) == (label(period, now), resets_at(period, now))
