"""fal.run: a model called and waited for, whole or as a stream. Also what the queue shares with it: plans and answers.

Knows which model serves an endpoint and how its outcome looks on the wire; knows nothing of queues.
"""

import asyncio
import json
from collections.abc import AsyncGenerator

from . import answers
from .addresses import Address, path_of
from .answers import Answer, Headers
from .exchange import Exchange, Json
from .jobs import START_TIMEOUT
from .models import Call, Failure, InvalidInputError, Plan, find_model
from .models.developer import echo
from .models.plan import constant
from .models.schema import problem
from .world import World

_INVALID_SECONDS = 0.1
_SPLIT_PAUSE_SECONDS = 0.02
_HIDDEN_HEADERS = frozenset({"authorization", "proxy-authorization"})


async def run(world: World, exchange: Exchange, address: Address) -> Answer:
    """Serve a synchronous call."""
    if exchange.method != "POST" and find_model(address.endpoint) is not echo:
        return answers.detail(405, "Method Not Allowed", [("allow", "POST")])
    plan = make_plan(world, exchange, address.endpoint, await exchange.body())
    request_id = world.new_id()
    headers = runner_headers(world, request_id)
    if plan.failure is None and plan.large_body is not None:
        world.bills.add(request_id, address.endpoint, plan.units)
        framing = [("content-type", "application/json"), ("x-fal-billable-units", plan.units)]
        return Answer(200, [*framing, *headers], plan.large_body())
    if plan.failure is None or plan.failure.status != 422:
        await asyncio.sleep(plan.run_seconds / world.speed)
    if plan.failure is not None:
        return failure_answer(plan.failure, headers)
    output = await plan.output()
    world.bills.add(request_id, address.endpoint, plan.units)
    return answers.json_answer(200, output, [("x-fal-billable-units", plan.units), *headers])


async def stream(world: World, exchange: Exchange, address: Address) -> Answer:
    """Serve a call as server-sent events; what fails, fails before the first byte."""
    if exchange.method != "POST":
        return answers.detail(405, "Method Not Allowed", [("allow", "POST")])
    plan = make_plan(world, exchange, address.endpoint, await exchange.body())
    request_id = world.new_id()
    headers = runner_headers(world, request_id)
    if plan.failure is not None:
        return failure_answer(plan.failure, headers)
    if plan.events is None:
        route = f"{path_of(address.endpoint).rstrip('/')}/stream"
        return answers.detail(404, f"Path {route} not found", [("x-fal-billable-units", "0"), *headers])
    events = _events(plan, world.speed)
    # No units here: they would have to be known before the first byte. It is billed all the same.
    world.bills.add(request_id, address.endpoint, plan.units)
    return answers.event_stream(_split(events) if plan.split_writes else events, headers)


def make_plan(world: World, exchange: Exchange, endpoint: str, body: bytes) -> Plan:
    """Ask the model what it will do with a request; what it refuses becomes a plan that fails with 422."""
    try:
        given = json.loads(body) if body.strip() else None
    except (ValueError, RecursionError) as error:
        place = error.pos if isinstance(error, json.JSONDecodeError) else 0
        why = error.msg if isinstance(error, json.JSONDecodeError) else "Invalid text"
        return _refusal([problem(("body", place), "JSON decode error", "json_invalid", {}, {"error": why})])
    try:
        return ask_model(world, exchange, endpoint, given)
    except InvalidInputError as refused:
        return _refusal(refused.problems)


def ask_model(world: World, exchange: Exchange, endpoint: str, given: Json) -> Plan:
    """Ask the model what it will do with a decoded input; raises InvalidInputError."""
    shown = {name: value for name, value in exchange.headers.items() if name not in _HIDDEN_HEADERS}
    query = {name: value for name, value in exchange.query.items() if name != "fal_jwt_token"}
    return find_model(endpoint)(Call(endpoint, exchange.method, query, shown, given, world.rng, world.files))


def runner_headers(world: World, request_id: str) -> Headers:
    """Return the headers every answer of a runner carries."""
    return [("x-fal-request-id", request_id), ("x-fal-served-from", f"{world.rng.getrandbits(64):016x}")]


def failure_answer(failure: Failure, headers: Headers) -> Answer:
    """Answer with a failure, the way run and the result of a queued request show it."""
    extra: Headers = []
    if failure.status == 422:
        extra.append(("x-fal-billable-units", "0"))
    if failure.error_type is not None and failure.error_type.isascii() and failure.error_type.isprintable():
        extra.append(("x-fal-error-type", failure.error_type))
    if failure is START_TIMEOUT:
        extra.append(("x-fal-request-timeout-type", "user"))
    return answers.json_answer(failure.status, failure.body, [*extra, *headers])


def _refusal(problems: list[dict[str, object]]) -> Plan:
    failure = Failure(422, {"detail": problems})
    return Plan(run_seconds=_INVALID_SECONDS, output=constant(None), units="0", failure=failure)


async def _events(plan: Plan, speed: float) -> AsyncGenerator[bytes, None]:
    time = asyncio.get_running_loop().time
    started = time()
    for event in plan.events or ():
        ahead = event.at_seconds / speed - (time() - started)
        if ahead > 0:
            await asyncio.sleep(ahead)
        yield answers.event(await event.output(), named=plan.named_events)


async def _split(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async for event in events:
        # The first continuation byte of UTF-8: cutting before it leaves half a character on either side.
        cut = next((at for at, byte in enumerate(event) if byte & 0xC0 == 0x80), len(event) // 2)
        yield event[:cut]
        await asyncio.sleep(_SPLIT_PAUSE_SECONDS)
        yield event[cut:]
