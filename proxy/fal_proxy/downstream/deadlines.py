"""How long a caller may take: for a head, for a body, between requests, and to read an answer.

Time is counted in sweeps: once a second one timer per server looks at every connection, so that a request costs no
timer and no look at a clock. A deadline is met up to one sweep late, never early. Knows no HTTP and no sockets.
"""

from __future__ import annotations

import asyncio
import enum
from typing import Protocol

SWEEP_SECONDS = 1.0
HEAD_SECONDS = 10.0  # from a head's first byte to its last; the first one: from the connection's start
KEEP_ALIVE_SECONDS = 75.0
BODY_IDLE_SECONDS = 30.0
BODY_GRACE_SECONDS = 20.0  # after that the average counts
BODY_BYTES_PER_SECOND = 1024
LEFTOVER_SECONDS = 10.0  # for the rest of a body whose answer has already gone
LINGER_SECONDS = 2.0  # after a refusal: reading on lets the answer arrive instead of a reset
UNREAD_SECONDS = 30.0  # without a single byte of an answer being taken


class Phase(enum.Enum):
    """What a connection is waiting for."""

    OPENED = "the first byte"
    HEAD = "the rest of a head"
    BODY = "the rest of a body"
    ANSWER = "our answer"
    LEFTOVER = "the rest of a body that nobody needs any more"
    IDLE = "the next request"
    LINGER = "the caller, to close"


class Overdue(enum.Enum):
    """What to do with a connection that was too slow."""

    CLOSE = "close without a word"
    TIMEOUT = "answer that it took too long"
    RESET = "cut"


class Deadlines:
    """One connection's phase and how long it has lasted."""

    __slots__ = ("_age", "_idle", "_seen", "_taken", "_unread", "phase", "received")

    def __init__(self) -> None:
        self.enter(Phase.OPENED)
        self._unread = 0.0
        self._taken = 0

    def enter(self, phase: Phase) -> None:
        """Begin a phase."""
        # The sweep to come counts in full although the phase begins somewhere within it.
        self._age = -SWEEP_SECONDS
        self.phase = phase
        self.received = 0  # body bytes in this phase
        self._seen = 0
        self._idle = -SWEEP_SECONDS

    def continue_head(self) -> None:
        """Note bytes of a head; for the first head the time since the connection's start counts."""
        if self.phase is Phase.OPENED:
            self.phase = Phase.HEAD
        elif self.phase is not Phase.HEAD:
            self.enter(Phase.HEAD)

    def look(self, seconds: float, *, willing: bool, unsent: int, taken: int) -> Overdue | None:
        """Let `seconds` pass and judge.

        `willing`: we would read if something came. `unsent`: bytes of answers that wait here; `taken`: bytes that have
        left, ever.
        """
        if self._leaves_unread(seconds, unsent, taken):
            return Overdue.RESET
        phase = self.phase
        if phase is Phase.ANSWER:
            return None
        if phase is Phase.BODY:
            return Overdue.TIMEOUT if willing and self._dawdles(seconds) else None
        self._age += seconds
        if phase is Phase.HEAD:
            return Overdue.TIMEOUT if self._age >= HEAD_SECONDS else None
        return Overdue.CLOSE if self._age >= _silent_seconds(phase) else None

    def _dawdles(self, seconds: float) -> bool:
        self._age += seconds
        self._idle = self._idle + seconds if self.received == self._seen else 0.0
        self._seen = self.received
        slow = self._age >= BODY_GRACE_SECONDS and self.received < BODY_BYTES_PER_SECOND * self._age
        return slow or self._idle >= BODY_IDLE_SECONDS

    def _leaves_unread(self, seconds: float, unsent: int, taken: int) -> bool:
        moved = not unsent or taken > self._taken
        self._unread = 0.0 if moved else self._unread + seconds
        self._taken = taken
        return self._unread >= UNREAD_SECONDS


class Swept(Protocol):
    """A connection, as the sweep sees it."""

    def sweep(self, seconds: float) -> None:
        """Let `seconds` pass."""


class Sweep:
    """The one timer of a server; it runs while there are connections."""

    def __init__(self) -> None:
        self._swept: set[Swept] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last = 0.0

    def add(self, swept: Swept, loop: asyncio.AbstractEventLoop) -> None:
        """Look at this connection from now on."""
        self._swept.add(swept)
        if self._timer is None:
            self._loop, self._last = loop, loop.time()
            self._timer = loop.call_later(SWEEP_SECONDS, self._run, loop)

    def discard(self, swept: Swept) -> None:
        """Forget a connection that has ended."""
        self._swept.discard(swept)
        if not self._swept and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        # A loop that stood still must not blame its callers for it.
        seconds, self._last = min(now - self._last, 2 * SWEEP_SECONDS), now
        self._timer = loop.call_later(SWEEP_SECONDS, self._run, loop)
        for swept in list(self._swept):
            swept.sweep(seconds)


def _silent_seconds(phase: Phase) -> float:
    if phase is Phase.IDLE:
        return KEEP_ALIVE_SECONDS
    if phase is Phase.LEFTOVER:
        return LEFTOVER_SECONDS
    return LINGER_SECONDS if phase is Phase.LINGER else HEAD_SECONDS
