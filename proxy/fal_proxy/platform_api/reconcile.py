"""fal's bills against our books, request by request: what differs, by how much, and what is too young to say.

Knows no command line and prints nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from fal_proxy.platform_api.billing import MOST_IDS, Bills, Event
from fal_proxy.platform_api.books import Books, Charge

# A job may be fetched, and so charged here, for as long as it is owned: a day after fal has billed it, or before.
MARGIN = timedelta(hours=25)
_ID = re.compile(r"[A-Za-z0-9_\-]{1,128}")

What = Literal["unknown", "uncharged", "unbilled", "amount", "units"]


class Window(NamedTuple):
    """Which time is looked at; what is younger than `late` may still be billed or charged."""

    since: datetime
    until: datetime
    now: datetime
    late: timedelta


class Difference(NamedTuple):
    """One request about which the books do not agree.

    unknown: fal billed it, no line names it. uncharged: a line names it and charged nothing. unbilled: we charged and fal
    did not bill. amount: both, and not the same. units: nobody counts money, and fal told us other units.
    """

    what: What
    request_id: str
    endpoint: str
    charged: Fraction
    billed: Fraction


@dataclass(slots=True)
class Sum:
    """What was charged and billed for one endpoint."""

    requests: int = 0
    charged: Fraction = Fraction(0)
    billed: Fraction = Fraction(0)


@dataclass(slots=True)
class Outcome:
    """What comparing came to."""

    window: Window
    tolerance: Fraction
    differences: list[Difference] = field(default_factory=list)
    sums: dict[str, Sum] = field(default_factory=lambda: defaultdict(Sum))
    pending: int = 0  # too young to say
    uncounted: int = 0  # of plans that charge nobody: their units agree, or nobody knows them
    unnamed: dict[str, Fraction] = field(default_factory=dict)  # charged for what has no request id of fal's
    lines: int = 0
    skipped: int = 0

    @property
    def total(self) -> Sum:
        """Return the sums of all endpoints."""
        each = self.sums.values()
        charged = sum((one.charged for one in each), Fraction(0))
        return Sum(sum(one.requests for one in each), charged, sum((one.billed for one in each), Fraction(0)))


@dataclass(slots=True)
class _Billed:
    endpoint: str
    usd: Fraction
    units: Fraction | None
    last: datetime | None


async def reconcile(bills: Bills, books: Books, window: Window, tolerance: Fraction) -> Outcome:
    """Compare. Amounts that differ by no more than `tolerance` dollars agree. Raises PlatformError."""
    billed: dict[str, _Billed] = {}
    async for event in bills.between(window.since, window.until):
        _add(billed, event)
    ours = {name: charge for name, charge in books.charges.items() if window.since <= charge.first < window.until}
    await _look_beyond(bills, billed, (name for name, charge in ours.items() if charge.microusd), window)
    unnamed = {name: Fraction(amount, 10**6) for name, amount in sorted(books.unnamed.items())}
    outcome = Outcome(window, tolerance, unnamed=unnamed, lines=books.read, skipped=books.skipped)
    for request_id in dict.fromkeys([*billed, *ours]):
        _compare(outcome, books, request_id, books.charges.get(request_id), billed.get(request_id))
    return outcome


async def _look_beyond(bills: Bills, billed: dict[str, _Billed], charged: Iterable[str], window: Window) -> None:
    """Ask about what was charged in the window and not billed in it: it may have been billed just before or after."""
    missing = [name for name in charged if name not in billed and _ID.fullmatch(name)]
    beyond = [(window.since - MARGIN, window.since), (window.until, min(window.until + MARGIN, window.now))]
    for start, end in beyond:
        if start < end:
            for begin in range(0, len(missing), MOST_IDS):
                ids = missing[begin : begin + MOST_IDS]
                async for event in bills.between(start, end, ids):
                    if event.request_id in ids:
                        _add(billed, event)


def _add(billed: dict[str, _Billed], event: Event) -> None:
    one = billed.get(event.request_id)
    if one is None:
        billed[event.request_id] = _Billed(event.endpoint, event.usd, event.units, event.at)
        return
    one.usd += event.usd  # a correction, or what is billed in steps
    one.units = None if one.units is None or event.units is None else one.units + event.units
    one.last = event.at or one.last


def _compare(outcome: Outcome, books: Books, request_id: str, ours: Charge | None, theirs: _Billed | None) -> None:
    charged = ours.usd if ours else Fraction(0)
    billed = theirs.usd if theirs else Fraction(0)
    if not charged and not billed:
        return
    endpoint = theirs.endpoint if theirs and theirs.endpoint else ours.endpoint if ours else ""
    counted = ours is None or ours.microusd is not None or ours.plan in books.charging
    what = _what(outcome, ours, theirs) if counted else _what_of_units(ours, theirs)
    if what is not None and _is_young(outcome.window, what, ours, theirs):
        outcome.pending += 1
        return
    if not counted and what is None:
        outcome.uncounted += 1
        return
    one = outcome.sums[endpoint]
    one.requests, one.charged, one.billed = one.requests + 1, one.charged + charged, one.billed + billed
    if what is not None:
        outcome.differences.append(Difference(what, request_id, endpoint, charged, billed))


def _what(outcome: Outcome, ours: Charge | None, theirs: _Billed | None) -> What | None:
    charged, billed = ours.usd if ours else Fraction(0), theirs.usd if theirs else Fraction(0)
    if abs(charged - billed) <= outcome.tolerance and ours is not None:
        return None
    if ours is None:
        return "unknown"
    if theirs is None:
        return "unbilled"
    return "amount" if charged else "uncharged"


def _what_of_units(ours: Charge | None, theirs: _Billed | None) -> What | None:
    known = ours is not None and theirs is not None and ours.units is not None and theirs.units is not None
    return "units" if known and ours and theirs and ours.units != theirs.units else None


def _is_young(window: Window, what: What, ours: Charge | None, theirs: _Billed | None) -> bool:
    """Say whether the other side may still follow: fal's events are late, and so is whoever fetches a result."""
    if what == "unbilled":
        return ours is not None and window.now - ours.last < window.late
    if what in ("unknown", "uncharged"):
        return theirs is not None and theirs.last is not None and window.now - theirs.last < window.late
    return False


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome for programs; amounts are dollars, as decimal texts."""
    total = outcome.total
    return {
        "agrees": not outcome.differences,
        "since": outcome.window.since.isoformat(),
        "until": outcome.window.until.isoformat(),
        "tolerance_usd": dollars(outcome.tolerance),
        "total": _sum_as_json(total),
        "endpoints": {name: _sum_as_json(one) for name, one in _by_difference(outcome)},
        "differences": [
            each._asdict() | {"charged": dollars(each.charged), "billed": dollars(each.billed)}
            for each in outcome.differences
        ],
        "pending": outcome.pending,
        "uncounted": outcome.uncounted,
        "unnamed": {name: dollars(amount) for name, amount in outcome.unnamed.items()},
        "lines": outcome.lines,
        "skipped_lines": outcome.skipped,
    }


def as_lines(outcome: Outcome, most_differences: int = 100) -> Iterator[str]:
    """Yield the outcome for people."""
    for each in outcome.differences[:most_differences]:
        amounts = f"charged ${dollars(each.charged)}, billed ${dollars(each.billed)}"
        yield f"{each.what}: {_plain(each.request_id)} {_plain(each.endpoint)}: {amounts}"
    if (more := len(outcome.differences) - most_differences) > 0:
        yield f"… and {more} more (--json shows all)"
    for name, one in [*_by_difference(outcome), ("in all", outcome.total)]:
        off = dollars(one.charged - one.billed)
        yield (
            f"{_plain(name)}: {one.requests} requests, charged ${dollars(one.charged)}, "
            f"billed ${dollars(one.billed)}, difference ${off}"
        )
    for name, amount in outcome.unnamed.items():
        yield f"{_plain(name)}: ${dollars(amount)} charged for what fal's bills do not name"
    if outcome.pending:
        yield f"{outcome.pending} requests are too young to say"
    if outcome.uncounted:
        yield f"{outcome.uncounted} requests are of plans without a budget, which charge nobody"
    if outcome.skipped:
        yield f"{outcome.skipped} lines are no access lines"
    word = f"differ in {len(outcome.differences)} requests" if outcome.differences else "agree"
    yield f"the books {word}, to ${dollars(outcome.tolerance)} a request"


def dollars(amount: Fraction) -> str:
    """Return the amount as a decimal, exactly if it is one of at most thirty places."""
    scaled = amount * 10**30
    if scaled.denominator != 1:
        return f"{float(amount):.12f}"
    sign, digits = "-" if scaled < 0 else "", f"{abs(scaled.numerator):031d}"
    return f"{sign}{digits[:-30]}.{digits[-30:].rstrip('0').ljust(2, '0')}"


def _sum_as_json(one: Sum) -> dict[str, Any]:
    return {"requests": one.requests, "charged": dollars(one.charged), "billed": dollars(one.billed)}


def _by_difference(outcome: Outcome) -> list[tuple[str, Sum]]:
    return sorted(outcome.sums.items(), key=lambda item: (-abs(item[1].charged - item[1].billed), item[0]))


def _plain(text: str) -> str:
    """Return a text that cannot steer a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:200])
