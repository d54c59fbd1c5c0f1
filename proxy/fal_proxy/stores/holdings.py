"""What the embedded store holds, as values, and how each is written down."""

from __future__ import annotations

from typing import Any

import msgspec

from fal_proxy.exchange import Payer
from fal_proxy.stores import Change, Outcome, Record

Name = tuple[str, str, str]  # of a purse: key, period, the period's label
Put = tuple[Any, ...]


class Purse(msgspec.Struct, gc=False):
    """What one budget holds in one period."""

    spent: int = 0
    reserved: int = 0
    ends: float | None = None  # the period's end


Charged = tuple[Name, float | None, Purse | None]  # a purse, its period's end, and itself if it has begun


class Entry(msgspec.Struct, gc=False):  # one for every paid request; nothing in it refers back to it
    """One reservation and what became of it; `outcome` None while it is open."""

    id: str
    amount: int
    purses: tuple[Name, ...]
    slots: tuple[str, ...]
    price: str
    lease_end: float
    request_id: str = ""
    outcome: Outcome | None = None
    charged: int = 0
    payer: Payer | None = None
    onto: int = 0  # what others have put onto it, to be told when it is settled


class Job(msgspec.Struct, gc=False):
    """When the settler should ask about a record next; `queued` is the time of its one valid place in the heap."""

    next_ask: float
    attempt: int
    queued: float
    late_asks: int = 0  # how many times it is asked about although the end of its lease has settled it


def entry_put(entry: Entry) -> Put:
    """Return an entry as it is written down."""
    outcome = None if entry.outcome is None else entry.outcome.value
    reserved = (entry.id, entry.amount, entry.purses, entry.slots, entry.price, entry.lease_end)
    return ("entry", *reserved, entry.request_id, outcome, entry.charged, entry.payer, entry.onto)


def untold_put(change: Change) -> Put:
    """Return a change that is to be told as it is written down."""
    return ("untold", change.number, change.microusd, change.cause.value, change.payer, change.request_id)


def record_fields(record: Record) -> tuple[Any, ...]:
    """Return a record in the order of its constructor."""
    return (
        record.request_id,
        record.apps,
        record.owners,
        record.entry_id,
        record.price,
        record.path,
        record.key_id,
        record.completed,
    )


def flooder(owners: tuple[str, ...]) -> str:
    """Return whose flood a thing of these owners would be part of: networks before cookies, which anyone can have many of."""
    networks = [owner for owner in owners if "network-" in owner]
    return networks[0] if networks else owners[0] if owners else ""
