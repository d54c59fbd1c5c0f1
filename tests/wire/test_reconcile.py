"""fal's bills against our lines: every kind of difference, exactly, and told to people and programs alike."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fal_proxy.platform_api.reconcile import Outcome, as_json, as_lines, dollars
from support import billing
from support.billing import FLUX, NOON, SINCE, UNTIL, Compare, Fal, event, line

fal, compare = billing.fal, billing.compare


def _differences(outcome: Outcome) -> list[tuple[str, str, str, str]]:
    return [(each.what, each.request_id, dollars(each.charged), dollars(each.billed)) for each in outcome.differences]


BEFORE = SINCE - timedelta(hours=1)
AFTER = UNTIL + timedelta(hours=1)
TABLE: list[tuple[list[dict[str, Any]], list[str], list[tuple[str, str, str, str]], str]] = [
    ([], [], [], "nothing"),
    ([event("a", "0.025")], [line("a", 25_000)], [], "the same"),
    ([event("a", "0.0249991")], [line("a", 25_000)], [], "we round up to a micro-dollar"),
    ([event("a", "0.024999")], [line("a", 25_000)], [], "exactly the tolerance"),
    ([event("a", "0.0249989")], [line("a", 25_000)], [("amount", "a", "0.025", "0.0249989")], "a hair more"),
    ([event("a", "0.05")], [line("a", 25_000)], [("amount", "a", "0.025", "0.05")], "fal billed more"),
    ([event("a", "0.01")], [line("a", 25_000)], [("amount", "a", "0.025", "0.01")], "fal billed less"),
    ([event("a", "0.025")], [], [("unknown", "a", "0.00", "0.025")], "nobody of ours asked for it"),
    ([], [line("a", 25_000)], [("unbilled", "a", "0.025", "0.00")], "fal never billed it"),
    ([event("a", "0.025")], [line("a", 0)], [("uncharged", "a", "0.00", "0.025")], "we released it"),
    ([event("a", "0.025")], [line("a", None, kind="submit"), line("b", 0)], [("uncharged", "a", "0.00", "0.025")], "a job whose end is in no line"),
    ([event("a", "0")], [], [], "free of charge"),
    ([], [line("a", None)], [], "nobody paid anything"),
    ([event("a", "0.01"), event("a", "0.015")], [line("a", 25_000)], [], "billed in steps"),
    ([event("a", "0.05"), event("a", "-0.025")], [line("a", 25_000)], [], "and corrected"),
    ([event("a", "0.025")], [line("a", None, kind="submit"), line("a", 40_000, kind="result"), line("a", -15_000, kind="settled", plan=None)], [], "charged in steps"),
    ([event("a", "0.025", BEFORE)], [line("a", 25_000)], [], "billed just before the window, fetched in it"),
    ([event("a", "0.025", AFTER)], [line("a", 25_000)], [], "billed just after it"),
    ([event("a", "0.025")], [line("a", 25_000, BEFORE)], [], "charged before the window, billed in it"),
    ([event("a", "0.025")], [line("a", 25_000, AFTER)], [], "charged after it"),
    ([event("a", "0.5", BEFORE)], [], [], "before the window"),
    ([event("a", "0.5", UNTIL)], [], [], "the end is not part of it"),
    ([], [line("a", 25_000, BEFORE)], [], "charged before the window, and not billed in it"),
    ([event("a", None, cost_estimate_nano_usd=25_000_000)], [line("a", 25_000)], [], "in billionths"),
    ([event("a", None, output_units=2, unit_price=Decimal("0.0125"))], [line("a", 25_000)], [], "as units and price"),
    ([event("a", "0.045", cost_subtotal=0.05, cost_discount=0.005)], [line("a", 50_000)], [("amount", "a", "0.05", "0.045")], "with a discount that we do not know"),
    ([event("a", "0.3")], [line("a", 300_000, decision="upstream_outcome_unknown")], [], "a run whose outcome we did not see"),
    ([event("a", "0.3")], [line("a", None, decision="unknown_request", kind="result")], [("unknown", "a", "0.00", "0.30")], "somebody asked for a stranger's job"),
    ([event("a", "0.1"), event("b", "0.2")], [line("b", 200_000), line("a", 100_000)], [], "in any order"),
]  # fmt: skip


@pytest.mark.parametrize(("events", "lines", "differences", "why"), TABLE)
async def test_every_difference_is_named_and_nothing_else_is(
    events: list[dict[str, Any]],
    lines: list[str],
    differences: list[tuple[str, str, str, str]],
    why: str,
    compare: Compare,
    fal: Fal,
) -> None:
    fal.events = events
    outcome = await compare(*lines)
    assert _differences(outcome) == differences, why
    assert as_json(outcome)["agrees"] is (not differences)
    assert outcome.pending == 0


NOW = NOON + timedelta(minutes=30)
YOUNG: list[tuple[list[dict[str, Any]], list[str], int, str]] = [
    ([], [line("a", 25_000)], 1, "fal's events are late"),
    ([event("a", "0.025")], [], 1, "a run's line is written at its end"),
    ([event("a", "0.025")], [line("a", None, kind="submit"), line("b", 0)], 1, "nobody has fetched it yet"),
    ([event("a", "0.05")], [line("a", 25_000)], 0, "two amounts are two amounts"),
    ([], [line("a", 25_000, NOON - timedelta(hours=2))], 0, "long enough"),
]


@pytest.mark.parametrize(("events", "lines", "pending", "why"), YOUNG)
async def test_what_is_young_is_no_difference_yet(
    events: list[dict[str, Any]], lines: list[str], pending: int, why: str, compare: Compare, fal: Fal
) -> None:
    fal.events = events
    outcome = await compare(*lines, now=NOW, until=NOW)
    assert (outcome.pending, len(outcome.differences)) == (pending, 1 - pending), why
    later = await compare(*lines, now=NOW + timedelta(hours=2), until=NOW)
    assert (later.pending, len(later.differences)) == (0, 1)


UNITS = [
    ("3", 3, 1, 0, "the same"),
    ("3.0", 3, 1, 0, "in another spelling"),
    ("3", 4, 0, 1, "other units"),
    (None, 4, 1, 0, "no line knows them"),
    ("3", None, 1, 0, "no event does"),
    ("x", 4, 1, 0, "no number"),
]


@pytest.mark.parametrize(("ours", "theirs", "uncounted", "differ", "why"), UNITS)
async def test_where_nobody_counts_money_units_are_compared(
    ours: str | None, theirs: int | None, uncounted: int, differ: int, why: str, compare: Compare, fal: Fal
) -> None:
    fal.events = [event("a", "0.3", output_units=theirs), event("b", "0.1")]
    outcome = await compare(line("a", None, plan="free", units=ours), line("b", 100_000))
    assert (outcome.uncounted, len(outcome.differences)) == (uncounted, differ), why
    assert [each.what for each in outcome.differences] == ["units"] * differ


async def test_sums_are_exact_and_by_endpoint(compare: Compare, fal: Fal) -> None:
    fal.events = [event(f"a{n}", "0.1") for n in range(30)] + [event("b", "0.0000001", endpoint="x/y")]
    outcome = await compare(
        *[line(f"a{n}", 100_000, endpoint="fal-ai/flux") for n in range(30)], line("c", 7, endpoint="x/z")
    )
    told = as_json(outcome)
    assert told["total"] == {"requests": 32, "charged": "3.000007", "billed": "3.0000001"}
    assert told["endpoints"] == {
        "x/z": {"requests": 1, "charged": "0.000007", "billed": "0.00"},
        "x/y": {"requests": 1, "charged": "0.00", "billed": "0.0000001"},
        FLUX: {"requests": 30, "charged": "3.00", "billed": "3.00"},
    }
    assert [(each["what"], each["charged"], each["billed"]) for each in told["differences"]] == [
        ("unknown", "0.00", "0.0000001"),
        ("unbilled", "0.000007", "0.00"),
    ]
    json.dumps(told)


async def test_charges_without_a_request_of_fals_are_told_apart(compare: Compare) -> None:
    outcome = await compare(
        line(None, 60_000, kind="realtime"),
        line(None, 60_000, kind="realtime"),
        line(None, None),
        line(None, 5, endpoint=None),
    )
    assert outcome.differences == []
    assert as_json(outcome)["unnamed"] == {FLUX: "0.12", "run": "0.000005"}


async def test_what_is_no_access_line_is_counted_and_passed_over(compare: Compare, fal: Fal) -> None:
    fal.events = [event("a", "0.1")]
    broken = ["listening on http://127.0.0.1:8080", "", "{}", "[" * 100_000, '{"ts": 1}', line("a", 1)[:-5]]
    outcome = await compare(
        *broken, line("a", 100_000), json.dumps({"ts": NOON.isoformat(), "kind": "run", "decision": "admitted"})
    )
    assert (outcome.differences, outcome.skipped, outcome.lines) == ([], 6, 2)


async def test_nothing_that_fal_names_can_steer_a_terminal(compare: Compare, fal: Fal) -> None:
    fal.events = [event("\x1b[2Ja", "0.1", endpoint="\u202ex\n")]
    told = list(as_lines(await compare()))
    assert told[0].startswith("unknown: \N{REPLACEMENT CHARACTER}[2Ja ")
    assert all(text.isprintable() for text in told)
    assert told[-1] == "the books differ in 1 requests, to $0.000001 a request"


async def test_many_differences_are_cut_short_for_people_only(compare: Compare, fal: Fal) -> None:
    fal.events = [event(f"a{n}", "0.1") for n in range(105)]
    outcome = await compare()
    assert "… and 5 more (--json shows all)" in list(as_lines(outcome))
    assert len(as_json(outcome)["differences"]) == 105


@given(st.decimals(min_value=-(10**9), max_value=10**9, places=12))
def test_dollars_are_written_exactly(amount: Decimal) -> None:
    text = dollars(Fraction(amount))
    assert Fraction(text) == Fraction(amount)
    assert len(text.partition(".")[2]) >= 2
