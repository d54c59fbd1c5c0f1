"""What both stores promise about request ids: whose they are, when their jobs are asked about, how they end."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from contract.bench import APP, Bench
from fal_proxy.stores import Budget, Concurrency, Denial, Outcome, Owns, Rate, state

BUDGET = Budget("caller", 1000, "day")
SLOT = Concurrency("caller", 9)


async def opened(bench: Bench, number: int, *owners: str) -> None:
    """Admit and submit one job of 40 micro-dollars."""
    verdict = await bench.admit(concurrency=(SLOT,), budgets=(BUDGET,), amount=40, entry_id=f"entry-{number}")
    assert verdict.denied is None
    await bench.submit(number, *(owners or ("me",)))


async def asked(bench: Bench, limit: int = 100) -> list[tuple[str, int]]:
    """Return what the settler is told to ask about."""
    return [(due.record.request_id, due.attempt) for due in await bench.store.due(limit)]


class Ownership(NamedTuple):
    """A question about request-1, and whether it is answered with yes."""

    reason: str
    owners: tuple[str, ...]
    question: Owns
    owned: bool


def owns(*identities: str, app: str = APP, anonymous: bool = False, request_id: str = "request-1") -> Owns:
    """Ask whether `identities` own a request id."""
    return Owns(request_id, app, frozenset(identities), anonymous)


OWNERSHIP = [
    Ownership("the submitter", ("me",), owns("me"), True),
    Ownership("one of the identities that were proven", ("me", "my network"), owns("other", "my network"), True),
    Ownership("somebody else", ("me",), owns("other"), False),
    Ownership("nobody", ("me",), owns(), False),
    Ownership("an anonymous stranger", ("me",), owns("other", anonymous=True), False),
    Ownership("the app as fal named it", ("me",), owns("me", app="fal-ai/other-name"), True),
    Ownership("another app", ("me",), owns("me", app="fal-ai/wrong"), False),
    Ownership("owned by its id alone, anonymous", (), owns("any", anonymous=True), True),
    Ownership("owned by its id alone, under another app", (), owns(app="fal-ai/wrong", anonymous=True), False),
    Ownership("owned by its id alone, not anonymous", (), owns("any"), False),
    Ownership("an id that nobody submitted", ("me",), owns("me", request_id="request-2"), False),
]


@pytest.mark.parametrize("case", OWNERSHIP, ids=lambda case: case.reason.replace(" ", "-"))
async def test_request_id_answers_only_to_its_owner_under_its_app(case: Ownership, bench: Bench) -> None:
    record = await bench.submit(1, *case.owners, apps=(APP, "fal-ai/other-name"))
    read = Rate("reader", 5, 60)
    verdict = await bench.admit(owns=case.question, rates=(read,), entry_id="")
    assert verdict.denied is (None if case.owned else Denial.UNKNOWN_REQUEST)
    assert verdict.record == (record if case.owned else None)
    assert (await bench.standing((read,))).rates[0].remaining == (4 if case.owned else 5)


async def test_record_is_found_as_it_was_submitted_and_a_second_submission_changes_nothing(bench: Bench) -> None:
    record = await bench.submit(1, "me", "my network")
    await bench.submit(1, "thief")
    assert await bench.store.find("request-1") == record
    assert await bench.store.find("request-2") is None


async def test_completed_frees_the_slot_and_keeps_the_money(bench: Bench) -> None:
    await opened(bench, 1)
    assert await bench.in_use("caller") == (1,)
    for _ in range(2):
        await bench.store.completed("request-1")
        assert await bench.in_use("caller") == (0,)
    await bench.store.completed("nobody's")
    record = await bench.store.find("request-1")
    assert record is not None
    assert record.completed
    assert (await bench.usage(BUDGET))[0][:2] == (0, 40)
    await bench.store.settle("entry-1", Outcome.BILLED, 30)
    assert (await bench.usage(BUDGET))[0][:2] == (30, 0)
    assert await bench.in_use("caller") == (0,)


async def test_settler_asks_after_10_seconds_and_then_ever_more_rarely(bench: Bench) -> None:
    await opened(bench, 1)
    bench.now += 9.99
    assert await asked(bench) == []
    for attempt, pause in enumerate([0.01, 20, 40, 60, 60]):
        bench.now += pause - 0.005
        assert await asked(bench) == []
        bench.now += 0.005
        assert await asked(bench) == [("request-1", attempt)]
        assert await asked(bench) == []


async def test_poll_of_the_owner_postpones_the_settler_and_begins_its_patience_anew(bench: Bench) -> None:
    await opened(bench, 1)
    bench.now += 40
    assert await asked(bench) == [("request-1", 0)]
    bench.now += 20
    assert await asked(bench) == [("request-1", 1)]
    await bench.admit(owns=owns("me"), entry_id="")
    bench.now += 9.9
    assert await asked(bench) == []
    bench.now += 0.1
    assert await asked(bench) == [("request-1", 0)]


async def test_poll_of_a_stranger_postpones_nothing(bench: Bench) -> None:
    await opened(bench, 1)
    bench.now += 10
    await bench.admit(owns=owns("stranger"), entry_id="")
    assert await asked(bench) == [("request-1", 0)]


async def test_settler_claims_at_most_what_it_asked_for_and_nothing_twice(bench: Bench) -> None:
    for number in range(5):
        await opened(bench, number)
    bench.now += 10
    claimed = await asked(bench, 2) + await asked(bench, 2) + await asked(bench, 2)
    assert sorted(claimed) == [(f"request-{number}", 0) for number in range(5)]


async def test_settler_forgets_what_is_settled(bench: Bench) -> None:
    await opened(bench, 1)
    await opened(bench, 2)
    await bench.store.settle("entry-1", Outcome.RELEASED)
    bench.now += 10
    assert await asked(bench) == [("request-2", 0)]


async def test_hastened_job_is_asked_about_at_once_and_soon_again(bench: Bench) -> None:
    await opened(bench, 1)
    await opened(bench, 2)
    bench.now += 10
    assert len(await asked(bench)) == 2
    bench.now += 20
    assert len(await asked(bench)) == 2
    bench.now += 1
    await bench.store.hasten("request-1")
    await bench.store.hasten("request-1")
    await bench.store.hasten("nobody's")
    assert await asked(bench) == [("request-1", 0)]
    assert await asked(bench) == []
    bench.now += 20
    assert await asked(bench) == [("request-1", 1)]


async def test_hastening_does_not_ask_about_what_was_billed_or_released(bench: Bench) -> None:
    for number, outcome in enumerate((Outcome.BILLED, Outcome.RELEASED)):
        await opened(bench, number)
        await bench.store.settle(f"entry-{number}", outcome, 7)
        await bench.store.hasten(f"request-{number}")
    await bench.submit(5, "me", entry_id="free")
    await bench.store.hasten("request-5")
    bench.now += 60
    assert await asked(bench) == []


async def test_job_that_ends_after_its_lease_is_hastened_a_few_times_or_until_it_is_billed(bench: Bench) -> None:
    for number in (1, 2):
        await opened(bench, number)
    bench.now += 3600
    assert await asked(bench) == []
    for number in (1, 2):
        await bench.store.hasten(f"request-{number}")
    assert await asked(bench) == [("request-1", 0), ("request-2", 0)]
    await bench.store.settle("entry-1", Outcome.BILLED, 7)
    found = []
    for _ in range(8):
        bench.now += 60
        found += await asked(bench)
    assert found == [("request-2", 1), ("request-2", 2)]
    assert (await bench.usage(BUDGET))[0][:2] == (47, 0)


async def test_hastening_a_job_whose_ownership_has_ended_does_nothing(bench: Bench) -> None:
    await opened(bench, 1)
    bench.now += 24 * 3600
    await bench.store.hasten("request-1")
    assert await asked(bench) == []


async def test_job_that_nobody_settles_is_charged_as_reserved_when_its_lease_ends(bench: Bench) -> None:
    await opened(bench, 1)
    bench.now += 3599
    await bench.store.due(0)
    assert (await bench.usage(BUDGET))[0][:2] == (0, 40)
    bench.now += 1
    await bench.store.due(0)
    assert (await bench.usage(BUDGET))[0][:2] == (40, 0)
    assert await bench.in_use("caller") == (0,)
    await bench.store.settle("entry-1", Outcome.RELEASED)
    assert (await bench.usage(BUDGET))[0][:2] == (40, 0)
    await bench.store.settle("entry-1", Outcome.BILLED, 7)
    assert (await bench.usage(BUDGET))[0][:2] == (7, 0)


async def test_request_whose_process_died_is_charged_as_reserved_and_frees_its_slot(bench: Bench) -> None:
    await bench.admit(concurrency=(SLOT,), budgets=(BUDGET,), amount=40, entry_id="lost")
    bench.now += 2 * 3600
    await bench.store.due(1)
    assert (await bench.usage(BUDGET))[0][:2] == (40, 0)
    assert await bench.in_use("caller") == (0,)


async def test_request_that_is_still_answered_keeps_its_reservation(bench: Bench) -> None:
    await bench.admit(concurrency=(SLOT,), budgets=(BUDGET,), amount=40, entry_id="long")
    for _ in range(10):
        bench.now += 60
        await bench.store.renew(["long", "nobody's"])
        await bench.store.due(1)
    assert (await bench.usage(BUDGET))[0][:2] == (0, 40)
    assert await bench.in_use("caller") == (1,)


async def test_ownership_ends_after_a_day_and_with_it_what_could_still_be_charged(bench: Bench) -> None:
    total = Budget("caller", 1000, "total")
    await bench.admit(budgets=(total,), amount=40, entry_id="entry-1")
    await bench.submit(1, "me")
    await bench.store.settle("entry-1", Outcome.AS_RESERVED)
    bench.now += 24 * 3600 - 1
    assert await bench.denied(owns=owns("me"), entry_id="") is None
    bench.now += 1
    assert await bench.store.find("request-1") is None
    assert await bench.denied(owns=owns("me"), entry_id="") is Denial.UNKNOWN_REQUEST
    await bench.store.settle("entry-1", Outcome.BILLED, 999)
    assert (await bench.usage(total))[0][:2] == (40, 0)


async def test_flood_evicts_the_flooders_own_oldest_record(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "MAX_RECORDS_PER_OWNER", 3)
    await opened(bench, 100, "somebody else")
    for number in range(5):
        bench.now += 1
        await opened(bench, number, f"cookie-{number}", "network-1")
    found = [number for number in (100, 0, 1, 2, 3, 4) if await bench.store.find(f"request-{number}") is not None]
    assert found == [100, 2, 3, 4]
    bench.now += 3600
    await bench.store.due(0)
    assert (await bench.usage(BUDGET))[0][:2] == (240, 0)
    assert await bench.in_use("caller") == (0,)


async def test_flood_of_many_evicts_the_oldest_of_all(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "MAX_RECORDS", 3)
    for number in range(5):
        bench.now += 1
        await opened(bench, number, f"owner-{number}")
    found = [number for number in range(5) if await bench.store.find(f"request-{number}") is not None]
    assert found == [2, 3, 4]
