"""What a model is to the emulator: a function from one call to a plan of what will happen, when, and what it yields.

A plan is made at once and costs nothing; its output is computed only when somebody asks for it.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from ..exchange import Json
from ..files import Files

Output = Callable[[], Awaitable[Json]]


@dataclass(frozen=True)
class Call:
    """One call of a model; the headers are those of the request, without credentials."""

    endpoint: str
    method: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    input: Json
    rng: Random
    files: Files


@dataclass(frozen=True)
class Failure:
    """The answer of a call that fails: any status, any JSON."""

    status: int
    body: Json
    error_type: str | None = None


@dataclass(frozen=True)
class Event:
    """One event of a stream, so many seconds after the start."""

    at_seconds: float
    output: Output


@dataclass(frozen=True)
class Plan:
    """How long a call takes, what it says meanwhile and what comes out; durations before --speed."""

    run_seconds: float
    output: Output
    units: str = "1"
    queue_seconds: float | None = None  # None: as busy as usual
    logs: tuple[tuple[float, str], ...] = ()  # (seconds after the start, line)
    failure: Failure | None = None
    events: tuple[Event, ...] | None = None  # None: the model has no /stream
    named_events: bool = False
    split_writes: bool = False  # cut the stream into writes that end inside a multi-byte character
    held_bytes: int = 0  # what the plan keeps of its input's files
    large_body: Callable[[], AsyncGenerator[bytes, None]] | None = field(default=None, compare=False)


Model = Callable[[Call], Plan]


def constant(value: Json) -> Output:
    """Return an output that is already known."""

    async def output() -> Json:
        return value

    return output
