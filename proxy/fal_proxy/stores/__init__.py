"""What admission remembers, as one contract with two implementations: `memory` and `redis`.

The store is the only place that counts. Everything it is asked is atomic: an admission judges every rate, every
concurrency limit and every budget and reserves in all of them, or in none. Money is integer micro-dollars. Time is the
store's own and never runs backwards, so that a clock stepping back refills nothing.

An *entry* is one paid request's reservation and what became of it. A *record* is the ownership of one request id; it
knows the entry that pays for it. Both are kept for RECORD_SECONDS at most.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import msgspec

from fal_proxy.exchange import Payer

RECORD_SECONDS = 24 * 3600.0
JOB_LEASE_SECONDS = 3600.0
SLOTS = 60  # hits are counted in this many slots per window, and hold their place up to one slot longer

Period = Literal["hour", "day", "week", "month", "total"]


class Rate(msgspec.Struct, frozen=True, array_like=True, gc=False):  # several for every request
    """At most `limit` hits in any interval of `window_seconds`; equal keys share a counter per window."""

    key: str
    limit: int
    window_seconds: int


class Concurrency(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """At most `limit` entries that hold a slot under `key`."""

    key: str
    limit: int


class Budget(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """At most `limit_microusd` spent and reserved under `key` in the running period."""

    key: str
    limit_microusd: int
    period: Period


class Owns(NamedTuple):
    """The question whether one of `identities` owns `request_id` under `app` (owner/alias)."""

    request_id: str
    app: str
    identities: frozenset[str]
    anonymous: bool  # may also reach what is owned by its id alone


class Denial(enum.Enum):
    """Why an admission was refused."""

    UNKNOWN_REQUEST = "unknown_request"
    RATE = "rate_limited"
    CONCURRENCY = "concurrency_limited"
    BUDGET = "budget_exhausted"
    MARKED = "blocked"


class Ask(msgspec.Struct, frozen=True):  # made for every request: a struct costs a tenth of a frozen dataclass
    """One admission: everything that must hold for one request, and the entry to open if it does."""

    owns: Owns | None = None
    rates: tuple[Rate, ...] = ()
    concurrency: tuple[Concurrency, ...] = ()
    budgets: tuple[Budget, ...] = ()
    amount_microusd: int = 0
    price: str = ""  # USD per unit, kept with the entry so that a later settlement uses the price of the day
    entry_id: str = ""  # empty: nothing is reserved (reads, uploads)
    records: bool = False  # an ownership will have to be recorded
    told: int | None = None  # only the states of the first so many rates are wanted; a store may give more
    marks: tuple[str, ...] = ()  # none of these names may be marked; judged before everything else
    payer: Payer | None = None  # of the entry


class RateState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One rate after the admission: what is left, and when the next place is free again."""

    remaining: int
    reset_seconds: float


class Verdict(msgspec.Struct, frozen=True):
    """What the store decided; `denied` None means admitted and reserved."""

    denied: Denial | None = None
    at: int = 0  # which of the rates, concurrency limits, budgets or marks refused
    retry_seconds: float | None = None  # None: not before an operator acts
    rates: tuple[RateState, ...] = ()  # of an admission, and of a refusal by a rate
    record: Record | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """Who owns a request id, and what is known about its job."""

    request_id: str
    apps: tuple[str, ...]  # owner/alias as submitted, and as fal named it
    owners: tuple[str, ...]  # empty: owned by the request id alone
    entry_id: str
    price: str
    path: str  # of the request on queue.fal.run, for the settler
    key_id: str  # which fal key submitted it
    completed: bool = False


class Outcome(enum.Enum):
    """What became of an entry. The order is what may replace what: see `Store.settle`."""

    RELEASED = "released"  # nothing is owed
    AS_RESERVED = "as_reserved"  # nothing better is known
    BILLED = "billed"  # fal said so


class Usage(NamedTuple):
    """What one budget holds now."""

    spent_microusd: int
    reserved_microusd: int
    resets_at: float | None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a caller stands, for `/me`; the sequences follow the question's."""

    rates: tuple[RateState, ...] = ()
    in_use: tuple[int, ...] = ()
    budgets: tuple[Usage, ...] = ()
    marked: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Due:
    """A job that the settler should ask fal about now."""

    record: Record
    attempt: int
    payer: Payer | None = None


