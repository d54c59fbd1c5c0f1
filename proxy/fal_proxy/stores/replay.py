"""The embedded store's state as puts, both ways, for the journal: a snapshot is a put of everything, `apply` repeats one."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from fal_proxy.exchange import Payer
from fal_proxy.stores import Cause, Change, Outcome, Record
from fal_proxy.stores.holdings import Entry, Name, Purse, Put, entry_put, record_fields, untold_put
from fal_proxy.stores.marks import drop_window, mark, unmark
from fal_proxy.stores.state import State
from fal_proxy.stores.windows import Window


def _add_untold(state: State, number: int, microusd: int, cause: str, payer: list[str] | None, job: str) -> None:
    state.untold[number] = Change(number, microusd, Cause(cause), _payer(payer), job)


_REPEATED: dict[str, Callable[..., object]] = {
    "hit": State.hit,
    "cover": State.cover,
    "mark": mark,
    "no mark": unmark,
    "untold": _add_untold,
    "told": State.told,
    "no window": drop_window,
}


class StatePuts:
    """A `State` as the journal sees it."""

    def __init__(self, state: State) -> None:
        self._state = state

    def take_puts(self) -> list[Put]:
        """Return what changed since the last time."""
        return self._state.take_puts()

    def snapshot(self) -> Iterator[Put]:
        """Yield a put of everything."""
        return snapshot(self._state)

    def apply(self, put: Put) -> None:
        """Repeat a put."""
        apply(self._state, put)

    def arrange(self) -> None:
        """Bring everything in the order of its age."""
        arrange(self._state)


def snapshot(state: State) -> Iterator[Put]:
    """Yield a put of everything; between two of them the state may go on changing, as long as it is written down."""
    yield ("clock", state.clock)
    for name in list(state.purses):
        if (purse := state.purses.get(name)) is not None:
            yield ("purse", name, purse.spent, purse.reserved, purse.ends)
    yield from [("cover", name, ends) for name, ends in state.covers.items()]
    for marked in list(state.marks):
        if (since := state.marks.get(marked)) is not None:
            yield ("mark", marked, since)
    for entry_id in list(state.entries):
        if (entry := state.entries.get(entry_id)) is not None:
            yield entry_put(entry)
    yield from _untold(state)
    for request_id in list(state.born):  # the records' keys; an OrderedDict takes forty times as long to list
        if (record := state.records.get(request_id)) is not None:
            yield ("record", state.born[request_id], *record_fields(record))
    for seconds in list(state.windows):
        for key in list(dict.__iter__(state.windows[seconds])):  # in no order, and so without that cost
            if (window := state.windows[seconds].get(key)) is not None:
                yield ("window", key, seconds, window.dump())


def _untold(state: State) -> Iterator[Put]:
    for number in list(state.untold):
        if (change := state.untold.get(number)) is not None:
            yield untold_put(change)


def apply(state: State, put: Put) -> None:
    """Repeat what was written down. Raises ValueError for what this version does not know."""
    kind, *values = put
    if kind in _REPEATED:
        _REPEATED[kind](state, *values)
    elif kind == "window":
        state.windows.setdefault(values[1], OrderedDict())[values[0]] = Window.load(values[2])
    elif kind == "purse":
        _apply_purse(state, _name(values[0]), Purse(*values[1:]))
    elif kind == "no purse":
        state.purses.pop(_name(values[0]), None)
    elif kind == "entry":
        _apply_entry(state, values)
    elif kind == "no entry":
        if (entry := state.entries.pop(values[0], None)) is not None:
            state.free(entry)
    elif kind == "record":
        _apply_record(state, values)
    elif kind == "clock":
        state.clock = max(state.clock, values[0])
    elif kind == "no record":
        if values[0] in state.records:
            state.drop_record(values[0])
    else:
        raise ValueError(f"holds {kind!r}, which only a newer version of fal-proxy knows: start that one")
    state.take_puts()


def arrange(state: State) -> None:
    """Put what was replayed in the order of its age, which what was written during a snapshot does not have.

    Expiry and eviction begin at the oldest, so a young one in its place would keep the others alive for a day.
    """
    born, records = state.born, state.records
    state.born, state.records, state._by_owner = {}, OrderedDict(), {}
    for request_id in sorted(records, key=born.__getitem__):
        state.add_record(records[request_id], born[request_id])
    state.untold = dict(sorted(state.untold.items()))
    for seconds, windows in state.windows.items():
        state.windows[seconds] = OrderedDict(sorted(windows.items(), key=lambda item: item[1].newest))
    # Purses and leases that are over by now have left their ends behind.
    purses, state.purses, state._purse_ends = state.purses, {}, []
    for name, purse in purses.items():
        state.add_purse(name, purse)
    still_open = [entry for entry in state.entries.values() if entry.outcome is None]
    state.requests = {entry.id: entry for entry in still_open if not entry.request_id}
    state.leases = [(entry.lease_end, entry.id) for entry in still_open if entry.request_id]
    heapq.heapify(state.leases)


def _apply_purse(state: State, name: Name, purse: Purse) -> None:
    if name in state.purses:
        state.purses[name] = purse
    else:
        state.add_purse(name, purse)


def _apply_entry(state: State, values: list[Any]) -> None:
    if (old := state.entries.get(values[0])) is not None:
        state.free(old)
    id_, amount, purses, slots, price, lease_end, request_id, outcome, charged, *told = values
    entry = Entry(id_, amount, tuple(_name(name) for name in purses), tuple(slots), price, lease_end, request_id)
    entry.outcome = None if outcome is None else Outcome(outcome)
    entry.charged = charged
    if told:  # since version 2
        entry.payer, entry.onto = _payer(told[0]), told[1]
    state.entries[id_] = entry
    for slot in entry.slots:
        state.slots[slot] = state.slots.get(slot, 0) + 1


def _apply_record(state: State, values: list[Any]) -> None:
    born, request_id, apps, owners, *rest = values
    record = Record(request_id, tuple(apps), tuple(owners), *rest)
    if request_id in state.records:
        state.records[request_id] = record
    else:
        state.add_record(record, born)
        state.asks.watch(request_id, born)


def _payer(value: list[str] | None) -> Payer | None:
    return None if value is None else Payer(*value)


def _name(value: list[str]) -> Name:
    key, period, label = value
    return key, period, label
