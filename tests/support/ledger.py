"""Two ledgers to hold ours against: fal's own, and ours as the contract's table wants it.

Both are written down from the words of the contract and share no code with the proxy's books. Time and outcomes are
told to them; they hold no opinion about how the proxy learns of things. `AskedSettler` is the real one with fal's answers in its hands.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal, localcontext
from typing import Any, NamedTuple

from fal_proxy.admission.accounts import Charge
from fal_proxy.admission.settler import Settler
from fal_proxy.environment import Secret
from fal_proxy.errors import UpstreamCut
from fal_proxy.stores import Store
from fal_proxy.upstream.answer import Head
from fal_proxy.upstream.credentials import FalKey
from fal_proxy.upstream.keys import Key, KeyPool

LEASE = 3600.0  # of a job, from its submit
OWNERSHIP = 86400.0

Named = tuple[str, str, str]  # of a purse: key, period, label


class Cap(NamedTuple):
    """One budget."""

    key: str
    limit: int
    period: str


def cost(price: str, units: str) -> int:
    """Return what fal's units cost in micro-dollars, rounded up."""
    with localcontext() as context:
        context.prec = 80
        return int((Decimal(price) * Decimal(units) * 1_000_000).to_integral_value(ROUND_CEILING))


def purse(cap: Cap, now: float) -> Named:
    """Return the name of the purse that a reservation of now belongs to."""
    moment = datetime.fromtimestamp(now, UTC)
    year, week, _ = moment.isocalendar()
    labels = {"hour": f"{moment:%Y-%m-%dT%H}", "day": f"{moment:%Y-%m-%d}", "week": f"{year}-W{week:02d}"}
    return cap.key, cap.period, labels.get(cap.period, "total")


class Said(NamedTuple):
    """One answer of fal's: its head, and whether it is read to its clean end."""

    status: int | None  # None: the connection was lost before the head
    says: bool = False  # the head holds the units
    whole: bool = True
    named: bool = True  # the head holds fal's request id
    body: bytes = b"{}"


class End(NamedTuple):
    """How a run, a stream or a submit went, and what its bill is then."""

    answer: Said
    bill: str
    written: bool = True


CALL_ENDS = [
    End(Said(None, whole=False), "released", written=False),
    End(Said(None, whole=False), "as reserved"),
    *(
        End(Said(status, says=True, whole=whole), "billed")
        for status in (200, 422, 499, 500)
        for whole in (True, False)
    ),
    *(End(Said(status, whole=whole), "as reserved") for status in (200, 206, 499) for whole in (True, False)),
    *(End(Said(status), "released") for status in (400, 401, 404, 422, 429, 500, 504)),
    *(End(Said(status, whole=False), "as reserved") for status in (400, 422, 500)),
]
SUBMIT_ENDS = [
    End(Said(None, whole=False), "released", written=False),
    *(End(Said(status), "released") for status in (400, 402, 422, 429, 499, 503)),
    *(End(Said(status, whole=False), "as reserved") for status in (None, 200, 422, 500)),
    End(Said(200), "as reserved"),  # a whole answer that names no request id
]
SILENT = [202, 400, 401, 403, 404, 408, 429, 500, 503]
RESULTS = [
    *(Said(200, says=says, whole=whole) for says in (True, False) for whole in (True, False)),
    *(Said(status, says=says) for status in (422, 499, 500) for says in (True, False)),
    *(Said(status, says=True, whole=False) for status in (422, 500)),
    *(Said(status, says=status == 202, named=status == 202) for status in SILENT),
    Said(None, whole=False),
]
CANCELS = [
    (Said(200, body=b'{"status":"OK"}'), True),
    (Said(200, body=b'{"success":true}'), True),
    (Said(200, body=b'{"status":"OK"}', whole=False), False),
    (Said(200, body=b'{"success":"true"}'), False),
    (Said(200, body=b'{"status":"IN_PROGRESS"}'), False),
    (Said(202, body=b'{"status":"CANCELLATION_REQUESTED"}'), False),
    (Said(400, body=b'{"status":"ALREADY_COMPLETED"}'), False),
    (Said(404, body=b'{"status":"OK"}'), False),
]


@dataclass
class Job:
    """A job in fal's queue, as fal knows it."""

    id: str
    app: str
    units: str  # what fal bills for it
    done: bool = False
    last_asked: float = 0.0  # by the settler
    last_polled: float = 0.0  # by its caller, or its birth

    @property
    def path(self) -> str:
        """Return where its result is."""
        return f"/{self.app}/requests/{self.id}"


@dataclass
class Bill:
    """One request that may cost money: what the books have to say about it."""

    id: str
    price: str
    reserved: int
    purses: tuple[Named, ...]
    slots: tuple[str, ...]
    lease_end: float
    job: str = ""
    born: float = 0.0  # of the ownership
    completed: bool = False
    charged: int | None = None  # None: still reserved
    said: str | None = None  # the latest units that fal told us
    ended: str = "open"

    def settle(self, outcome: str, units: str | None = None) -> None:
        """Let an outcome replace what it may replace: `billed` anything, the others a reservation only."""
        if outcome == "billed":
            assert units is not None
            self.said, self.charged = units, cost(self.price, units)
        elif self.charged is None:
            self.charged = self.reserved if outcome == "as reserved" else 0
        else:
            return
        self.ended, self.slots = outcome, ()


