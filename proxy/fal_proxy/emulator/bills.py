"""What was billed, request by request: the books behind /v1/models/billing-events. Bounded, oldest first out.

A job is billed when it completes, whether anybody fetches its result or not. Sockets and world models are not in here:
what fal's events say of them, nobody outside knows.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from .jobs import Job, ending

KEPT_BILLS = 20_000
WATCHED_JOBS = 4096


@dataclass(frozen=True)
class Bill:
    """One request that cost something."""

    request_id: str
    endpoint: str
    at: float
    units: Decimal


class Bills:
    """The bills of one emulator."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._bills: deque[Bill] = deque(maxlen=KEPT_BILLS)
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    def add(self, request_id: str, endpoint: str, units: str) -> None:
        """Bill a request that has just succeeded; nothing is billed for no units."""
        self._add(request_id, endpoint, self._clock(), units)

    def watch(self, job: Job) -> None:
        """Bill a job once it has succeeded."""
        self._jobs[job.request_id] = job
        if len(self._jobs) > WATCHED_JOBS:
            self._take_completed()
        if len(self._jobs) > WATCHED_JOBS:
            self._jobs.popitem(last=False)

    def between(self, start: float, end: float) -> list[Bill]:
        """Return the bills of that time, oldest first; `end` is not part of it."""
        self._take_completed()
        return sorted((bill for bill in self._bills if start <= bill.at < end), key=lambda bill: bill.at)

    def _take_completed(self) -> None:
        now = self._clock()
        for job in list(self._jobs.values()):
            ended_at, failure = ending(job)
            if ended_at <= now:
                del self._jobs[job.request_id]
                if failure is None:
                    self._add(job.request_id, job.endpoint, ended_at, job.plan.units)

    def _add(self, request_id: str, endpoint: str, at: float, units: str) -> None:
        if Decimal(units) > 0:
            self._bills.append(Bill(request_id, endpoint, at, Decimal(units)))
