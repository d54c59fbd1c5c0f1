"""What the last hour and the last day were like, for people: requests, refusals and spend by plan, endpoint and caller.

Of this process only, and gone with it; metrics and access lines are what lasts. Each minute is counted by itself and
folded into its hour when it is over. Memory is bounded: of endpoints and callers each span keeps those that cost most or
ask most, and adds up the rest under OTHER. Totals are exact.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from fal_proxy.exchange import ADMITTED, Caller, Exchange, shown_of

MINUTES = 60
HOURS = 24
MOST_NAMES = 100  # per span and dimension, twice as many while it is counted
MOST_CELLS = 200
MOST_CALLERS = 5_000  # whose ids are known, so that something can be done about them
NAME_CHARS = 200
OTHER: Final = "(other)"
NOBODY: Final = "(none)"  # refused before it was known
DIMENSIONS = ("plans", "endpoints", "callers")
_MINUTE_SECONDS = 60
_HOUR_SECONDS = 3600


class Tally(msgspec.Struct, gc=False):
    """What is counted under one name."""

    requests: int = 0
    paid: int = 0  # of these, admitted ones that cost money at fal
    refused: int = 0  # by the proxy
    microusd: int = 0  # what charges have changed by: below zero where earlier ones were lowered

    def add(self, other: Tally) -> None:
        """Add another's counts."""
        self.requests += other.requests
        self.paid += other.paid
        self.refused += other.refused
        self.microusd += other.microusd


class _Cell(Tally, gc=False):
    """What one caller does at one endpoint, within the running minute and until it is poured out."""

    caller: Caller | None = None


Names = dict[str, Tally]
_Key = tuple[str | None, str, str | None]  # plan, endpoint, id of the caller; of what was settled, its shown form


class Span:
    """A minute or an hour."""

    __slots__ = ("callers", "endpoints", "plans", "refusals", "start", "total")

    def __init__(self, start: float) -> None:
        self.start = start
        self.total = Tally()
        self.plans: Names = {}
        self.endpoints: Names = {}
        self.callers: Names = {}
        self.refusals: dict[str, int] = {}  # by error type

    def add(self, other: Span) -> None:
        """Add another's counts."""
        self.total.add(other.total)
        for mine, theirs in (
            (self.plans, other.plans),
            (self.endpoints, other.endpoints),
            (self.callers, other.callers),
        ):
            for name, tally in theirs.items():
                _under(mine, name).add(tally)
        for reason, count in other.refusals.items():
            self.refusals[reason] = self.refusals.get(reason, 0) + count

    def close(self) -> None:
        """Keep the names that matter."""
        for names in (self.plans, self.endpoints, self.callers):
            _fold(names, MOST_NAMES)


