"""The corpus of raw HTTP/1.1 byte sequences: what to send, and what may come of it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import NamedTuple

CORPUS = Path(__file__).parent.parent / "data" / "raw_http.jsonl"
SESSION_LINE = b"Cookie: session=@@SESSION@@\r\n"
SMUGGLED = b"fal-ai/smuggled/"
# Rows about callers whose proof the browser attaches by itself.
AMBIENT = frozenset(["up-ws-null-origin", "up-ws-noorigin", "up-ws-two-origins"])


class Step(NamedTuple):
    """Bytes to send, and how long the client is silent after them."""

    data: bytes
    wait_seconds: float


class Row(NamedTuple):
    """One line of the corpus."""

    id: str
    data: bytes
    steps: tuple[Step, ...]  # instead of `data`, where time matters
    expect: str  # ok, one, reject
    responses: int  # exactly so many for ok, at most so many else
    upstream_calls: int  # the same
    within_seconds: float | None
    why: str

    @property
    def half_closes(self) -> bool:
        """Say whether the client ends its direction once everything is sent."""
        return self.id.endswith("-eof") or self.id == "g-empty"

    def bytes_for(self, credential: bytes) -> bytes:
        """Return the bytes with `credential`, a whole header line, in place of the session's."""
        return self.data.replace(SESSION_LINE, credential)

    def steps_for(self, credential: bytes) -> list[Step]:
        """Return the steps with `credential` in place of the session's."""
        return [Step(step.data.replace(SESSION_LINE, credential), step.wait_seconds) for step in self.steps]


def rows() -> list[Row]:
    """Return the whole corpus."""
    return [_row(json.loads(line)) for line in CORPUS.read_text("utf-8").splitlines()]


def _row(row: dict[str, object]) -> Row:
    steps = row.get("steps")
    within = row.get("answer_or_close_within_ms")
    calls = row.get("upstream_calls", row.get("upstream_calls_max"))
    responses = row.get("responses", row.get("responses_max"))
    assert isinstance(calls, int) and isinstance(responses, int)  # noqa: PT018
    return Row(
        id=str(row["id"]),
        data=base64.b64decode(str(row["b64"])),
        steps=tuple(Step(base64.b64decode(step["b64"]), step["then_wait_ms"] / 1000) for step in steps)
        if isinstance(steps, list)
        else (),
        expect=str(row["expect"]),
        responses=responses,
        upstream_calls=calls,
        within_seconds=within / 1000 if isinstance(within, int) else None,
        why=str(row["why"]),
    )
