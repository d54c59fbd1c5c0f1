"""The embedded store's state as puts, and puts as bytes: both ways, for the journal.

A snapshot is a put of everything; `apply` repeats a put. A frame is a length, a CRC-32 of the payload, a CRC-32 of
these two, and the payload, a MessagePack list of puts. With its own checksum a damaged length is no short frame.
"""

from __future__ import annotations

import heapq
import logging
import os
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from fal_proxy.stores import Outcome, Record
from fal_proxy.stores.holdings import Entry, Name, Purse, Put, entry_put, record_fields
from fal_proxy.stores.state import State
from fal_proxy.stores.windows import Window

_HEAD = struct.Struct("<III")
_CHECKED = struct.Struct("<II")  # the part of the head that its own checksum covers
_LIST = struct.Struct(">BI")  # MessagePack's head of a list, so that puts encoded one by one make one payload
TITLE: Put = ("fal-proxy journal", 1)  # the first put of each segment, with the format's version
COMPLETE: Put = ("complete",)  # the last of a snapshot
REMEDY = "restore the folder from a backup, or move it away and lose what was spent and who owns which request"
_log = logging.getLogger(__name__)
encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[Any, ...]]).decode


def frame(puts: list[bytes]) -> bytes:
    """Return encoded puts as one frame."""
    payload = _LIST.pack(0xDD, len(puts)) + b"".join(puts)
    checked = _CHECKED.pack(len(payload), zlib.crc32(payload))
    return checked + zlib.crc32(checked).to_bytes(4, "little") + payload


def frames(file: BinaryIO) -> Iterator[tuple[list[Put], int]]:
    """Yield the puts of each whole frame from here on, and where it ends. Raises ValueError for damage.

    A last frame that is not whole is not yielded: it ends early, or, after a power cut, was partly never written.
    """
    start = file.tell()
    size = os.fstat(file.fileno()).st_size
    while size - start >= _HEAD.size:
        head = file.read(_HEAD.size)
        length, checksum, head_checksum = _HEAD.unpack(head)
        if zlib.crc32(head[: _CHECKED.size]) != head_checksum:
            if any(head) or any(file.read()):
                raise ValueError(f"is damaged at byte {start}: {REMEDY}")
            return
        end = start + _HEAD.size + length
        if end > size:
            return
        payload = file.read(length)
        if zlib.crc32(payload) != checksum:
            if end < size:
                raise ValueError(f"is damaged at byte {start}: {REMEDY}")
            return
        yield _decode(payload), end
        start = end


def repeat(state: State, path: Path, *, last: bool) -> bool:
    """Apply one segment; return whether its snapshot is complete. Of the last one, a torn end is cut off.

    Raises ValueError, with what can be done, for what does not read back.
    """
    complete = False
    with path.open("rb") as file:
        puts, whole = next(frames(file), ([("",)], 0))
        if puts[0][0] != TITLE[0]:
            raise ValueError(f"is not a segment of a journal: {REMEDY}")
        if puts[0] != TITLE:
            raise ValueError("was written by a newer version of fal-proxy: start that one")
        for puts, end in frames(file):
            for put in puts:
                if put == COMPLETE:
                    complete = True
                else:
                    apply(state, put)
            whole = end
        size = file.seek(0, os.SEEK_END)
    if whole < size:
        if not last:
            raise ValueError(f"is damaged at byte {whole}: {REMEDY}")
        _log.warning("%s: cut off %d bytes that were being written when the last process ended", path, size - whole)
        os.truncate(path, whole)
    return complete


def snapshot(state: State) -> Iterator[Put]:
    """Yield a put of everything; between two of them the state may go on changing, as long as it is written down."""
    yield ("clock", state.clock)
    for name in list(state.purses):
        if (purse := state.purses.get(name)) is not None:
            yield ("purse", name, purse.spent, purse.reserved, purse.ends)
    yield from [("cover", name, ends) for name, ends in state.covers.items()]
    for entry_id in list(state.entries):
        if (entry := state.entries.get(entry_id)) is not None:
            yield entry_put(entry)
    for request_id in list(state.born):  # the records' keys; an OrderedDict takes forty times as long to list
        if (record := state.records.get(request_id)) is not None:
            yield ("record", state.born[request_id], *record_fields(record))
    for seconds in list(state.windows):
        for key in list(dict.__iter__(state.windows[seconds])):  # in no order, and so without that cost
            if (window := state.windows[seconds].get(key)) is not None:
                yield ("window", key, seconds, window.dump())


def apply(state: State, put: Put) -> None:
    """Repeat what was written down. Raises ValueError for what this version does not know."""
    kind, *values = put
    if kind in ("hit", "cover"):
        getattr(state, kind)(*values)
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
    id_, amount, purses, slots, price, lease_end, request_id, outcome, charged = values
    entry = Entry(id_, amount, tuple(_name(name) for name in purses), tuple(slots), price, lease_end, request_id)
    entry.outcome = None if outcome is None else Outcome(outcome)
    entry.charged = charged
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
        state.watch(request_id, born)


def _name(value: list[str]) -> Name:
    key, period, label = value
    return key, period, label
