"""Paid calls through a front while its two replicas restart in turn: is one lost, or sent twice?

`python -m soak.restarts nginx|caddy|one-port [--restarts 40] [--callers 8]`. Callers hold a connection to the front each
and ask without a pause, at random paces, or for short streams; each call has a number, which is counted again at fal.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from support.raw import RawClient
from support.replicas import SPEED, Deployment, deployed, until

PLAN = "methods"  # without a budget
FRONTS = {"nginx": ("nginx", False), "caddy": ("caddy", False), "one-port": ("nginx", True)}
SETTLE_SECONDS = 1.0  # between two restarts, that the front may find the replica again
STREAM_SECONDS = 0.3
LOOK_SECONDS = 0.05


@dataclass
class Report:
    """What became of the calls, as callers and as fal saw them."""

    answers: Counter[str] = field(
        default_factory=Counter
    )  # by status or error type; `cut`: a connection that broke off
    answered: set[str] = field(default_factory=set)  # the calls that ended well
    arrived: Counter[str] = field(default_factory=Counter)  # at fal, by call
    restarts: int = 0
    seconds: float = 0.0
    slowest_seconds: float = 0.0

    @property
    def doubled(self) -> int:
        """Return how many calls reached fal more than once."""
        return sum(count > 1 for count in self.arrived.values())

    @property
    def paid_for_nothing(self) -> int:
        """Return how many calls reached fal and have no good answer."""
        return len(self.arrived.keys() - self.answered)

    def judge(self) -> None:
        """Assert that every call was answered well, and reached fal once."""
        assert set(self.answers) == {"200"}, self.answers
        assert self.arrived.keys() == self.answered
        assert not self.doubled

    def __str__(self) -> str:
        """Say it in a few lines."""
        return (
            f"{self.answers.total()} calls, {self.restarts} restarts, {self.seconds:.0f} s; answers {dict(self.answers)}\n"
            f"  at fal: {self.arrived.total()}; doubled {self.doubled}, arrived without a good answer"
            f" {self.paid_for_nothing}; slowest {self.slowest_seconds:.2f} s"
        )


class Callers:
    """Everybody who asks; each call is numbered."""

    def __init__(self, site: Deployment, report: Report) -> None:
        self._site, self._report = site, report
        self._number = 0
        self.over = False

    async def ask(self, pace_seconds: float, *, stream: bool) -> None:
        """Ask until it is over, on a connection that is kept as long as the front keeps it."""
        while not self.over:
            async with self._site.open() as client:
                while not self.over:
                    if pace_seconds:
                        await asyncio.sleep(random.random() * 2 * pace_seconds)
                    self._number += 1
                    if not await self._one(client, str(self._number), stream=stream):
                        break

    async def _one(self, client: RawClient, number: str, *, stream: bool) -> bool:
        """Ask once; say whether the connection can be used again."""
        path = "/fal.run/emulator/slow/stream" if stream else "/fal.run/emulator/echo"
        body = json.dumps({"seconds": STREAM_SECONDS * SPEED, "n": number})
        began, outcome, kept = time.monotonic(), "cut", False
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await client.send(self._site.request("POST", path, PLAN, body=body))
            answer = await client.answer()
            fields = dict(answer.headers)
            if answer.complete:
                outcome = fields.get(b"x-fal-error-type", b"%d" % answer.status).decode()
                kept = fields.get(b"connection", b"").lower() != b"close"
        self._report.answers[outcome] += 1
        if outcome == "200":
            self._report.answered.add(number)
        self._report.slowest_seconds = max(self._report.slowest_seconds, time.monotonic() - began)
        return kept

    async def count(self) -> None:
        """Take what is over from fal's journal, which is bounded, and count it."""
        journal = self._site.fal.app.journal
        while True:
            while journal and journal[0].done.is_set():
                self._report.arrived[json.loads(journal.popleft().body)["n"]] += 1
            await asyncio.sleep(LOOK_SECONDS)


async def restarts(kind: str, count: int, callers: int, folder: Path) -> Report:
    """Restart replicas in turn, `count` times in all, under this many callers."""
    report = Report()
    name, one_port = FRONTS[kind]
    async with deployed(name, folder, one_port=one_port) as site:
        asking = Callers(site, report)
        counting = asyncio.ensure_future(asking.count())
        paces = [(0.0, False), (0.02, False), (0.3, False), (0.0, True)]
        busy = [
            asyncio.ensure_future(asking.ask(pace, stream=stream))
            for pace, stream in (paces[number % len(paces)] for number in range(callers))
        ]
        began = time.monotonic()
        for number in range(count):
            await asyncio.sleep(SETTLE_SECONDS)
            replica = site.replicas[number % 2]
            replica.terminate()
            assert await replica.ended() == 0
            await replica.start()
            report.restarts += 1
        asking.over = True
        await asyncio.gather(*busy)
        report.seconds = time.monotonic() - began
        await until(lambda: not site.fal.app.journal or counting.done())
        counting.cancel()
        await asyncio.wait([counting])
        assert counting.cancelled(), counting.exception()
    return report


def main() -> int:
    """Run it and print what it came to."""
    parser = argparse.ArgumentParser(prog="python -m soak.restarts", description=__doc__)
    parser.add_argument("front", choices=sorted(FRONTS))
    parser.add_argument("--restarts", type=int, default=40)
    parser.add_argument("--callers", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(restarts(options.front, options.restarts, options.callers, Path(folder)))
    print(f"{options.front}: {report}")
    try:
        report.judge()
    except AssertionError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
