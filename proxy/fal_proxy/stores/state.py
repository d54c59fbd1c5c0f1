"""The embedded store's state: windows, slots, purses, entries, records, jobs; what expires, and what must be written down.

Every change goes through a method here, and each leaves `Put`s: tuples of a kind and absolute values (`replay` is their
inverse). Nothing here decides whether something may happen.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from fal_proxy.stores import RECORD_SECONDS, Cause, Change, Outcome, Rate, RateState, Record
from fal_proxy.stores.asks import FIRST_ASK_SECONDS, LATE_ASKS, Asks
from fal_proxy.stores.holdings import Charged, Entry, Name, Purse, Put, entry_put, flooder, record_fields, untold_put
from fal_proxy.stores.windows import Window, drop_idle

# A flood of submits evicts the flooder's own oldest records, then the oldest of all.
MAX_RECORDS_PER_OWNER = 10_000
MAX_RECORDS = 500_000
_DROPPED_AT_ONCE = 4
_CLOCK_SECONDS = 60.0
_LEASE_LOOK_SECONDS = 60.0  # less than any lease
# After its period a purse is kept until no entry can be settled against it any more.
_PURSE_GRACE_SECONDS = RECORD_SECONDS + 3 * 3600.0


@dataclass(slots=True)
class State:
    """Everything the embedded store knows."""

    windows: dict[int, OrderedDict[str, Window]] = field(default_factory=dict)  # by length; least recently hit first
    written_down: bool = True  # without a journal nobody reads puts
    clock: float = 0.0
    slots: dict[str, int] = field(default_factory=dict)
    purses: dict[Name, Purse] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    records: OrderedDict[str, Record] = field(default_factory=OrderedDict)  # oldest first
    born: dict[str, float] = field(default_factory=dict)
    _by_owner: dict[str, OrderedDict[str, None]] = field(default_factory=dict)
    asks: Asks = field(default_factory=Asks)
    requests: dict[str, Entry] = field(default_factory=dict)  # open entries that belong to no job, or not yet
    leases: list[tuple[float, str]] = field(default_factory=list)  # of jobs
    _leases_from: float = 0.0  # no lease in `requests` ends before
    _purse_ends: list[tuple[float, Name]] = field(default_factory=list)
    covers: dict[str, float] = field(default_factory=dict)  # until when each is covered
    marks: dict[str, float] = field(default_factory=dict)  # since when; `marks` changes them
    _cover_ends: list[tuple[float, str]] = field(default_factory=list)
    untold: dict[int, Change] = field(default_factory=dict)  # by number; oldest first
    _puts: list[Put] = field(default_factory=list)

    def note_clock(self, now: float) -> None:
        """Write the time down, roughly: a clock stepping back across a restart refills nothing either."""
        if now >= self.clock + _CLOCK_SECONDS:
            self.clock = now
            self._put("clock", now)

    # Rates

    def find_window(self, key: str, seconds: int) -> Window | None:
        """Return a key's window if it was ever hit."""
        windows = self.windows.get(seconds)
        return windows.get(key) if windows is not None else None

    def hit(self, key: str, seconds: int, slot: int) -> Window:
        """Add a hit to a key's window and return it."""
        windows = self.windows.get(seconds)
        if windows is None:
            windows = self.windows[seconds] = OrderedDict()
        window = windows.get(key)
        if window is None:
            drop_idle(windows, slot, _DROPPED_AT_ONCE)
            window = windows[key] = Window()
        else:
            windows.move_to_end(key)
        window.hit(slot)
        return window

    def standing(self, rate: Rate, now: float) -> RateState:
        """Return what is left of a rate."""
        window = self.find_window(rate.key, rate.window_seconds)
        return RateState(rate.limit, 0.0) if window is None else window.state(rate.limit, rate.window_seconds, now)

    def note_hit(self, key: str, seconds: int, slot: int) -> None:
        """Write a hit down."""
        self._put("hit", key, seconds, slot)

    # Money and slots

    def open(self, entry: Entry, purses: Iterable[Charged]) -> None:
        """Reserve in the entry's purses."""
        self.entries[entry.id] = self.requests[entry.id] = entry
        for slot in entry.slots:
            self.slots[slot] = self.slots.get(slot, 0) + 1
        for name, end, purse in purses:
            if purse is None and (purse := self.purses.get(name)) is None:  # two of its kind may begin it at once
                purse = Purse(ends=end)
                self.add_purse(name, purse)
            purse.reserved += entry.amount
            if self.written_down:
                self._put_purse(name, purse)
        self.put_entry(entry)

    def renew(self, entry_id: str, lease_end: float) -> None:
        """Put off the end of an entry whose request is still being answered."""
        entry = self.requests.get(entry_id)
        if entry is not None:
            entry.lease_end = lease_end

    def settle(self, entry: Entry, outcome: Outcome, amount: int) -> int:
        """Replace the reservation, or an earlier settlement, by a charge, and free the slots.

        Return the change, and what was put onto the entry: all that is to be told now.
        """
        more, freed = amount - entry.charged, entry.amount if entry.outcome is None else 0
        for name in entry.purses:
            purse = self.purses.get(name)
            if purse is None:
                continue  # its period is long over, and nothing can be admitted against it any more
            purse.spent += more
            if purse.spent < 0:  # only where `forget` came in between
                purse.spent = 0
            purse.reserved -= freed
            if self.written_down:
                self._put_purse(name, purse)
        entry.outcome, entry.charged = outcome, amount
        more, entry.onto = more + entry.onto, 0
        self.requests.pop(entry.id, None)
        self.free(entry)
        if entry.request_id:
            self.put_entry(entry)
        else:
            self._drop_entry(entry.id)
        return more

    def put_onto(self, name: str, entry: Entry, change: int) -> None:
        """Keep a change, to be told with another entry, or by itself if that one is not open."""
        other = self.entries.get(name)
        if other is None or other.outcome is not None:
            self.leave(entry, change, Cause.APART)
        else:
            other.onto += change
            self.put_entry(other)

    def leave(self, entry: Entry, change: int, cause: Cause) -> None:
        """Keep a change that nobody is there to tell of."""
        if change:
            number = next(reversed(self.untold), 0) + 1
            self.untold[number] = Change(number, change, cause, entry.payer, entry.request_id)
            self._put(*untold_put(self.untold[number]))

    def told(self, number: int) -> None:
        """Forget a change: it has been told."""
        if self.untold.pop(number, None) is not None:
            self._put("told", number)

    def free(self, entry: Entry) -> None:
        """Give an entry's slots back."""
        for slot in entry.slots:
            held = self.slots.get(slot, 0)
            if held > 1:
                self.slots[slot] = held - 1
            else:
                self.slots.pop(slot, None)
        entry.slots = ()

    def _put_purse(self, name: Name, purse: Purse) -> None:
        self._put("purse", name, purse.spent, purse.reserved, purse.ends)

    def add_purse(self, name: Name, purse: Purse) -> None:
        """Begin a purse."""
        self.purses[name] = purse
        if purse.ends is not None:
            heapq.heappush(self._purse_ends, (purse.ends + _PURSE_GRACE_SECONDS, name))

    def cover(self, name: str, ends: float) -> None:
        """Cover a name until then."""
        self.covers[name] = ends
        heapq.heappush(self._cover_ends, (ends, name))
        self._put("cover", name, ends)

    # Records and jobs

    def own(self, record: Record, now: float, lease_end: float) -> None:
        """Record an ownership; its entry now lives as long as the record."""
        if record.request_id in self.records:
            return
        self.add_record(record, now)
        entry = self.entries.get(record.entry_id)
        if entry is not None:
            entry.request_id = record.request_id
            entry.lease_end = lease_end
            self.requests.pop(entry.id, None)
            heapq.heappush(self.leases, (lease_end, entry.id))
            self.put_entry(entry)
            self.asks.watch(record.request_id, now + FIRST_ASK_SECONDS)
        self._put("record", now, *record_fields(record))
        mine = self._by_owner[flooder(record.owners)]
        if len(mine) > MAX_RECORDS_PER_OWNER:
            self.drop_record(next(iter(mine)))
        elif len(self.records) > MAX_RECORDS:
            self.drop_record(next(iter(self.records)))

    def add_record(self, record: Record, born: float) -> None:
        """Keep a record, without judging how many there are."""
        self.records[record.request_id] = record
        self.born[record.request_id] = born
        self._by_owner.setdefault(flooder(record.owners), OrderedDict())[record.request_id] = None

    def find(self, request_id: str, now: float) -> Record | None:
        """Return a record that has not ended, whether or not it has been dropped yet."""
        record = self.records.get(request_id)
        return None if record is None or self.born[request_id] + RECORD_SECONDS <= now else record

    def complete(self, request_id: str) -> None:
        """Free the slot of a completed job; its money waits for the result."""
        record = self.records.get(request_id)
        if record is None or record.completed:
            return
        self.records[request_id] = replace(record, completed=True)
        self._put("record", self.born[request_id], *record_fields(self.records[request_id]))
        entry = self.entries.get(record.entry_id)
        if entry is not None and entry.slots:
            self.free(entry)
            self.put_entry(entry)

    def entry_of(self, request_id: str) -> Entry | None:
        """Return the entry that pays for a job."""
        record = self.records.get(request_id)
        return None if record is None else self.entries.get(record.entry_id)

    def hasten(self, request_id: str, now: float) -> None:
        """Let the settler ask now, a few times even about a job that only the end of its lease has settled."""
        entry = self.entry_of(request_id) if self.find(request_id, now) is not None else None
        if entry is not None and entry.outcome in (None, Outcome.AS_RESERVED):
            self.asks.watch(request_id, now, 0 if entry.outcome is None else LATE_ASKS)

    def claim(self, now: float) -> tuple[str, int] | None:
        """Return the request id and attempt of a job that is due, None when none is; its next turn comes later."""
        return self.asks.claim(now, self.entry_of)

    # The end of things

    def expire(self, now: float) -> None:
        """Drop a little of what is over: O(1) whatever the size."""
        if self._leases_from <= now:
            for entry in [entry for entry in self.requests.values() if entry.lease_end <= now]:
                self.leave(entry, self.settle(entry, Outcome.AS_RESERVED, entry.amount), Cause.LEASE_END)
            ends = [entry.lease_end for entry in self.requests.values()]
            self._leases_from = min(ends, default=now + _LEASE_LOOK_SECONDS)
        while self.leases and self.leases[0][0] <= now:
            job = self.entries.get(heapq.heappop(self.leases)[1])
            if job is not None and job.outcome is None:
                self.leave(job, self.settle(job, Outcome.AS_RESERVED, job.amount), Cause.LEASE_END)
        if self.records:
            for _ in range(_DROPPED_AT_ONCE):
                oldest = next(iter(self.records), None)
                if oldest is None or self.born[oldest] + RECORD_SECONDS > now:
                    break
                self.drop_record(oldest)
        while self._purse_ends and self._purse_ends[0][0] <= now:
            _, name = heapq.heappop(self._purse_ends)
            self.purses.pop(name, None)
            self._put("no purse", name)
        while self._cover_ends and self._cover_ends[0][0] <= now:
            end, covered = heapq.heappop(self._cover_ends)
            if self.covers.get(covered) == end:
                del self.covers[covered]  # a replay ends it by itself

    def drop_record(self, request_id: str) -> None:
        """Forget a record; its entry ends with its lease if it is still open."""
        record = self.records.pop(request_id)
        self.born.pop(request_id, None)
        self.asks.forget(request_id)
        mine = self._by_owner[flooder(record.owners)]
        mine.pop(request_id, None)
        if not mine:
            del self._by_owner[flooder(record.owners)]
        self._put("no record", request_id)
        entry = self.entries.get(record.entry_id)
        if entry is not None:
            entry.request_id = ""
            if entry.outcome is None:
                self.put_entry(entry)  # evicted by a flood: it ends with its lease
            else:
                self._drop_entry(entry.id)

    def _drop_entry(self, entry_id: str) -> None:
        self.entries.pop(entry_id, None)
        self._put("no entry", entry_id)

    # What is written down

    def put_entry(self, entry: Entry) -> None:
        """Write an entry down."""
        if self.written_down:
            self._puts.append(entry_put(entry))

    def _put(self, *put: Any) -> None:
        if self.written_down:
            self._puts.append(put)

    def take_puts(self) -> list[Put]:
        """Return what changed since the last time."""
        puts, self._puts = self._puts, []
        return puts