class Rollup:
    """Told of every exchange once, when it is over."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.began = clock()
        self._minute = Span(self.began // _MINUTE_SECONDS * _MINUTE_SECONDS)
        self._cells: dict[_Key, _Cell] = {}  # of the running minute: one lookup for each exchange
        self._minutes: deque[Span] = deque(maxlen=MINUTES - 1)  # that are over
        self._hours: deque[Span] = deque(maxlen=HOURS)  # of minutes that are over; the last one is the running hour
        self._callers: OrderedDict[str, Caller] = OrderedDict()  # by what they are shown as, the last to ask last

    def count(self, exchange: Exchange) -> None:
        """Count an exchange that has ended."""
        if exchange.preflight:
            return
        now = self._clock()
        if not 0 <= now - self._minute.start < _MINUTE_SECONDS:
            self._turn(now)
        caller = exchange.caller
        payer = exchange.payer
        who = caller.id if caller is not None else payer.caller if payer is not None else None
        key = (exchange.plan, exchange.endpoint_id[:NAME_CHARS], who)
        cell = self._cells.get(key) or self._cell(key, caller)
        if not exchange.settled:
            cell.requests += 1
        if exchange.decision != ADMITTED:
            cell.refused += 1
            refusals = self._minute.refusals
            refusals[exchange.decision] = refusals.get(exchange.decision, 0) + 1
        elif exchange.kind is not None and exchange.kind.traits.paid:
            cell.paid += 1
        if exchange.cost_microusd:
            cell.microusd += exchange.cost_microusd

    def find(self, shown: str) -> Caller | None:
        """Return a caller who was here, and whose network with them, by what they are shown as."""
        self._pour()
        return self._callers.get(shown)

    def minutes(self) -> list[Span]:
        """Return the last hour, oldest first, without a gap; the last one is not over."""
        self._turn(self._clock())
        return _without_gaps([*self._minutes, self._minute], self._minute.start, _MINUTE_SECONDS, MINUTES)

    def hours(self) -> list[Span]:
        """Return the last day, oldest first, without a gap; the last one is not over."""
        self._turn(self._clock())
        start = self._minute.start // _HOUR_SECONDS * _HOUR_SECONDS
        running = Span(start)
        for span in [each for each in self._hours if each.start == start] + [self._minute]:
            running.add(span)
        running.close()
        spans = [each for each in self._hours if each.start != start]
        return _without_gaps([*spans, running], start, _HOUR_SECONDS, HOURS)

    def _cell(self, key: _Key, caller: Caller | None) -> _Cell:
        if len(self._cells) >= MOST_CELLS:
            self._pour()
        cell = self._cells[key] = _Cell(caller=caller)
        return cell

    def _pour(self) -> None:
        """Add the cells to the running minute."""
        minute = self._minute
        for (plan, endpoint, who), cell in self._cells.items():
            shown = who or NOBODY if cell.caller is None else shown_of(cell.caller.id)
            if cell.caller is not None:
                self._know(shown, cell.caller)
            minute.total.add(cell)
            _under(minute.plans, plan[:NAME_CHARS] if plan else NOBODY).add(cell)
            _under(minute.endpoints, endpoint or NOBODY).add(cell)
            _under(minute.callers, shown).add(cell)
        self._cells.clear()

    def _turn(self, now: float) -> None:
        """Pour out what was counted, begin the running minute, and fold the one before it."""
        self._pour()
        start = now // _MINUTE_SECONDS * _MINUTE_SECONDS
        if start <= self._minute.start:
            return  # the clock may have stepped back: what comes now belongs to the latest minute that was seen
        over, self._minute = self._minute, Span(start)
        over.close()
        self._minutes.append(over)
        hour = over.start // _HOUR_SECONDS * _HOUR_SECONDS
        if not self._hours or self._hours[-1].start != hour:
            self._hours.append(Span(hour))
        self._hours[-1].add(over)
        self._hours[-1].close()

    def _know(self, shown: str, caller: Caller) -> None:
        self._callers[shown] = caller
        self._callers.move_to_end(shown)
        if len(self._callers) > MOST_CALLERS:
            self._callers.popitem(last=False)


def total(spans: Iterable[Span]) -> Span:
    """Return the sum of spans."""
    found = Span(0.0)
    for span in spans:
        found.add(span)
    found.close()
    return found


def _under(names: Names, name: str) -> Tally:
    tally = names.get(name)
    if tally is None:
        if len(names) >= 2 * MOST_NAMES:
            _fold(names, MOST_NAMES)
        tally = names[name] = Tally()
    return tally


def _fold(names: Names, most: int) -> None:
    """Keep the names that cost or ask most, and add up the others."""
    if len(names) <= most + 1:
        return
    rest = names.pop(OTHER, None) or Tally()
    ranked = sorted(names.items(), key=lambda item: (item[1].microusd, item[1].requests), reverse=True)
    for name, tally in ranked[most:]:
        rest.add(tally)
        del names[name]
    names[OTHER] = rest


def _without_gaps(spans: list[Span], last: float, seconds: int, most: int) -> list[Span]:
    by_start = {span.start: span for span in spans}
    starts = [last - seconds * back for back in reversed(range(most))]
    return [by_start.get(start) or Span(start) for start in starts]