class Cause(enum.Enum):
    """Why a charge changed with nobody there to tell of it."""

    LEASE_END = "lease_end"  # nobody knows how it ended, and the time for it is over
    LOST = "lost"  # the process that answered it died
    LATE = "late"  # it was settled as it should be, but the store's answer did not come in time
    ANOTHER = "another"  # it was settled by what another caller asked
    APART = "apart"  # it was to be told with an entry that was settled before


class Change(NamedTuple):
    """By how much what an entry is charged has changed, for the settler to tell of."""

    number: int  # of this change, in this store
    microusd: int
    cause: Cause
    payer: Payer | None = None
    request_id: str = ""  # of the entry's job


@dataclass(frozen=True, slots=True)
class Question:
    """What `/me` wants to know."""

    rates: tuple[Rate, ...] = ()
    concurrency: tuple[Concurrency, ...] = ()
    budgets: tuple[Budget, ...] = field(default=())
    marks: tuple[str, ...] = ()


class Store(Protocol):
    """The contract. Methods raise StoreUnavailable when the store cannot answer in time.

    `settle`, `completed` and `hasten` may instead be carried out later: they may be repeated.
    """

    @property
    def may_be_marked(self) -> bool:
        """Whether an admission has to name its marks; False where none is, and none can come from another process."""

    async def admit(self, ask: Ask) -> Verdict:
        """Judge and reserve in one step. A refusal consumes nothing; an admission with an entry is durable on return."""

    async def submitted(self, record: Record, lease_seconds: float = JOB_LEASE_SECONDS) -> None:
        """Record the ownership of a request id; durable on return. Its entry stays open until settled or leased out."""

    async def settle(
        self, entry_id: str, outcome: Outcome, amount_microusd: int = 0, *, by: Payer | None = None, onto: str = ""
    ) -> int:
        """Replace an entry's reservation and free its slot; return by how much what it is charged has changed.

        BILLED replaces whatever was settled before, with `amount_microusd`; RELEASED and AS_RESERVED settle an open
        entry only. Unknown entries are ignored.

        Whoever calls tells of the change that is returned. Of every other one `untold` tells, and this returns 0: of what
        is carried out later, and of what is settled `by` somebody who is not the entry's payer. With `onto`, another
        entry that is still open, the change is kept there, and returned when that one is settled.
        """

    async def untold(self, told: Sequence[int] = ()) -> Sequence[Change]:
        """Return charges that changed with nobody there to tell of it, none without any, each to one process only.

        Whoever has told of them names their numbers in the next call, at once; until then they are only lent.
        """

    async def completed(self, request_id: str) -> None:
        """Note that fal called the job COMPLETED: its slot is free, and its next result answer is final."""

    async def hasten(self, request_id: str) -> None:
        """Let the settler ask about a job now, because it has ended.

        A few times even if it was charged as reserved already; not if it was released or billed, or nobody paid for it.
        """

    async def find(self, request_id: str) -> Record | None:
        """Return the record of a request id."""

    async def due(self, limit: int) -> Sequence[Due]:
        """Claim up to `limit` jobs that nobody has asked about for long enough; also ends leases that ran out."""

    async def standing(self, question: Question) -> Standing:
        """Return where a caller stands; consumes nothing."""

    async def renew(self, entry_ids: Sequence[str]) -> None:
        """Keep the entries of requests that are still being answered by this process from being taken for lost."""

    async def extend(self, name: str, seconds: float) -> float:
        """Cover `name` for `seconds` from now, at least; return how many of the seconds to come were covered already.

        With 0 seconds it only asks. One step: of two that extend at once, the second finds what the first has covered.
        """

    async def mark(self, name: str) -> None:
        """Let no admission that names it pass, here and in every other process; durable on return, until `unmark`."""

    async def unmark(self, name: str) -> None:
        """Take a mark away; nothing happens where there is none."""

    async def marks(self) -> Mapping[str, float]:
        """Return what is marked, and since when in the store's seconds."""

    async def forget(self, question: Question) -> None:
        """Let the question's rates count from zero, and so what its budgets have spent in the running period.

        What is reserved and in progress stays. No later correction of what was spent before brings a budget below zero.
        """

    async def ping(self) -> None:
        """Return if the store answers."""

    async def close(self) -> None:
        """Flush and let go."""
