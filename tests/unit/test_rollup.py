"""What is kept of the last hour and day: exact totals, bounded names, minutes that become hours."""

from __future__ import annotations

import csv
import io
import sys

import pytest

from fal_proxy.admin.usage import SHOWN, as_csv, summary, tally_of
from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller, Exchange, Kind, shown_of
from fal_proxy.telemetry.rollup import MOST_CALLERS, MOST_CELLS, MOST_NAMES, NOBODY, OTHER, Rollup, Span, Tally, total

NOON = 1_794_225_600.0


class Day:
    """A rollup and its clock."""

    def __init__(self) -> None:
        self.now = NOON
        self.rollup = Rollup(lambda: self.now)

    def run(
        self, caller: str = "key::ada", endpoint: str = "fal-ai/flux", microusd: int | None = 5, refused: str = ""
    ) -> None:
        """Let one run end."""
        exchange = Exchange(lambda: 0.0)
        exchange.caller = Caller(caller, "key", "default", ambient=False)
        exchange.plan, exchange.kind, exchange.endpoint_id = "default", Kind.RUN, endpoint
        exchange.cost_microusd = microusd
        if refused:
            exchange.refused(Refusal(refused, "no"))
        self.rollup.count(exchange)


def test_minute_is_counted_by_itself_and_in_its_hour() -> None:
    day = Day()
    day.run()
    day.now += 60
    day.run(microusd=7)
    day.run(refused="rate_limited", microusd=None)
    assert [span.total.microusd for span in day.rollup.minutes()[-3:]] == [0, 5, 7]
    hour = day.rollup.hours()[-1]
    assert (hour.start, hour.total) == (NOON, Tally(requests=3, paid=2, refused=1, microusd=12))
    assert hour.refusals == {"rate_limited": 1}
    assert tally_of(hour, shown_of("key::ada"))["microusd"] == 12


def test_spans_have_no_gaps_and_end_after_an_hour_and_a_day() -> None:
    day = Day()
    day.run()
    day.now += 59 * 60
    assert (len(day.rollup.minutes()), day.rollup.minutes()[0].total.requests) == (60, 1)
    day.now += 60
    assert sum(span.total.requests for span in day.rollup.minutes()) == 0
    starts = [span.start for span in day.rollup.hours()]
    assert starts == [NOON + 3600 * (at - 22) for at in range(24)]
    assert day.rollup.hours()[-2].total.requests == 1
    day.now += 23 * 3600
    assert total(day.rollup.hours()).total == Tally()


def test_running_hour_holds_every_minute_once() -> None:
    day = Day()
    for minute in range(90):
        day.now = NOON + 60 * minute
        day.run()
        assert total(day.rollup.hours()).total.requests == minute + 1
    assert [span.total.requests for span in day.rollup.hours()[-2:]] == [60, 30]


def test_clock_that_steps_back_loses_nothing() -> None:
    day = Day()
    day.run()
    day.now -= 3600
    day.run()
    assert total(day.rollup.hours()).total.requests == 2
    day.now += 7200
    day.run()
    assert total(day.rollup.hours()).total.requests == 3


def test_flood_of_names_is_bounded_and_those_that_cost_most_stay() -> None:
    day = Day()
    for at in range(10 * MOST_NAMES):
        day.run(f"key::{at}", f"app/{at}", microusd=0)
        if at % 10 == 0:
            day.run("key::whale", "app/whale", microusd=100)
    day.now += 60
    for span in (day.rollup.minutes()[-2], day.rollup.hours()[-1]):
        assert len(span.callers) == len(span.endpoints) == MOST_NAMES + 1
        assert span.callers[shown_of("key::whale")].microusd == 100 * MOST_NAMES
        for names in (span.callers, span.endpoints, span.plans):
            assert sum(tally.requests for tally in names.values()) == span.total.requests == 11 * MOST_NAMES
            assert sum(tally.microusd for tally in names.values()) == span.total.microusd


