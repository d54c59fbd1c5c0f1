"""Which jobs the settler should ask about, and when: after their caller's last poll, then less and less often.

Knows jobs by their request ids alone; what has become of their entries it is told.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from fal_proxy.stores import Outcome
from fal_proxy.stores.holdings import Entry, Job

FIRST_ASK_SECONDS = 10.0
LONGEST_ASK_SECONDS = 60.0
LATE_ASKS = 3


class Asks:
    """Every job that is watched, by its next question."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._heap: list[tuple[float, str]] = []

    def watch(self, request_id: str, when: float, late_asks: int = 0) -> None:
        """Let a job be asked about from `when` on; so many times even if the end of its lease has settled it."""
        self._jobs[request_id] = Job(when, 0, when, late_asks)
        heapq.heappush(self._heap, (when, request_id))

    def polled(self, request_id: str, now: float) -> None:
        """Let the settler wait: somebody asks about the job already."""
        job = self._jobs.get(request_id)
        if job is not None:
            job.next_ask, job.attempt = now + FIRST_ASK_SECONDS, 0
            if job.next_ask < job.queued:
                self._queue(request_id, job)

    def forget(self, request_id: str) -> None:
        """Watch a job no longer."""
        self._jobs.pop(request_id, None)

    def claim(self, now: float, entry_of: Callable[[str], Entry | None]) -> tuple[str, int] | None:
        """Return the request id and attempt of a job that is due, None when none is; its next turn comes later."""
        while self._heap and self._heap[0][0] <= now:
            when, request_id = heapq.heappop(self._heap)
            job = self._jobs.get(request_id)
            if job is None or when != job.queued:
                continue
            entry = entry_of(request_id)
            late = entry is not None and entry.outcome is Outcome.AS_RESERVED and job.attempt < job.late_asks
            if entry is None or (entry.outcome is not None and not late):
                del self._jobs[request_id]
            elif job.next_ask > now:
                self._queue(request_id, job)
            else:
                job.attempt += 1
                job.next_ask = now + min(FIRST_ASK_SECONDS * 2**job.attempt, LONGEST_ASK_SECONDS)
                self._queue(request_id, job)
                return request_id, job.attempt - 1
        return None

    def _queue(self, request_id: str, job: Job) -> None:
        job.queued = job.next_ask
        heapq.heappush(self._heap, (job.queued, request_id))
