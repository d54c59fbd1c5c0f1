"""`fal-proxy dev` as a process of its own, for the tests that open its page."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2

from browser.chromium import Asked, Visit
from support.commands import clean_environment, running

SPEED = 2  # of fal: enough to be quick, and not so much that a poll misses a state


@dataclass(frozen=True)
class Played:
    """A running `dev`."""

    url: str

    def mend(self) -> None:
        """Let fal be well again."""
        headers = {"content-type": "application/json", "origin": self.url}
        answer = httpx2.post(f"{self.url}/demo/fault", content=b'{"fault": "none"}', headers=headers, trust_env=False)
        assert answer.json() == {"fault": "none"}


@contextlib.contextmanager
def playing(folder: Path) -> Iterator[Played]:
    """Run `dev` until the block ends."""
    with running(["dev", "--port", "0", "--speed", str(SPEED)], folder, clean_environment()) as process:
        yield Played(process.url)


def by_target(visit: Visit, target: str) -> list[Asked]:
    """Return the page's requests for one of fal's addresses."""
    return [asked for asked in visit.requests if asked.headers.get("x-fal-target-url") == target]
