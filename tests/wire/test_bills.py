"""fal's bills are read to their end: by pages, by ids, again while fal has trouble, and never as an agreement when they cannot be."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from fal_proxy.platform_api import PlatformError
from support import billing
from support.billing import ADMIN, SINCE, UNTIL, Compare, Fal, event, line
from support.services import Reply

fal, compare = billing.fal, billing.compare


BEFORE = SINCE - timedelta(hours=1)
AFTER = UNTIL + timedelta(hours=1)


async def test_bills_are_read_page_by_page_to_their_end(compare: Compare, fal: Fal) -> None:
    fal.events = [event(f"a{n}", "0.1") for n in range(25)]
    fal.page_events = 10
    outcome = await compare(*[line(f"a{n}", 100_000) for n in range(25)])
    assert outcome.differences == []
    assert [question.get("cursor") for question in fal.questions] == [None, ["10"], ["20"]]
    assert {question["start"][0] for question in fal.questions} == {"2026-06-15T00:00:00.000Z"}


async def test_what_is_missing_is_asked_for_by_its_id_fifty_at_a_time(compare: Compare, fal: Fal) -> None:
    fal.events = [event(f"a{n}", "0.1", BEFORE if n % 2 else AFTER) for n in range(60)]
    outcome = await compare(*[line(f"a{n}", 100_000) for n in range(60)], line("a,b", 5), line("x" * 129, 5))
    assert [each.request_id[:3] for each in outcome.differences] == ["a,b", "xxx"], "what is no id is not asked for"
    assert [len(question["request_id"][0].split(",")) for question in fal.questions[1:]] == [50, 10, 50, 10]


REPEATED = [
    ([Reply(500, b"{}")], [1.0], "an error of fal's"),
    ([Reply(429, b"{}"), Reply(503, b"{}"), Reply(500, b"{}")], [1.0, 2.0, 4.0], "three of them"),
]


@pytest.mark.parametrize(("says", "waited", "why"), REPEATED)
async def test_a_question_is_repeated_while_fal_has_trouble(
    says: list[Reply], waited: list[float], why: str, compare: Any, fal: Fal
) -> None:
    fal.events, fal.says = [event("a", "0.1")], says
    outcome = await compare(line("a", 100_000))
    assert outcome.differences == [], why
    assert compare.waited == waited


GOOD_PAGE = b'{"billing_events":[%s],"next_cursor":null,"has_more":false}'
UNREADABLE = [
    ([Reply(500, b"{}")] * 4, "fal has trouble for good"),
    ([Reply(400, b"{}")], "a question that fal does not understand"),
    ([Reply(200, b"<html>")], "no JSON"),
    ([Reply(200, b"{}")], "no bills"),
    ([Reply(200, b"[" * 100_000)], "a bomb"),
    ([Reply(200, GOOD_PAGE % b'{"request_id":"a"}')], "a bill without an amount"),
    ([Reply(200, GOOD_PAGE % b'{"request_id":"","cost_total":1}')], "a bill for nothing"),
    ([Reply(200, GOOD_PAGE % b'{"cost_total":1}')], "as above"),
    ([Reply(200, GOOD_PAGE % b'{"request_id":"a","cost_total":1e999999}')], "a number that fills the memory"),
    ([Reply(200, GOOD_PAGE % b'{"request_id":"a","cost_total":1e-999999}')], "as above"),
    ([Reply(200, GOOD_PAGE % b'{"request_id":"a","cost_total":"NaN"}')], "no number"),
    ([Reply(200, b'{"billing_events":[],"next_cursor":"again","has_more":true}')] * 2, "pages without end"),
    ([Reply(200, b'{"billing_events":[],"next_cursor":"%s","has_more":true}' % (b"x" * 5000))], "a cursor that fits nowhere"),
]  # fmt: skip


@pytest.mark.parametrize(("says", "why"), UNREADABLE)
async def test_bills_that_cannot_be_read_to_their_end_are_no_agreement(
    says: list[Reply], why: str, compare: Compare, fal: Fal
) -> None:
    fal.says = list(says)
    with pytest.raises(PlatformError) as error:
        await compare()
    assert ADMIN.reveal() not in error.value.detail, why
    assert fal.says == []
