"""Everything that was counted of a day, by everybody who counts, and what it means that they agree."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple

from fal_proxy.exchange import shown_of
from fal_proxy.telemetry.rollup import NOBODY
from support.limited import Fields

_REACHED = ("admitted", "upstream_outcome_unknown")


@dataclass
class Deed:
    """One thing that may have to be paid: who pays, and how much by the contract; `owed` None until it is known."""

    what: str
    who: str
    price: str
    reserved: int
    owed: int | None = None
    request_id: str = ""
    told: bool = False  # fal's units came through the proxy
    billed: list[tuple[str, Decimal]] = field(default_factory=list)  # by fal itself


class Person(NamedTuple):
    """A caller: the fields they send, the plan they are on, and what lines call them."""

    fields: Fields
    plan: str
    shown: str


@dataclass
class Tally:
    """Everything that was counted of the day, by everybody who counts; micro-dollars throughout."""

    seen: Counter[int | None]  # statuses, by callers
    lines: list[dict[str, Any]]
    exchanges: Counter[tuple[str, str, str]]  # by metrics: kind, decision, ending
    raised: Counter[str]  # by plan
    lowered: Counter[str]
    rollup_requests: int
    rollup: dict[str, Counter[str]]  # by dimension and name
    csv: int
    ledger: dict[str, tuple[int, int]]  # spent and reserved, by the key of the budget
    reached: Counter[tuple[str, str]]  # what fal received: method, and host with path
    sent: Counter[tuple[str, str]]  # what callers asked that had to reach it
    asked: Counter[tuple[str, str]]  # what settlers asked
    bills: list[tuple[str, Decimal]]  # fal's
    deeds: list[Deed]
    people: dict[str, Person]
    died: int  # requests whose process was killed


def agree(day: Tally) -> None:
    """Assert that everybody has counted the same: requests, units, dollars."""
    _agree_on_requests(day)
    _agree_on_units(day)
    _agree_on_dollars(day)


def agrees(day: Tally) -> bool:
    """Say whether everybody has counted the same."""
    try:
        agree(day)
    except AssertionError:
        return False
    return True


def _agree_on_requests(day: Tally) -> None:
    requests = [line for line in day.lines if line["kind"] != "settled"]
    assert Counter(line["status"] for line in requests) == day.seen, "lines and callers"
    assert day.exchanges == Counter((line["kind"], line["decision"], line["ending"]) for line in day.lines)
    assert day.rollup_requests == sum(line["kind"] != "preflight" for line in requests), "the page counts no preflights"
    assert day.reached == day.sent + day.asked, "fal, callers and settlers"
    relayed = [line for line in requests if line["decision"] in _REACHED and line["kind"] not in ("preflight", "none")]
    assert len(relayed) + day.died == day.sent.total(), "lines and fal"


def _agree_on_units(day: Tally) -> None:
    told = {line["request_id"]: Decimal(line["units"]) for line in day.lines if line["units"] is not None}
    billed = dict(day.bills)
    assert len(billed) == len(day.bills)
    assert billed == {id_: units for deed in day.deeds for id_, units in deed.billed}, (
        "every bill is of something asked"
    )
    heard = {id_: units for deed in day.deeds if deed.told for id_, units in deed.billed}
    assert {id_: units for id_, units in told.items() if units} == heard
    unheard = sum(units for deed in day.deeds if not deed.told for _, units in deed.billed)
    assert sum(told.values()) + unheard == sum(billed.values())


def _agree_on_dollars(day: Tally) -> None:
    plans = {who: person.plan for who, person in day.people.items()}
    by_plan: Counter[str] = Counter()
    by_caller: Counter[str] = Counter()
    for deed in day.deeds:
        assert deed.owed is not None, deed
        by_plan[plans[deed.who]] += deed.owed
        by_caller[day.people[deed.who].shown] += deed.owed
    lines: dict[str, Counter[str]] = {"plan": Counter(), "caller": Counter(), "endpoint": Counter()}
    for line in day.lines:
        for name, sums in lines.items():
            sums[line[name] or NOBODY] += line["cost_microusd"] or 0
    assert _some(lines["plan"]) == _some(by_plan), "lines and fal's books, by plan"
    assert _some(lines["caller"]) == _some(by_caller), "lines and fal's books, by caller"
    assert _some(Counter({plan: day.raised[plan] - day.lowered[plan] for plan in day.raised})) == _some(by_plan), (
        "metrics"
    )
    for dimension in ("plan", "caller", "endpoint"):
        assert _some(day.rollup[dimension + "s"]) == _some(lines[dimension]), "rollup and lines"
    assert day.csv == by_plan.total()
    assert all(reserved == 0 for _, reserved in day.ledger.values()), "nothing is open at the day's end"
    ledger = Counter({key: spent for key, (spent, _) in day.ledger.items()})
    networks = {key for key in ledger if "network-" in key}
    callers = {
        shown_of(key.removeprefix("caller:")): spent for key, spent in ledger.items() if key.startswith("caller:")
    }
    [network] = [shown_of(key.removeprefix("caller:")) for key in networks]
    visitors = sum(by_caller[person.shown] for who, person in day.people.items() if person.plan == "visitors")
    assert callers.pop(network) == visitors, "behind every visitor stands their network"
    assert callers == {shown: owed for shown, owed in by_caller.items() if shown in callers}
    assert _some(by_caller).keys() - {network} <= callers.keys()
    assert _some(
        Counter({key.removeprefix("plan:"): ledger[key] for key in ledger if key.startswith("plan:")})
    ) == _some(by_plan)
    assert ledger["all"] == by_plan.total() > 0


def _some(sums: Counter[str]) -> dict[str, int]:
    return {name: value for name, value in sums.items() if value}


def spoilt(day: Tally) -> Iterator[tuple[str, Tally]]:
    """Yield the day with one count changed, in each of many ways; `agree` must refuse every one of them."""
    changes: list[tuple[str, Callable[[Tally], object]]] = [
        ("the metrics have one request more", lambda each: each.exchanges.update([("run", "admitted", "complete")])),
        ("the rollup has one request more", lambda each: setattr(each, "rollup_requests", each.rollup_requests + 1)),
        ("nobody was killed", lambda each: setattr(each, "died", 0)),
        ("the export has a micro-dollar more", lambda each: setattr(each, "csv", each.csv + 1)),
        ("fal has received one request more", lambda each: each.reached.update([("POST", "fal.run/emulator/echo")])),
        ("a caller has seen one answer more", lambda each: each.seen.update([200])),
        ("fal has billed something else", lambda each: each.bills.append(("somebody's", Decimal(1)))),
        ("fal has billed other units", lambda each: each.bills.append((each.bills[0][0], each.bills.pop(0)[1] + 1))),
    ]
    for at, line in enumerate(day.lines):
        if line["cost_microusd"]:
            about = f"line {at}, {line['kind']} of {line['cost_microusd']}"
            changes.append((f"lost: {about}", partial(_lose, at=at)))
            changes.append((f"told twice: {about}", partial(_repeat, at=at)))
            changes.append(
                (f"a micro-dollar off: {about}", partial(_change, at=at, cost_microusd=line["cost_microusd"] + 1))
            )
            changes.append((f"of another plan: {about}", partial(_change, at=at, plan="another")))
            changes.append((f"of another caller: {about}", partial(_change, at=at, caller="another")))
    changes += [
        (f"the ledger holds a micro-dollar more for {name}", partial(_charge, name=name)) for name in day.ledger
    ]
    changes += [(f"the metric of {plan} is a micro-dollar off", partial(_raise, plan=plan)) for plan in day.raised]
    for dimension, names in day.rollup.items():
        changes += [(f"the rollup of {name} is off", partial(_roll, by=dimension, name=name)) for name in names]
    for what, change in changes:
        changed = copy.deepcopy(day)
        change(changed)
        yield what, changed


def _lose(day: Tally, at: int) -> None:
    del day.lines[at]


def _repeat(day: Tally, at: int) -> None:
    day.lines.append(day.lines[at])


def _change(day: Tally, at: int, **values: object) -> None:
    day.lines[at].update(values)


def _charge(day: Tally, name: str) -> None:
    spent, reserved = day.ledger[name]
    day.ledger[name] = (spent + 1, reserved)


def _raise(day: Tally, plan: str) -> None:
    day.raised[plan] += 1


def _roll(day: Tally, by: str, name: str) -> None:
    day.rollup[by][name] += 1
