"""The canonical line: one JSON object per exchange, to `AccessLog.outlet` or else on the logger `fal_proxy.access`, INFO.

`AccessLine` is the one list of what may be said. Never: a query, a header field, a body, a caller's id.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Protocol

import msgspec

from fal_proxy.exchange import Exchange, Payer
from fal_proxy.loading import says

LOGGER = "fal_proxy.access"
ENDPOINT_CHARS = 200
REASON_CHARS = 300
PLAN_CHARS = 64
REQUEST_ID_CHARS = 128

_NOBODY = Payer()
_log = logging.getLogger(LOGGER)


class AccessLine(msgspec.Struct, frozen=True):
    """One exchange as people and their tools read it; null is what did not come to be."""

    ts: Annotated[datetime, says("when it ended, UTC")]
    id: Annotated[str, says("of this exchange, random")]
    caller: Annotated[str | None, says("short hash of the caller's id")]
    source: Annotated[str | None, says("the identity source that knew the caller")]
    plan: Annotated[str | None, says("the caller's plan")]
    kind: Annotated[
        str,
        says(
            "run, stream, submit …; `preflight`; `none`: target not understood; `settled`: no request, a charge alone"
        ),
    ]
    endpoint: Annotated[str | None, says("the endpoint, at most 200 characters; no query")]
    request_id: Annotated[str | None, says("fal's id of the job or the answer, at most 128 characters")]
    decision: Annotated[str, says("`admitted`, or the `error_type` of the proxy's own answer")]
    reason: Annotated[str | None, says("why it was refused or cut; of some `settled`, why nobody else told of it")]
    status: Annotated[int | None, says("of the answer; null: the caller left before one")]
    bytes_up: Annotated[int, says("of the request body, sent to fal")]
    bytes_down: Annotated[int, says("of the answer's body, sent to the caller")]
    dial_ms: Annotated[float | None, says("to open a connection; null: one was reused, or none was needed")]
    first_byte_ms: Annotated[float | None, says("until fal's answer began")]
    total_ms: Annotated[float, says("until the end")]
    units: Annotated[str | None, says("what fal says it billed (`x-fal-billable-units`)")]
    cost_microusd: Annotated[int | None, says("what this changed of the caller's charge, in millionths of a dollar")]
    ending: Annotated[str, says("`complete`, `refused`, `cut`, `client_gone` or `fault`")]


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Outlet(Protocol):
    """Whoever takes lines in place of the logger."""

    def put(self, line: str, /) -> None:
        """Take one line."""

    def flush(self) -> None:
        """Let what was taken reach its reader."""


class AccessLog:
    """Writes lines, for as long as somebody listens: to `outlet`, else to the logger, whose records cost twice as much."""

    def __init__(self, now: Callable[[], datetime] = _utc_now) -> None:
        self.outlet: Outlet | None = None
        self.now = now
        self._encode = msgspec.json.Encoder().encode

    def write(self, exchange: Exchange) -> None:
        """Write one line."""
        if self.outlet is not None:
            self.outlet.put(self._encode(line_of(exchange, exchange.ended_at or self.now())).decode())
        elif _log.isEnabledFor(logging.INFO):
            _log.info(self._encode(line_of(exchange, exchange.ended_at or self.now())).decode())

    def flush(self) -> None:
        """Let what was written reach its reader."""
        for handler in _log.handlers if self.outlet is None else [self.outlet]:
            handler.flush()


def line_of(exchange: Exchange, now: datetime) -> AccessLine:
    """Return what may be said about an exchange."""
    caller, payer = exchange.caller, exchange.payer or _NOBODY
    return AccessLine(
        ts=now,
        id=exchange.id,
        caller=caller.shown if caller else payer.caller or None,
        source=caller.source if caller else payer.source or None,
        plan=_printable(exchange.plan or "", PLAN_CHARS),
        kind=exchange.kind_shown,
        endpoint=_printable(exchange.endpoint_id, ENDPOINT_CHARS),
        request_id=_printable(exchange.request_id, REQUEST_ID_CHARS),
        decision=exchange.decision,
        reason=_printable(exchange.reason, REASON_CHARS),
        status=exchange.status,
        bytes_up=exchange.bytes_up,
        bytes_down=exchange.bytes_down,
        dial_ms=None if exchange.dialled_seconds is None else _milliseconds(exchange.dialled_seconds),
        first_byte_ms=None if exchange.first_byte_seconds is None else _milliseconds(exchange.first_byte_seconds),
        total_ms=_milliseconds(exchange.ended_seconds or 0.0),
        units=exchange.units,
        cost_microusd=exchange.cost_microusd,
        ending=exchange.ending._value_,
    )


def _printable(text: str, limit_chars: int) -> str | None:
    """Return a text that cannot steer a terminal: JSON escapes C0 alone, and leaves DEL, C1 and bidirectional marks."""
    text = text[:limit_chars]
    if not text.isprintable():
        text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text or None


def _milliseconds(seconds: float) -> float:
    return int(seconds * 1e6 + 0.5) / 1000  # `round` takes ten times as long