@dataclass
class Books:
    """Every bill there ever was; `saved` is the copy that a kill leaves behind."""

    now: float
    bills: dict[str, Bill] = field(default_factory=dict)
    saved: dict[str, Bill] = field(default_factory=dict)

    def would_admit(self, slots: dict[str, int], caps: list[Cap], amount: int) -> str | None:
        """Return the refusal of a request, None when there is none."""
        used = self.slots()
        if any(used[key] >= limit for key, limit in slots.items()):
            return "concurrency_limited"
        totals = self.purses()
        if any(sum(totals.get(purse(cap, self.now), (0, 0))) + amount > cap.limit for cap in caps):
            return "budget_exhausted"
        return None

    def open(self, id_: str, price: str, amount: int, caps: list[Cap], slots: dict[str, int]) -> None:
        """Reserve; what is reserved is on disk."""
        names = tuple(name for name, _ in self.names(caps))
        self.bills[id_] = Bill(id_, price, amount, names, tuple(slots), lease_end=math.inf)
        self.save()

    def names(self, caps: list[Cap]) -> list[tuple[Named, Cap]]:
        """Return the purses that reservations of now belong to."""
        return [(purse(cap, self.now), cap) for cap in caps]

    def accept(self, bill_id: str, job: Job) -> None:
        """Know the job that a bill is for; that too is on disk."""
        bill = self.bills[bill_id]
        bill.job, bill.born, bill.lease_end = job.id, self.now, self.now + LEASE
        self.save()

    def of(self, job: Job) -> Bill:
        """Return the bill of a job."""
        return next(bill for bill in self.bills.values() if bill.job == job.id)

    def is_owned(self, bill: Bill) -> bool:
        """Say whether anybody owns the bill's job any more."""
        return bool(bill.job) and bill.born + OWNERSHIP > self.now

    def hear(self, job: Job, said: Said) -> None:
        """Take an answer on a job's result path."""
        bill = self.of(job)
        final = bill.completed and said.named and said.whole and said.status not in (None, 202)
        if said.status != 200 and not final:
            return
        silent = "as reserved" if said.status in (200, 499) else "released"
        bill.settle("billed" if said.says else silent, job.units)

    def complete(self, job: Job) -> None:
        """Hear that a job is COMPLETED: its slot is free."""
        bill = self.of(job)
        bill.completed, bill.slots = True, ()

    def advance(self, now: float) -> None:
        """Let time pass: leases end as reserved."""
        self.now = now
        for bill in self.bills.values():
            if bill.charged is None and bill.lease_end <= now:
                bill.settle("as reserved")

    def save(self) -> None:
        """Note that everything so far is on disk."""
        self.saved = copy.deepcopy(self.bills)

    def killed(self) -> None:
        """Fall back to what is on disk; a request that was being answered has an unknown outcome."""
        self.bills = copy.deepcopy(self.saved)
        self.advance(self.now)
        for bill in self.bills.values():
            if bill.charged is None and not bill.job:
                bill.settle("as reserved")
        self.save()

    def purses(self) -> dict[Named, tuple[int, int]]:
        """Return what every purse has spent and reserved, added up bill by bill."""
        spent: Counter[Named] = Counter()
        reserved: Counter[Named] = Counter()
        for bill in self.bills.values():
            for name in bill.purses:
                spent[name] += bill.charged or 0
                reserved[name] += bill.reserved if bill.charged is None else 0
        return {name: (spent[name], reserved[name]) for name in [*spent, *reserved]}

    def slots(self) -> Counter[str]:
        """Return how many slots are taken under each key."""
        return Counter(key for bill in self.bills.values() for key in bill.slots)


class AskedSettler(Settler):
    """The settler, with fal's answers told in advance."""

    def __init__(self, store: Store, charge: Charge) -> None:
        nothing: Any = None
        super().__init__(store, nothing, nothing, KeyPool([FalKey(Secret("no:key"))]), charge, [])

    async def ask(self, jobs: Mapping[str, Job], status: Said, result: Said) -> list[Job]:
        """Take one turn; return the jobs whose status was asked for."""
        self._jobs, self._status, self._result = jobs, status, result
        self._asked: list[Job] = []
        await self.turn()
        return self._asked

    async def _get(self, path: bytes, key: Key, *, keep: bool) -> tuple[Head, bytes, bool]:
        job = self._jobs[path.decode().removesuffix("/status")]
        said = self._result
        if path.endswith(b"/status"):
            self._asked.append(job)
            said = self._status._replace(body=status_body(job))
        if said.status is None:
            raise UpstreamCut("lost", written=True)
        fields = [(b"x-fal-request-id", job.id.encode())] if said.named else []
        fields += [(b"x-fal-billable-units", job.units.encode())] if said.says else []
        return Head(said.status, fields), said.body if keep and said.whole else b"", said.whole


def status_body(job: Job) -> bytes:
    """Return a job's status as fal says it."""
    status = "COMPLETED" if job.done else "IN_PROGRESS"
    return b'{"status":"%b","request_id":"%b"}' % (status.encode(), job.id.encode())
