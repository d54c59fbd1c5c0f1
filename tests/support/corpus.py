"""The corpus of target URLs: what the grammar must take and refuse, and in which spelling each can be sent."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import NamedTuple

CORPUS = Path(__file__).parent.parent / "data" / "target_urls.jsonl"
# The deployment that the corpus assumes: these hosts may receive webhooks.
WEBHOOK_HOSTS = (b"app.example.com", b"hooks.example.com")


class Case(NamedTuple):
    """One value of `x-fal-target-url`, or several header lines."""

    lines: tuple[bytes, ...]
    allowed: bool
    why: str

    @property
    def method(self) -> str:
        """The method that fits the target's kind, as a client would use it."""
        target = self.lines[0].partition(b"?")[0]
        if target.endswith(b"/cancel"):
            return "PUT"
        return "GET" if b"/requests/" in target and target.startswith(b"https://queue.") else "POST"


def cases() -> list[Case]:
    """Return the whole corpus."""
    return [_case(json.loads(line)) for line in CORPUS.read_text("utf-8").splitlines()]


def _case(row: dict[str, object]) -> Case:
    if isinstance(lines := row.get("headers"), list):
        values = tuple(str(line).encode("latin-1") for line in lines)
    elif isinstance(encoded := row.get("bytes_b64"), str):
        values = (base64.b64decode(encoded),)
    else:
        values = (str(row["value"]).encode("latin-1"),)
    return Case(values, row["expect"] == "allow", str(row["why"]))
