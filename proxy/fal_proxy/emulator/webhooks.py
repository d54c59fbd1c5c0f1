"""Webhooks: what fal posts about a finished job, when, and how often it tries again.

fal drops targets on private and loopback addresses; here they are allowed, because an emulator lives among them.
How fal's pauses grow is not documented: these fill the hour with the documented number of attempts.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from . import answers
from .chance import chance
from .exchange import Json
from .faults import Fault, Strike, Victim, draw
from .jobs import KEPT_JOBS, Job, ending, error_text, is_ours, look
from .journal import Deliveries, Delivery, Outcome, new_deliveries
from .posting import PostError, post, read_url
from .world import World

ATTEMPTS = 31
FIRST_TIMEOUT_SECONDS = 15.0
RETRY_TIMEOUT_SECONDS = 120.0
RESULT_SECONDS = 3600.0
LARGE_RESULT_SECONDS = 360.0
LARGE_RESULT_BYTES = 10_000
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 150.0
_LEAST_TIMEOUT_SECONDS = 2.0  # whoever receives does not get faster with --speed
_HELD_SECONDS = 600.0  # out of order with a next job that never comes
_LOOK_SECONDS = 0.1  # for a cancellation
_LEAST_WAIT_SECONDS = 0.005
_MOST_AT_ONCE = 64
_SENDER = [("User-Agent", "python-httpx/0.28.1"), ("Accept", "*/*"), ("Content-Type", "application/json")]
_NO_JSON = (
    "Response payload is not JSON serializable. "
    "Either return a JSON serializable object or use the queue endpoint to retrieve the response."
)


class _Webhook:
    """One job's outcome and the URL that waits for it; its faults do not depend on what other jobs draw."""

    def __init__(self, job: Job, url: str, faults: Sequence[Fault]) -> None:
        self.job = job
        self.url = url
        self.tried = asyncio.Event()  # the first attempt is over
        self._faults = faults
        self._rng = chance("webhook", job.request_id)
        self.strike = self.draw("webhook")

    def suffers(self, kind: str) -> bool:
        """Tell whether that fault has struck all of it."""
        return self.strike.fault is not None and self.strike.fault.kind == kind

    @property
    def notes(self) -> list[str]:
        """Name what has struck all of it, for the journal."""
        late = ["fault: webhook_late"] if self.strike.delay_seconds else []
        return [*late, f"fault: {self.strike.fault.kind}"] if self.strike.fault else late

    def draw(self, victim: Victim) -> Strike:
        """Draw what strikes it, or one attempt."""
        names = [f"queue.fal.run/{self.job.endpoint}", self.job.endpoint]
        return draw(self._faults, names, self._rng, victim)

    def stranger(self) -> str:
        """Make a request id that no submit was given."""
        return f"{self._rng.getrandbits(32):08x}-0000-4000-8000-{self._rng.getrandbits(48):012x}"


