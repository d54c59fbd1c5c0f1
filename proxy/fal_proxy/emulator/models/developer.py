"""Models that no app wants and every developer needs: echo, slow, fail, split, large."""

import json
from collections.abc import AsyncGenerator

from ..exchange import Json
from .plan import Call, Event, Failure, Plan, constant
from .schema import Field, boolean, integer, number, validate

ECHO_SECONDS = 0.3
_MULTI_BYTE = "žluťoučký kůň 🐎 日本語 — ünïcödé"
_LONGEST_SECONDS = 24 * 3600
_LARGE_PIECE = b"fal-proxy emulator " * 3449  # just under 64 KiB


def echo(call: Call) -> Plan:
    """Give back the input and what else was seen of the request; serves every endpoint id without a model."""
    seen = {
        "endpoint": call.endpoint,
        "method": call.method,
        "query": dict(call.query),
        "headers": dict(call.headers),
        "input": call.input,
    }
    steps = 4
    events = [_progress(step, steps) for step in range(steps)]
    return Plan(
        run_seconds=ECHO_SECONDS,
        output=constant(seen),
        logs=((0.0, f"echo: {call.endpoint}"), (ECHO_SECONDS / 2, "echo: done")),
        events=(*events, Event(ECHO_SECONDS, constant({**seen, "partial": False}))),
    )


def slow(call: Call) -> Plan:
    """Last `seconds`, after `queue_seconds` in the queue; the stream says one word, is silent, and ends."""
    fields = (
        Field("seconds", number(0, _LONGEST_SECONDS), default=5.0),
        Field("queue_seconds", number(0, _LONGEST_SECONDS)),
        Field("chatty", boolean, default=False),
    )
    given = validate(fields, call.input or {})
    seconds = float(given["seconds"])
    beats = range(1, min(int(seconds), 3600)) if given["chatty"] else range(0)
    done = constant({"seconds": seconds, "partial": False})
    return Plan(
        run_seconds=seconds,
        output=constant({"seconds": seconds}),
        queue_seconds=given["queue_seconds"],
        logs=tuple((float(beat), f"{beat} s") for beat in range(min(int(seconds), 3600))),
        events=(
            Event(0, constant({"seconds": 0, "partial": True})),
            *(Event(beat, constant({"seconds": beat, "partial": True})) for beat in beats),
            Event(seconds, done),
        ),
    )


def fail(call: Call) -> Plan:
    """Fail with exactly the given `status` and JSON `body`."""
    given = validate((Field("status", integer(400, 599), default=500),), call.input or {})
    status: int = given["status"]
    body: Json = call.input["body"] if call.input and "body" in call.input else {"detail": "Internal Server Error"}
    error_type = body.get("error_type") if isinstance(body, dict) else None
    failure = Failure(status, body, error_type if isinstance(error_type, str) else None)
    return Plan(
        run_seconds=ECHO_SECONDS,
        output=constant(None),
        # fal shows an unhandled error of an app as a log line that holds the traceback as JSON.
        logs=((ECHO_SECONDS, json.dumps({"traceback": f"emulator/fail: status {status}"})),),
        failure=failure,
        events=(),
    )


def split(call: Call) -> Plan:
    """Stream text in writes that end inside a multi-byte character and inside an event."""
    events = [Event(step * 0.1, constant({"output": _MULTI_BYTE * (step + 1), "partial": True})) for step in range(4)]
    final = {"output": _MULTI_BYTE * 5, "partial": False}
    last = Event(0.4, constant(final))
    return Plan(run_seconds=0.4, output=constant(final), events=(*events, last), split_writes=True)


def large(call: Call) -> Plan:
    """Answer run with a JSON document of about `bytes` bytes that is never held in memory."""
    given = validate((Field("bytes", integer(0, 16 * 1024**3), default=1024 * 1024),), call.input or {})
    total: int = given["bytes"]

    async def body() -> AsyncGenerator[bytes, None]:
        yield b'{"padding":"'
        left = total
        while left > 0:
            yield _LARGE_PIECE[:left]
            left -= len(_LARGE_PIECE)
        yield b'"}'

    return Plan(run_seconds=0.0, output=constant({"bytes": total}), large_body=body)


def _progress(step: int, steps: int) -> Event:
    return Event(
        ECHO_SECONDS * step / steps, constant({"partial": True, "progress": step / steps, "text": _MULTI_BYTE})
    )
