"""Queued requests and where each of them stands: a pure function of the job and the time it is looked at.

Nothing here sleeps; durations are already divided by --speed. Bounded in number, age and bytes.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from .addresses import app_of
from .answers import ERROR_TYPES, encode
from .exchange import Json
from .models.plan import Failure, Plan

KEPT_JOBS = 4096
KEPT_SECONDS = 3600.0
KEPT_BYTES = 256 * 1024 * 1024
LOG_WINDOW = 12
CANCEL_SECONDS = 0.25

CANCELLED = Failure(499, {"detail": "Request cancelled by the client."}, "client_cancelled")
START_TIMEOUT = Failure(
    504, {"detail": "Request did not start in time.", "error_type": "request_timeout"}, "request_timeout"
)

State = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]


@dataclass
class Job:
    """One queued request; times are absolute on the emulator's clock, durations in real seconds."""

    request_id: str
    endpoint: str
    plan: Plan
    created_at: float
    queue_seconds: float
    run_seconds: float
    speed: float = 1.0
    position: int = 0  # how many were ahead when it came
    start_timeout_seconds: float | None = None
    cancelled_at: float | None = None
    held_bytes: int = 0  # of input and result
    served_from: str = ""
    result: bytes | None = None
    result_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def starts_at(self) -> float:
        """When a runner takes it, if nothing happens before."""
        return self.created_at + self.queue_seconds


@dataclass(frozen=True)
class Standing:
    """Where a job stands at one moment."""

    state: State
    position: int | None = None
    logs: tuple[dict[str, Json], ...] = ()
    inference_seconds: float | None = None
    failure: Failure | None = None


def look(job: Job, now: float) -> Standing:
    """Tell where a job stands."""
    ended_at, failure = ending(job)
    if now >= ended_at:
        ran = max(0.0, ended_at - job.starts_at)
        return Standing("COMPLETED", None, _logs(job, ended_at), ran, failure)
    if now < job.starts_at:
        share = (now - job.created_at) / job.queue_seconds
        return Standing("IN_QUEUE", max(0, job.position - int(share * (job.position + 1))))
    return Standing("IN_PROGRESS", None, _logs(job, now))


def ending(job: Job) -> tuple[float, Failure | None]:
    """Return when a job ends and, if it fails, how."""
    ends_at: float = job.starts_at + job.run_seconds
    failure = job.plan.failure
    if job.start_timeout_seconds is not None and job.start_timeout_seconds < job.queue_seconds:
        ends_at, failure = job.created_at + job.start_timeout_seconds, START_TIMEOUT
    if job.cancelled_at is not None and job.cancelled_at < ends_at:
        # Out of the queue at once; a runner that works already needs a moment to hear of it.
        grace = 0.0 if job.cancelled_at < job.starts_at else CANCEL_SECONDS / job.speed
        return min(ends_at, job.cancelled_at + grace), CANCELLED
    return ends_at, failure


def cancel(job: Job, now: float) -> tuple[int, str]:
    """Cancel a job and return fal's answer: a status and a word."""
    standing = look(job, now)
    if standing.state == "COMPLETED":
        return 400, "ALREADY_COMPLETED"
    if job.cancelled_at is None:
        job.cancelled_at = now
    # "Removed from the queue" is a 200 of its own in fal's newest reference.
    return (200, "OK") if standing.state == "IN_QUEUE" else (202, "CANCELLATION_REQUESTED")


def describe(job: Job, standing: Standing, *, logs: bool) -> dict[str, Json]:
    """Return the body of a status answer."""
    body: dict[str, Json] = {"status": standing.state, **urls(job)}
    if standing.position is not None:
        body["queue_position"] = standing.position
    body["logs"] = list(standing.logs) if logs else None
    body["metrics"] = {}
    if standing.inference_seconds is not None:
        body["metrics"] = {"inference_time": round(standing.inference_seconds * job.speed, 6)}
    if standing.failure is not None:
        failure = standing.failure
        body["error"] = error_text(failure)
        body["error_type"] = failure.error_type or ERROR_TYPES.get(failure.status, "bad_request")
    return body


def is_ours(failure: Failure) -> bool:
    """Tell whether the queue itself failed a request, not the model."""
    return failure in (CANCELLED, START_TIMEOUT)


def error_text(failure: Failure) -> str:
    """Return how status and webhooks word a failure: the queue's own by its text, a model's by its status."""
    return str(failure.body["detail"]) if is_ours(failure) else f"Invalid status code: {failure.status}"


def urls(job: Job) -> dict[str, str]:
    """Return the request id and the three URLs of a request in fal's own form: the endpoint's path is dropped."""
    base = f"https://queue.fal.run/{app_of(job.endpoint)}/requests/{job.request_id}"
    return {
        "request_id": job.request_id,
        "response_url": base,
        "status_url": f"{base}/status",
        "cancel_url": f"{base}/cancel",
    }


class Jobs:
    """The jobs an emulator remembers; forgets a result after an hour, and the oldest first when there are too many."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._bytes = 0

    def add(self, job: Job) -> None:
        """Remember a job."""
        self._jobs[job.request_id] = job
        self._bytes += job.held_bytes
        self._evict()

    async def result(self, job: Job) -> bytes:
        """Return the result of a job, computed once, so that every fetch of it gives the same."""
        async with job.result_lock:
            if job.result is None:
                job.result = encode(await job.plan.output())
                if job.request_id in self._jobs:
                    job.held_bytes += len(job.result)
                    self._bytes += len(job.result)
                    self._evict()
        return job.result

    def find(self, request_id: str) -> Job | None:
        """Return a job that is not forgotten."""
        job = self._jobs.get(request_id)
        if job is not None and self._clock() > ending(job)[0] + KEPT_SECONDS:
            self._forget(request_id)
            return None
        return job

    def waiting(self, endpoint: str) -> int:
        """Count the jobs of an endpoint that are still in the queue."""
        now = self._clock()
        return sum(job.endpoint == endpoint and look(job, now).state == "IN_QUEUE" for job in self._jobs.values())

    def _evict(self) -> None:
        while self._jobs and (len(self._jobs) > KEPT_JOBS or self._bytes > KEPT_BYTES):
            self._forget(next(iter(self._jobs)))

    def _forget(self, request_id: str) -> None:
        self._bytes -= self._jobs.pop(request_id).held_bytes


def _logs(job: Job, until: float) -> tuple[dict[str, Json], ...]:
    shown: list[dict[str, Json]] = []
    for seconds, line in job.plan.logs:
        at = job.starts_at + seconds / job.speed
        if at <= until:
            # fal's timestamps have microseconds and no zone.
            stamp = datetime.fromtimestamp(at, UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
            entry = {"timestamp": stamp, "message": line, "level": "INFO", "source": "run", "labels": {}}
            shown.append(entry)
    return tuple(shown[-LOG_WINDOW:])
