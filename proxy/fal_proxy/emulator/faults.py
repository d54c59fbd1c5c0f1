"""Faults on purpose: the grammar of --faults, and which of them strike a given request.

GLOB:KIND[=ARG][@P], separated by ';'. GLOB is matched against the endpoint id and against host/path. Every matching
fault is drawn with probability P (1 when absent); delays add up, of the others the first drawn wins. A kind strikes
only what can suffer it: a request, a WebSocket, a webhook once for all its attempts, or each attempt to deliver it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

from .addresses import glob

FaultKind = Literal[
    "status",
    "delay",
    "reset",
    "stall",
    "truncate",
    "nginx502",
    "gzip",
    "drop",
    "garbage",
    "oversized",
    "close",
    "webhook_late",
    "webhook_early",
    "webhook_twice",
    "webhook_disorder",
    "webhook_forged",
    "webhook_unknown",
    "webhook_expired",
    "webhook_rotated",
    "webhook_huge",
    "webhook_truncated",
]
Victim = Literal["request", "socket", "webhook", "attempt"]

_BOTH: tuple[FaultKind, ...] = ("status", "delay", "reset", "stall", "truncate", "nginx502")
_SUFFERED: dict[Victim, tuple[FaultKind, ...]] = {
    "request": (*_BOTH, "gzip"),
    "socket": (*_BOTH, "drop", "garbage", "oversized", "close"),
    "webhook": ("webhook_late", "webhook_early", "webhook_twice", "webhook_disorder"),
    "attempt": (
        "webhook_forged",
        "webhook_unknown",
        "webhook_expired",
        "webhook_rotated",
        "webhook_huge",
        "webhook_truncated",
    ),
}
_BARE = ("nginx502", "gzip", *_SUFFERED["webhook"][1:], *_SUFFERED["attempt"][:2], "webhook_rotated")
_DELAYS = ("delay", "webhook_late")
CLOSE_CODES = frozenset({*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)})  # what may be sent

_LARGEST_BYTES = 1024**3
_NAME = re.compile(r"[A-Za-z0-9._~%@+*/-]+")
_DEFAULTS: dict[str, float] = {
    "status": 503,
    "delay": 1.0,
    "stall": 0,
    "drop": 0,
    "garbage": 0,
    "oversized": 16 * 1024 * 1024 + 1,
    "close": 1013,
    "webhook_late": 5.0,
    "webhook_expired": 600,
    "webhook_huge": 20 * 1024 * 1024,
}


@dataclass(frozen=True)
class Fault:
    """One fault; `argument` is a status, a close code, seconds, bytes, or messages already sent on a WebSocket.

    None where the kind has a choice of its own.
    """

    glob: str
    kind: FaultKind
    argument: float | None = None
    probability: float = 1.0

    def matches(self, names: Iterable[str]) -> bool:
        """Tell whether the glob matches any of a request's names."""
        pattern = glob(self.glob)
        return any(pattern.fullmatch(name) for name in names)


@dataclass(frozen=True)
class Strike:
    """What happens to one victim: seconds of delay, then at most one fault."""

    delay_seconds: float = 0.0
    fault: Fault | None = None
    gzip: bool = False


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Parse the value of --faults; raise ValueError with one sentence that names the wrong part."""
    return tuple(_parse(part.strip()) for part in text.split(";") if part.strip())


def draw(faults: Sequence[Fault], names: Iterable[str], rng: Random, victim: Victim = "request") -> Strike:
    """Draw the faults that strike a victim known by those names."""
    delay, chosen, gzip = 0.0, None, False
    names = tuple(names)
    suffered = _SUFFERED[victim]
    for fault in faults:
        if (
            fault.kind not in suffered
            or not fault.matches(names)
            or (fault.probability < 1 and rng.random() >= fault.probability)
        ):
            continue
        if fault.kind in _DELAYS:
            delay += fault.argument or 0.0
        elif fault.kind == "gzip":
            gzip = True
        elif chosen is None:
            chosen = fault
    return Strike(delay, chosen, gzip)


def _parse(part: str) -> Fault:
    name, colon, rest = part.partition(":")
    if not colon or not name:
        raise ValueError(f"fault {part!r}: write it as GLOB:KIND[=ARG][@P]")
    if not _NAME.fullmatch(name):
        raise ValueError(f"fault {part!r}: {name!r} is no glob over endpoint ids or host/path")
    rest, at, odds = rest.partition("@")
    kind, equals, argument = rest.partition("=")
    if kind not in get_args(FaultKind):
        raise ValueError(f"fault {part!r}: unknown kind {kind!r}, choose one of {', '.join(get_args(FaultKind))}")
    if equals and kind in _BARE:
        raise ValueError(f"fault {part!r}: {kind} takes no argument")
    known: FaultKind = next(each for each in get_args(FaultKind) if each == kind)
    number = _argument(part, kind, argument) if equals else _DEFAULTS.get(kind)
    return Fault(name, known, number, _probability(part, odds) if at else 1.0)


def _argument(part: str, kind: str, text: str) -> float:
    if kind in _DELAYS:
        if not re.fullmatch(r"\d+(\.\d+)?", text):
            raise ValueError(f"fault {part!r}: {kind} wants seconds, not {text!r}")
        return float(text)
    if not re.fullmatch(r"\d{1,15}", text):
        raise ValueError(f"fault {part!r}: {kind} wants a whole number, not {text!r}")
    if kind == "close" and int(text) not in CLOSE_CODES:
        raise ValueError(f"fault {part!r}: close wants a code that a peer may send, such as 1013 or 4000, not {text}")
    if kind in ("oversized", "webhook_huge") and not 1 <= int(text) <= _LARGEST_BYTES:
        raise ValueError(f"fault {part!r}: {kind} wants from 1 to {_LARGEST_BYTES} bytes, not {text}")
    if kind == "status" and not 400 <= int(text) <= 599:
        raise ValueError(f"fault {part!r}: status wants a number from 400 to 599, not {text}")
    return int(text)


def _probability(part: str, text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?|\.\d+", text) or not 0 <= float(text) <= 1:
        raise ValueError(f"fault {part!r}: the probability after @ is a number from 0 to 1, not {text!r}")
    return float(text)
