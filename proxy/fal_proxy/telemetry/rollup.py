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
MOST_CALLERS = 10_000  # whose ids are known, so that something can be done about them
NAME_CHARS = 200
OTHER: Final = "(other)"
NOBODY: Final = "(none)"  # refused before it was known, or settled without a request
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


Names = dict[str, Tally]


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
        minute, caller, kind = self._minute, exchange.caller, exchange.kind
        shown = NOBODY if caller is None else shown_of(caller.id)
        if caller is not None:
            self._know(shown, caller)
        requests = 0 if exchange.settled else 1
        admitted = exchange.decision == ADMITTED
        paid = requests if admitted and kind is not None and kind.traits.paid else 0
        refused = 0 if admitted else 1
        microusd = exchange.cost_microusd or 0
        if refused:
            minute.refusals[exchange.decision] = minute.refusals.get(exchange.decision, 0) + 1
        for tally in (
            minute.total,
            _under(minute.plans, (exchange.plan or NOBODY)[:NAME_CHARS]),
            _under(minute.endpoints, (exchange.endpoint_id or NOBODY)[:NAME_CHARS]),
            _under(minute.callers, shown),
        ):
            tally.requests += requests
            tally.paid += paid
            tally.refused += refused
            tally.microusd += microusd

    def find(self, shown: str) -> Caller | None:
        """Return a caller who was here, and whose network with them, by what they are shown as."""
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

    def _turn(self, now: float) -> None:
        """Begin the running minute, and fold the one before it."""
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
        known = self._callers
        if shown in known:
            known.move_to_end(shown)
        elif len(known) >= MOST_CALLERS:
            known.popitem(last=False)
        known[shown] = caller


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