class Webhooks:
    """The deliveries of one emulator; `deliveries` holds the latest attempts as they were sent and answered."""

    def __init__(self, world: World, faults: Sequence[Fault]) -> None:
        self.deliveries: Deliveries = new_deliveries()
        self._world = world
        self._faults = faults  # the emulator's own list, which may change
        self._tasks: OrderedDict[str, asyncio.Task[None]] = OrderedDict()
        self._turns = asyncio.Semaphore(_MOST_AT_ONCE)
        self._held: asyncio.Event | None = None  # of the one that lets the next go first

    async def watch(self, job: Job, url: str) -> None:
        """Deliver the outcome of a job to a URL once it is known; the oldest is given up when there are too many.

        Returns at once, or, when a fault wants it early, after the first attempt: the job is over then.
        """
        webhook = _Webhook(job, url, tuple(self._faults))
        early = webhook.suffers("webhook_early")
        if early:
            job.queue_seconds = job.run_seconds = 0.0
        self._tasks[job.request_id] = task = asyncio.create_task(self._tell(webhook))
        task.add_done_callback(lambda _: self._forget(webhook))
        if len(self._tasks) > KEPT_JOBS:
            self._tasks.popitem(last=False)[1].cancel()
        if early:
            await webhook.tried.wait()

    async def close(self) -> None:
        """Give up what is not delivered yet."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, webhook: _Webhook) -> None:
        webhook.tried.set()  # whoever waits must not wait for one that was given up
        self._tasks.pop(webhook.job.request_id, None)

    async def _tell(self, webhook: _Webhook) -> None:
        world, job = self._world, webhook.job
        await self._over(job)
        await asyncio.sleep(webhook.strike.delay_seconds / world.speed)
        if webhook.suffers("webhook_disorder") and self._held is None:
            await self._let_the_next_go_first()
        for number in range(1, ATTEMPTS + 1):
            small = job.result is None or len(job.result) < LARGE_RESULT_BYTES
            expires = ending(job)[0] + (RESULT_SECONDS if small else LARGE_RESULT_SECONDS) / world.speed
            pause = min(_FIRST_PAUSE_SECONDS * 2 ** (number - 1), _LONGEST_PAUSE_SECONDS) / world.speed
            last = number == ATTEMPTS or world.clock() + pause > expires
            copies = await self._attempt(webhook, number, last=last)
            if number == 1:
                webhook.tried.set()
                if self._held is not None:
                    self._held.set()
            if any(copy.outcome != "retry" for copy in copies):
                return
            await asyncio.sleep(pause)

    async def _over(self, job: Job) -> None:
        """Return when a job has ended, however."""
        while True:
            ahead = ending(job)[0] - self._world.clock()
            if ahead <= 0:
                return
            await asyncio.sleep(min(max(ahead, _LEAST_WAIT_SECONDS), _LOOK_SECONDS))

    async def _let_the_next_go_first(self) -> None:
        self._held = held = asyncio.Event()
        try:
            async with asyncio.timeout(_HELD_SECONDS / self._world.speed):
                await held.wait()
        except TimeoutError:
            pass
        finally:
            self._held = None

    async def _attempt(self, webhook: _Webhook, number: int, *, last: bool) -> list[Delivery]:
        """Make one attempt and return how it went, twice if the fault says so."""
        now = self._world.clock()
        fault = webhook.draw("attempt").fault
        kind, argument = (fault.kind, fault.argument) if fault is not None else (None, None)
        request_id = webhook.stranger() if kind == "webhook_unknown" else webhook.job.request_id
        body = await message(self._world, webhook.job, request_id)
        if kind == "webhook_huge":
            body = _padded(body, int(argument or 0))
        if kind == "webhook_rotated":
            self._world.signer.rotate()
        signed_at = int(now - (argument or 0)) if kind == "webhook_expired" else int(now)
        headers = self._world.signer.headers(request_id, body, signed_at, forged=kind == "webhook_forged")
        notes = [*webhook.notes, *([f"fault: {kind}"] if kind else [])]
        delivery = Delivery(request_id, webhook.url, number, now, [*_SENDER, *headers], notes=notes)
        delivery.record(body)
        copies = [delivery]
        if number == 1 and webhook.suffers("webhook_twice"):
            copies.append(replace(delivery, notes=list(notes), done=asyncio.Event()))
        self.deliveries.extend(copies)
        cut = None
        if kind == "webhook_truncated":
            cut = len(body) // 2 if argument is None else int(argument)
        seconds = FIRST_TIMEOUT_SECONDS if number == 1 else RETRY_TIMEOUT_SECONDS
        seconds = max(seconds / self._world.speed, _LEAST_TIMEOUT_SECONDS)
        await asyncio.gather(*(self._send(copy, body, seconds, cut, last=last) for copy in copies))
        return copies

    async def _send(self, delivery: Delivery, body: bytes, seconds: float, cut: int | None, *, last: bool) -> None:
        outcome: Outcome = "given_up" if last else "retry"
        try:
            to = read_url(delivery.url)
            async with self._turns:
                status = await post(to, delivery.headers, body, timeout_seconds=seconds, cut_after_bytes=cut)
        except ValueError as error:
            delivery.error, outcome = str(error), "permanent"
        except PostError as error:
            delivery.error = str(error)
        else:
            delivery.status = status
            if 200 <= status < 400:
                outcome = "delivered" if status < 300 else "permanent"
        delivery.outcome = outcome
        delivery.done.set()


async def message(world: World, job: Job, request_id: str) -> bytes:
    """Return the body that tells how a completed job ended."""
    failure = look(job, world.clock()).failure
    told: dict[str, Json] = {"request_id": request_id, "gateway_request_id": request_id}
    if failure is None:
        return _with_payload({**told, "status": "OK"}, await world.jobs.result(job))
    told |= {"status": "ERROR", "error": error_text(failure)}
    # The infrastructure's own failures have no answer of a model to show.
    return answers.encode(told) if is_ours(failure) else _with_payload(told, answers.encode(failure.body))


def _with_payload(told: dict[str, Json], payload: bytes) -> bytes:
    try:
        json.loads(payload, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return answers.encode({**told, "payload": None, "payload_error": _NO_JSON})
    # The very bytes that the result URL gives.
    return answers.encode(told)[:-1] + b',"payload":' + payload + b"}"


def _padded(body: bytes, size: int) -> bytes:
    opening, closing = b',"padding":"', b'"}'
    return body[:-1] + opening + b"." * (size - len(body) - len(opening) - 1) + closing


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