def test_minute_of_a_flood_is_bounded_while_it_lasts() -> None:
    day = Day()
    for at in range(20 * MOST_NAMES):
        day.run(f"key::{at}", f"app/{at}")
        assert len(day.rollup._cells) <= MOST_CELLS
        minute = day.rollup._minute
        assert max(len(minute.callers), len(minute.endpoints)) <= 2 * MOST_NAMES
    assert day.rollup.minutes()[-1].total.requests == 20 * MOST_NAMES


def test_day_of_floods_stays_small() -> None:
    day = Day()
    for minute in range(26 * 60):
        day.now = NOON + 60 * minute
        for at in range(20):
            day.run(f"key::{minute}-{at}", f"app/{minute}-{at}" + "x" * 4000)
    spans = [*day.rollup.minutes(), *day.rollup.hours()]
    assert len(spans) == 84
    names = [name for span in spans for group in (span.callers, span.endpoints) for name in group]
    assert len(names) < 84 * 2 * (MOST_NAMES + 2)
    assert sum(map(sys.getsizeof, names)) < 3_000_000


def test_callers_are_known_by_what_they_are_shown_as_until_too_many_came() -> None:
    day = Day()
    day.run("key::first")
    for at in range(MOST_CALLERS - 1):
        day.run(f"key::{at}")
    assert (found := day.rollup.find(shown_of("key::first"))) is not None
    assert found.id == "key::first"
    day.run("key::first")
    day.run("key::one more")
    assert day.rollup.find(shown_of("key::first")) is not None, "who asks stays"
    assert day.rollup.find(shown_of("key::0")) is None


def test_preflights_are_nobodys_requests_and_unknown_callers_are_named_so() -> None:
    day = Day()
    preflight, stranger = Exchange(), Exchange()
    preflight.preflight = True
    stranger.refused(Refusal("unidentified", "no"))
    for exchange in (preflight, stranger):
        day.rollup.count(exchange)
    span = day.rollup.minutes()[-1]
    assert span.total == Tally(requests=1, refused=1)
    assert set(span.callers) == set(span.plans) == set(span.endpoints) == {NOBODY}


def test_charge_that_is_lowered_later_is_taken_off() -> None:
    day = Day()
    day.run(microusd=40_000)
    day.run(microusd=-10_000)
    assert day.rollup.minutes()[-1].total.microusd == 30_000


def test_summary_shows_the_first_names_and_the_rest_as_one() -> None:
    day = Day()
    for at in range(SHOWN + 5):
        day.run(endpoint=f"app/{at:02}", microusd=at)
    rows = summary(day.rollup.minutes())["endpoints"]
    assert [row["name"] for row in rows] == [*(f"app/{at:02}" for at in range(SHOWN + 4, 4, -1)), OTHER]
    assert (rows[-1]["requests"], rows[-1]["microusd"]) == (5, 10)


FORMULAS = [
    ("=1+1", "a formula"),
    ("+1", "a sign"),
    ("-1", "another"),
    ("@SUM(A1)", "an old spreadsheet's function"),
    ("\t=1", "behind a tab"),
    (" =1", "behind a space"),
    ("|calc", "a command of old"),
    ("\uff1d1", "a full-width sign"),
]


@pytest.mark.parametrize(("name", "why"), FORMULAS)
def test_no_cell_begins_a_formula(name: str, why: str) -> None:
    span = Span(NOON)
    span.total.requests = 1
    span.endpoints[name] = Tally(requests=1, microusd=-1_500_000)
    [_, row] = csv.DictReader(io.StringIO(as_csv([span]).decode()))
    assert row["name"].startswith("'"), why
    assert (row["hour"], row["by"], row["spend_usd"]) == ("2026-11-09T12:00Z", "endpoint", "-1.500000")


@pytest.mark.parametrize("name", ['a"b', "a,b", "a\r\nb;=1", "\u202egpj.exe"])
def test_name_stays_one_cell_of_one_row(name: str) -> None:
    span = Span(NOON)
    span.total.requests = 1
    span.endpoints[name] = Tally(requests=1)
    rows = list(csv.reader(io.StringIO(as_csv([span]).decode())))
    assert [len(row) for row in rows] == [7, 7, 7]
    assert rows[2][2].isprintable()
