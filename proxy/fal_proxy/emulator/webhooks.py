"""Webhooks: what fal posts about a finished job, when, and how often it tries again.

fal drops targets on private and loopback addresses; here they are allowed, because an emulator lives among them.
How fal's pauses grow is not documented: these fill the hour with the documented number of attempts.
"""

import asyncio
import json
from collections import OrderedDict
from typing import NoReturn

from . import answers
from .exchange import Json
from .jobs import KEPT_JOBS, Job, ending, error_text, is_ours, look
from .journal import Deliveries, Delivery, new_deliveries
from .posting import Destination, PostError, post, read_url
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
_LOOK_SECONDS = 0.1  # for a cancellation
_LEAST_WAIT_SECONDS = 0.005
_MOST_AT_ONCE = 64
_SENDER = [("User-Agent", "python-httpx/0.28.1"), ("Accept", "*/*"), ("Content-Type", "application/json")]
_NO_JSON = (
    "Response payload is not JSON serializable. "
    "Either return a JSON serializable object or use the queue endpoint to retrieve the response."
)


class Webhooks:
    """The deliveries of one emulator; `deliveries` holds the latest attempts as they were sent and answered."""

    def __init__(self, world: World) -> None:
        self.deliveries: Deliveries = new_deliveries()
        self._world = world
        self._tasks: OrderedDict[str, asyncio.Task[None]] = OrderedDict()
        self._turns = asyncio.Semaphore(_MOST_AT_ONCE)

    def watch(self, job: Job, url: str) -> None:
        """Deliver the outcome of a job to a URL once it is known; the oldest is given up when there are too many."""
        self._tasks[job.request_id] = task = asyncio.create_task(self._tell(job, url))
        task.add_done_callback(lambda _: self._tasks.pop(job.request_id, None))
        if len(self._tasks) > KEPT_JOBS:
            self._tasks.popitem(last=False)[1].cancel()

    async def close(self) -> None:
        """Give up what is not delivered yet."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self, job: Job, url: str) -> None:
        world = self._world
        while True:
            ahead = ending(job)[0] - world.clock()
            if ahead <= 0:
                break
            await asyncio.sleep(min(max(ahead, _LEAST_WAIT_SECONDS), _LOOK_SECONDS))
        for number in range(1, ATTEMPTS + 1):
            body = await outcome(world, job)
            small = job.result is None or len(job.result) < LARGE_RESULT_BYTES
            expires = ending(job)[0] + (RESULT_SECONDS if small else LARGE_RESULT_SECONDS) / world.speed
            pause = min(_FIRST_PAUSE_SECONDS * 2 ** (number - 1), _LONGEST_PAUSE_SECONDS) / world.speed
            last = number == ATTEMPTS or world.clock() + pause > expires
            delivery = await self._attempt(job, url, number, body, last=last)
            if delivery.outcome != "retry":
                return
            await asyncio.sleep(pause)

    async def _attempt(self, job: Job, url: str, number: int, body: bytes, *, last: bool) -> Delivery:
        now = self._world.clock()
        headers = [*_SENDER, *self._world.signer.headers(job.request_id, body, int(now))]
        delivery = Delivery(job.request_id, url, number, now, headers)
        delivery.record(body)
        self.deliveries.append(delivery)
        seconds = FIRST_TIMEOUT_SECONDS if number == 1 else RETRY_TIMEOUT_SECONDS
        seconds = max(seconds / self._world.speed, _LEAST_TIMEOUT_SECONDS)
        await self._post(delivery, body, seconds)
        if delivery.outcome is None:
            delivery.outcome = "given_up" if last else "retry"
        delivery.done.set()
        return delivery

    async def _post(self, delivery: Delivery, body: bytes, timeout_seconds: float) -> None:
        try:
            to: Destination = read_url(delivery.url)
        except ValueError as error:
            delivery.error, delivery.outcome = str(error), "permanent"
            return
        try:
            async with self._turns:
                status = await post(to, delivery.headers, body, timeout_seconds=timeout_seconds)
        except PostError as error:
            delivery.error = str(error)
            return
        delivery.status = status
        if 200 <= status < 400:
            delivery.outcome = "delivered" if status < 300 else "permanent"


async def outcome(world: World, job: Job) -> bytes:
    """Return the body that tells how a completed job ended."""
    failure = look(job, world.clock()).failure
    told: dict[str, Json] = {"request_id": job.request_id, "gateway_request_id": job.request_id}
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


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
