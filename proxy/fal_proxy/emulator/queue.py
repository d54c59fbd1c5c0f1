"""queue.fal.run: submit, status, status stream, result, cancel. Where a job stands is computed in jobs.py."""

import asyncio
from collections.abc import AsyncGenerator

from . import answers
from .addresses import Address
from .answers import Answer
from .exchange import Exchange, Json
from .inference import failure_answer, make_plan, runner_headers
from .jobs import Job, Standing, cancel, describe, ending, look, urls
from .webhooks import Webhooks
from .world import World

QUEUE_SECONDS = 0.8
PING_SECONDS = 15.0
_MOST_AHEAD = 3
_REPEAT_SECONDS = 0.5  # a status stream looks this often
_LEAST_WAIT_SECONDS = 0.005
_METHODS = {"submit": "POST", "status": "GET", "status_stream": "GET", "result": "GET", "cancel": "PUT"}


async def serve(world: World, webhooks: Webhooks, exchange: Exchange, address: Address) -> Answer:
    """Serve one operation on the queue."""
    if exchange.method != _METHODS[address.kind]:
        return answers.detail(405, "Method Not Allowed", [("allow", _METHODS[address.kind])])
    if address.kind == "submit":
        return await _submit(world, webhooks, exchange, address)
    job = world.jobs.find(address.request_id)
    if job is None:
        return answers.queue_state(404, "NOT_FOUND")
    if address.kind == "cancel":
        status, word = cancel(job, world.clock())
        return answers.queue_state(status, word)
    if address.kind == "result":
        return await _result(world, job)
    logs = exchange.query.get("logs", "").lower() in ("1", "true")
    if address.kind == "status_stream":
        return answers.event_stream(_follow(world, job, logs=logs))
    standing = look(job, world.clock())
    return answers.json_answer(200 if standing.state == "COMPLETED" else 202, describe(job, standing, logs=logs))


async def _submit(world: World, webhooks: Webhooks, exchange: Exchange, address: Address) -> Answer:
    body = await exchange.body()
    longest = exchange.query.get("fal_max_queue_length", "")
    if longest.isdecimal() and world.jobs.waiting(address.endpoint) > int(longest):
        return answers.detail(429, f"The queue of {address.endpoint} is longer than {longest}.")
    # The gateway takes any body: what is wrong with it is the runner's to find, so it shows on the result.
    plan = make_plan(world, exchange, address.endpoint, body)
    queue_seconds = QUEUE_SECONDS * world.rng.uniform(0.7, 1.3) if plan.queue_seconds is None else plan.queue_seconds
    job = Job(
        request_id=world.new_id(),
        endpoint=address.endpoint,
        plan=plan,
        created_at=world.clock(),
        queue_seconds=queue_seconds / world.speed,
        run_seconds=plan.run_seconds / world.speed,
        speed=world.speed,
        position=world.rng.randint(0, _MOST_AHEAD),
        start_timeout_seconds=_start_timeout(exchange, world.speed),
        held_bytes=len(body) + plan.held_bytes,
    )
    world.jobs.add(job)
    world.bills.watch(job)
    accepted: dict[str, Json] = {
        "status": "IN_QUEUE",
        **urls(job),
        "logs": None,
        "metrics": {},
        "queue_position": job.position,
    }
    if webhook := exchange.query.get("fal_webhook"):
        accepted["gateway_request_id"] = job.request_id
        await webhooks.watch(job, webhook)
    return answers.json_answer(200, accepted, [("x-fal-request-id", job.request_id)])


async def _result(world: World, job: Job) -> Answer:
    standing = look(job, world.clock())
    if standing.state != "COMPLETED":
        return answers.detail(400, "Request is still in progress")
    headers = runner_headers(world, job.request_id)
    if standing.failure is not None:
        return failure_answer(standing.failure, headers)
    result = await world.jobs.result(job)
    framing = [("content-type", "application/json"), ("x-fal-billable-units", job.plan.units)]
    return Answer(200, [*framing, *headers], result)


async def _follow(world: World, job: Job, *, logs: bool) -> AsyncGenerator[bytes, None]:
    """Yield the status whenever it has changed, a comment every 15 s, and end after COMPLETED."""
    time = asyncio.get_running_loop().time
    ping_at = time() + PING_SECONDS / world.speed
    shown: Standing | None = None
    while True:
        standing = look(job, world.clock())
        if standing != shown:
            shown = standing
            yield answers.event(describe(job, standing, logs=logs))
        if standing.state == "COMPLETED":
            return
        now = world.clock()
        # Wake for the next thing that is known to happen, and now and then for a cancellation.
        known = [at - now for at in (job.starts_at, ending(job)[0]) if at > now]
        wait = min(_REPEAT_SECONDS / world.speed, ping_at - time(), *known)
        await asyncio.sleep(max(wait, _LEAST_WAIT_SECONDS))
        if time() >= ping_at:
            ping_at = time() + PING_SECONDS / world.speed
            yield b": ping\n\n"


def _start_timeout(exchange: Exchange, speed: float) -> float | None:
    """Read the caller's deadline for the start: the newer header wins, nonsense is ignored."""
    for name in ("x-fal-request-start-timeout", "x-fal-request-timeout"):
        text = exchange.headers.get(name)
        if text is not None:
            try:
                seconds = float(text)
            except ValueError:
                return None
            return seconds / speed if 0.1 < seconds < float("inf") else None
    return None
