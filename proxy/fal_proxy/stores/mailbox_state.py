"""What the embedded mailbox holds: events by number, who may read them, what is due where, what goes when room is needed.

Every change leaves puts when it is written down: absolute values, as in `state`. Nothing here waits or tells anybody.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import msgspec
from msgspec.structs import astuple, replace

from fal_proxy.errors import StoreUnavailable
from fal_proxy.stores.crowd import Crowd, remove
from fal_proxy.stores.holdings import Put, flooder
from fal_proxy.stores.mailbox import (
    ANSWER_BYTES,
    CLAIM_SECONDS,
    EVENT_SECONDS,
    HELD_SECONDS,
    MAX_BODY_BYTES_KEPT,
    MAX_EVENTS_PER_OWNER,
    Event,
    host_of,
    size_of,
)

DROPPED_AT_ONCE = 32  # of what is over, with each operation
_STALE_MOST = 1000  # places in a heap that are no longer true, before it is built anew

Stage = Literal["idle", "waiting", "dead"]


class Kept(msgspec.Struct, gc=False):
    """One event and how far its delivery is."""

    event: Event
    stage: Stage = "idle"  # no delivery, or one that succeeded
    attempt: int = 0
    due: float = 0.0
    given_up_at: float = 0.0
    reason: str = ""

    @property
    def ends(self) -> float:
        """Return when it is dropped at the latest."""
        return self.event.received_at + (EVENT_SECONDS if self.stage == "idle" else HELD_SECONDS)


@dataclass(slots=True)
class MailboxState:
    """Everything the embedded mailbox knows."""

    written_down: bool = False
    last_number: int = 0
    kept: dict[int, Kept] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)  # by request id
    dead: list[tuple[float, int]] = field(default_factory=list)  # by when each was given up
    waiting: int = 0
    _bytes: int = 0
    _waiting_bytes: int = 0
    _by_owner: dict[str, list[int]] = field(default_factory=dict)
    _due: dict[str, list[tuple[float, int]]] = field(
        default_factory=dict
    )  # by host; old places stay until they come up
    _ends: list[tuple[float, int]] = field(default_factory=list)  # as above
    _idle: Crowd = field(default_factory=Crowd)
    _puts: list[Put] = field(default_factory=list)

    def file(self, event: Event, now: float) -> Event:
        """Keep an event whose request id is new. Raises StoreUnavailable when there is no room, and has done nothing."""
        size = size_of(event)
        if self._waiting_bytes + size > MAX_BODY_BYTES_KEPT:
            raise StoreUnavailable("the mailbox is full of deliveries that wait")
        while self._bytes + size > MAX_BODY_BYTES_KEPT:
            self._drop(self._least_missed())
        self.last_number = max(self.last_number + 1, int(now * 1000))
        event = replace(event, number=self.last_number, received_at=now)
        kept = self.kept[event.number] = Kept(event, "waiting" if event.forward_url else "idle", due=now)
        self._put("event", *astuple(event))
        self._index(kept)
        return event

    def since(self, identities: frozenset[str], number: int, limit: int, now: float) -> list[Event]:
        """Return the oldest events after `number` of these owners."""
        found: set[int] = set()
        for identity in identities:
            mine = self._by_owner.get(identity, [])
            later = (mine[place] for place in range(bisect_right(mine, number), len(mine)))
            found.update(islice((each for each in later if self._is_fresh(each, now)), limit))
        return _within_answer([self.kept[each].event for each in sorted(found)[:limit]])

    def before_newest(self, identities: frozenset[str], count: int, now: float) -> int:
        """Return the number after which only the newest `count` of these owners' events come."""
        newest = {each for identity in identities for each in self._by_owner.get(identity, [])[-count - 1 :]}
        fresh = sorted((each for each in newest if self._is_fresh(each, now)), reverse=True)
        return fresh[count] if len(fresh) > count else 0

    def claim(self, limit: int, per_host: int, busy: Mapping[str, int], now: float) -> list[Kept]:
        """Put off what is due, and return it."""
        places: set[tuple[float, int]] = set()
        for host in list(self._due):
            queue, room = self._due[host], min(per_host - busy.get(host, 0), limit)
            while room > 0 and queue and queue[0][0] <= now:
                place = heapq.heappop(queue)
                if self._is_due(place) and place not in places:  # it may stand there twice
                    places.add(place)
                    room -= 1
            if not queue:
                del self._due[host]
        candidates = [self.kept[number] for _, number in sorted(places)]
        claimed = len(_within_answer([kept.event for kept in candidates[:limit]]))
        for at, kept in enumerate(candidates):
            # Not written down: after a restart nobody has it.
            self._put_off(kept, now + CLAIM_SECONDS if at < claimed else kept.due)
        return candidates[:claimed]

    def delivered(self, number: int) -> None:
        """End a delivery."""
        kept = self.kept.get(number)
        if kept is not None and kept.stage != "idle":
            self._unstage(kept)
            kept.stage = "idle"
            self._stage(kept)
            self._put_delivery(kept)

    def failed(self, number: int, reason: str, retry_seconds: float | None, now: float) -> None:
        """Put a delivery off, or give it up."""
        kept = self.kept.get(number)
        if kept is None or kept.stage != "waiting":
            return
        kept.attempt += 1
        kept.reason = reason
        if retry_seconds is not None:
            self._put_off(kept, now + retry_seconds)
        else:
            self._unstage(kept)
            kept.stage, kept.given_up_at = "dead", now
            self._stage(kept)
        self._put_delivery(kept)

    def revive(self, number: int, now: float) -> bool:
        """Make a dead letter due."""
        kept = self.kept.get(number)
        if kept is None or kept.stage != "dead":
            return False
        self._unstage(kept)
        kept.stage, kept.attempt, kept.due, kept.reason = "waiting", 0, now, ""
        self._stage(kept)
        self._put_delivery(kept)
        return True

    def expire(self, now: float) -> None:
        """Drop a little of what is over."""
        for _ in range(DROPPED_AT_ONCE):
            if not self._ends or self._ends[0][0] > now:
                break
            end, number = heapq.heappop(self._ends)
            kept = self.kept.get(number)
            if kept is not None and kept.ends == end:
                self._drop(kept)

    def forget(self, number: int) -> None:
        """Take back an event that could not be written down."""
        kept = self.kept.get(number)
        if kept is not None:
            self._drop(kept)

    # What is written down

    def take_puts(self) -> list[Put]:
        """Return what changed since the last time."""
        puts, self._puts = self._puts, []
        return puts

    def snapshot(self) -> Iterator[Put]:
        """Yield a put of everything; between two of them all may go on changing, as long as it is written down."""
        yield ("number", self.last_number)
        for number in list(self.kept):
            if (kept := self.kept.get(number)) is not None:
                yield ("event", *astuple(kept.event))
                yield _delivery_put(kept)

    def apply(self, put: Put) -> None:
        """Repeat what was written down; `arrange` comes after the last. Raises ValueError for what it does not know."""
        kind, *values = put
        if kind == "event":
            request_id, endpoint_id, owners, ok, headers, *rest = values
            fields = tuple((name, value) for name, value in headers)
            event = Event(request_id, endpoint_id, tuple(owners), ok, fields, *rest)
            self.last_number = max(self.last_number, event.number)
            if event.number not in self.kept:
                stage: Stage = "waiting" if event.forward_url else "idle"
                self.kept[event.number] = Kept(event, stage, due=event.received_at)
        elif kind == "delivery":
            if (kept := self.kept.get(values[0])) is not None:
                _, kept.stage, kept.attempt, kept.due, kept.given_up_at, kept.reason = values
        elif kind == "gone":
            self.kept.pop(values[0], None)
        elif kind == "number":
            self.last_number = max(self.last_number, values[0])
        else:
            raise ValueError(f"holds {kind!r}, which only a newer version of fal-proxy knows: start that one")

    def arrange(self) -> None:
        """Build what follows from the events."""
        for number in sorted(self.kept):
            self._index(self.kept[number])

    def _put(self, *put: object) -> None:
        if self.written_down:
            self._puts.append(put)

    def _put_delivery(self, kept: Kept) -> None:
        self._put(*_delivery_put(kept))

    # Where an event stands

    def _index(self, kept: Kept) -> None:
        event = kept.event
        self.numbers[event.request_id] = event.number
        for owner in set(event.owners):
            insort(self._by_owner.setdefault(owner, []), event.number)
        self._bytes += size_of(event)
        self._stage(kept)

    def _drop(self, kept: Kept) -> None:
        event = kept.event
        self._unstage(kept)
        self._bytes -= size_of(event)
        del self.kept[event.number]
        del self.numbers[event.request_id]
        for owner in set(event.owners):
            remove(self._by_owner, owner, event.number)
        self._put("gone", event.number)

    def _stage(self, kept: Kept) -> None:
        number = kept.event.number
        if len(self._ends) > 2 * len(self.kept) + _STALE_MOST:
            self._ends = [(each.ends, each.event.number) for each in self.kept.values()]
            heapq.heapify(self._ends)
        else:
            heapq.heappush(self._ends, (kept.ends, number))
        if kept.stage == "waiting":
            self.waiting += 1
            self._waiting_bytes += size_of(kept.event)
            self._put_off(kept, kept.due)
        elif kept.stage == "dead":
            insort(self.dead, (kept.given_up_at, number))
        else:
            owner = flooder(kept.event.owners)
            self._idle.add(owner, number, size_of(kept.event))
            if self._idle.count(owner) > MAX_EVENTS_PER_OWNER:
                self._drop(self.kept[self._idle.oldest(owner)])

    def _unstage(self, kept: Kept) -> None:
        number = kept.event.number
        if kept.stage == "waiting":
            self.waiting -= 1
            self._waiting_bytes -= size_of(kept.event)
        elif kept.stage == "dead":
            self.dead.remove((kept.given_up_at, number))
        else:
            self._idle.remove(flooder(kept.event.owners), number, size_of(kept.event))

    def _put_off(self, kept: Kept, due: float) -> None:
        kept.due = due
        heapq.heappush(self._due.setdefault(host_of(kept.event), []), (due, kept.event.number))

    def _is_fresh(self, number: int, now: float) -> bool:
        return self.kept[number].event.received_at + EVENT_SECONDS > now

    def _is_due(self, place: tuple[float, int]) -> bool:
        kept = self.kept.get(place[1])
        return kept is not None and kept.stage == "waiting" and kept.due == place[0]

    def _least_missed(self) -> Kept:
        number = self._idle.oldest_of_heaviest()
        return self.kept[self.dead[0][1] if number is None else number]


def _within_answer(events: list[Event]) -> list[Event]:
    """Return as many as one answer may hold, but the first."""
    size = 0
    answer: list[Event] = []
    for event in events:
        size += len(event.body)
        if answer and size > ANSWER_BYTES:
            break
        answer.append(event)
    return answer


def _delivery_put(kept: Kept) -> Put:
    return ("delivery", kept.event.number, kept.stage, kept.attempt, kept.due, kept.given_up_at, kept.reason)
