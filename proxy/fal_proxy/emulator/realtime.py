"""The realtime route of an app: msgpack in both directions, JSON text for control, as the runner of fal's SDK serves it.

A newer input pushes out an older one that waits. Whatever ends well ends in TIMEOUT, because the runner says so of every
clean end. Knows nothing of handshakes, tokens or bills.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from .addresses import Address, glob
from .exchange import Json
from .inference import ask_model
from .models import InvalidInputError, Plan
from .models.schema import Problem
from .sockets import Socket
from .world import World

BUFFERING = (1, 60)  # what clients may ask for

_TIMEOUT = {"type": "x-fal-error", "error": "TIMEOUT", "reason": "no inputs, reconnect when needed!"}


@dataclass(frozen=True)
class Route:
    """What an app's author chose: how many inputs may wait, how long silence may last (None: for ever), timings or not."""

    buffering: int = BUFFERING[1]
    idle_seconds: float | None = None
    timings: bool = False
    streaming: bool = False  # one input, many outputs, the end


_ROUTES = (
    (glob("*/lcm-sd15-i2i"), Route(buffering=1, timings=True)),
    (glob("emulator/idle"), Route(idle_seconds=5.0)),
    (glob("emulator/stream"), Route(streaming=True)),
)


class RunnerError(Exception):
    """The app failed; the text is the `reason` that the client is shown."""


def find_route(endpoint: str) -> Route:
    """Return how an endpoint's realtime route is set up."""
    return next((route for pattern, route in _ROUTES if pattern.fullmatch(endpoint)), Route())


async def serve(world: World, socket: Socket, address: Address, max_buffering: int | None) -> None:
    """Serve an accepted socket to its end; `max_buffering` is the client's own bound on waiting inputs."""
    route = find_route(address.endpoint)
    runner = _Runner(world, socket, address, route, max_buffering or route.buffering)
    try:
        await (runner.stream() if route.streaming else runner.converse())
    except RunnerError as error:
        await socket.send_json({"type": "x-fal-error", "error": "INTERNAL_ERROR", "reason": str(error)})
    else:
        await socket.send_json(_TIMEOUT)
    await socket.close()


class _Runner:
    def __init__(self, world: World, socket: Socket, address: Address, route: Route, buffering: int) -> None:
        self._world = world
        self._socket = socket
        self._endpoint = address.endpoint
        self._route = route
        self._inputs: deque[Plan] = deque(maxlen=buffering)
        self._changed = asyncio.Event()

    async def converse(self) -> None:
        """Answer inputs one after the other, while a task of its own takes new ones; return after a long silence."""
        reading = asyncio.create_task(self._read())
        reading.add_done_callback(lambda _: self._changed.set())
        answering = asyncio.create_task(self._answer_all(reading))
        try:
            await asyncio.wait({reading, answering}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()  # a bad input ends the session although an answer may be on its way
            await answering  # the answers of what came before the silence
        finally:
            reading.cancel()
            answering.cancel()
            await asyncio.gather(reading, answering, return_exceptions=True)

    async def stream(self) -> None:
        """Answer one input with every event of the model's stream."""
        plan = await self._next()
        if plan is None:
            return
        if plan.failure is not None:
            raise RunnerError(_reason(plan))
        time = asyncio.get_running_loop().time
        started = time()
        for event in plan.events or ():
            ahead = event.at_seconds / self._world.speed - (time() - started)
            await self._socket.while_open(asyncio.sleep(ahead))
            await self._send(await event.output())
        if self._route.timings:
            await self._send_timing(time() - started)

    async def _read(self) -> None:
        while (plan := await self._next()) is not None:
            self._inputs.append(plan)
            self._changed.set()

    async def _next(self) -> Plan | None:
        """Return the plan for the next input, None after a long silence."""
        idle = self._route.idle_seconds
        try:
            async with asyncio.timeout(None if idle is None else idle / self._world.speed):
                message = await self._socket.receive()
        except TimeoutError:
            return None
        if isinstance(message, str):
            raise RunnerError("'bytes'")  # the runner takes the frame's bytes, and Python's KeyError says no more
        try:
            given = msgspec.msgpack.decode(message)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise RunnerError(f"Unpack failed: {error}") from error
        if not isinstance(given, Mapping):
            raise RunnerError(f"argument after ** must be a mapping, not {type(given).__name__}")
        if not all(isinstance(name, str) for name in given):
            raise RunnerError("keywords must be strings")
        try:
            return ask_model(self._world, self._socket.exchange, self._endpoint, given)
        except InvalidInputError as refused:
            raise RunnerError(_complaint(refused.problems)) from refused

    async def _answer_all(self, reading: asyncio.Task[None]) -> None:
        time = asyncio.get_running_loop().time
        while True:
            while not self._inputs:
                if reading.done():
                    return
                self._changed.clear()
                await self._changed.wait()
            plan = self._inputs.popleft()
            started = time()
            if plan.failure is not None:
                raise RunnerError(_reason(plan))
            await asyncio.sleep(plan.run_seconds / self._world.speed)
            await self._send(await _output(plan))
            if self._route.timings:
                await self._send_timing(time() - started)

    async def _send(self, output: Json) -> None:
        try:
            message = msgspec.msgpack.encode(output)
        except (OverflowError, TypeError, ValueError) as error:  # an echoed number may be larger than msgpack's
            raise RunnerError(str(error)) from error
        await self._socket.send(message)

    async def _send_timing(self, seconds: float) -> None:
        await self._socket.send_json({"type": "x-fal-message", "action": "timings", "timing": seconds})


async def _output(plan: Plan) -> Json:
    try:
        return await plan.output()
    except (OSError, ValueError) as error:  # Pillow's, of a picture that is broken below its head
        raise RunnerError(str(error)) from error


def _reason(plan: Plan) -> str:
    body = plan.failure.body if plan.failure is not None else None
    said = body.get("detail", body) if isinstance(body, dict) else body
    return said if isinstance(said, str) else str(said)


def _complaint(problems: list[Problem]) -> str:
    """Say what pydantic's ValidationError says as text."""
    count = f"{len(problems)} validation error{'' if len(problems) == 1 else 's'} for Input"
    lines = [
        f"{'.'.join(str(part) for part in problem['loc'][1:])}\n"
        f"  {problem['msg']} [type={problem['type']}, input_type={type(problem['input']).__name__}]"
        for problem in problems
    ]
    return "\n".join([count, *lines])
