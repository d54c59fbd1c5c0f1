"""What reached the emulator, kept for tests and for curious developers: the raw request, not our reading of it.

Bounded in entries and in bytes per entry. Knows no fal.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

KEPT_BODY_BYTES = 64 * 1024
KEPT_ENTRIES = 1000


@dataclass
class Entry:
    """One request as received; `done` is set when the exchange is over, however it ended."""

    method: str
    host: str
    target: bytes  # path and query exactly as sent, without the /<host> prefix
    headers: list[tuple[bytes, bytes]] = field(repr=False)  # they hold the key
    body: bytes = b""  # the first KEPT_BODY_BYTES
    body_bytes: int = 0
    body_complete: bool = False
    status: int | None = None  # of the answer, None while there is none
    answer_complete: bool = False
    disconnected: bool = False  # the client went away before the answer ended
    notes: list[str] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def header(self, name: str) -> str | None:
        """Return the first header of that name, None without one."""
        wanted = name.lower().encode()
        return next((value.decode("latin-1") for key, value in self.headers if key == wanted), None)

    def record(self, chunk: bytes) -> None:
        """Count one piece of the body and keep what fits."""
        self.body_bytes += len(chunk)
        if len(self.body) < KEPT_BODY_BYTES:
            self.body += chunk[: KEPT_BODY_BYTES - len(self.body)]


Journal = deque[Entry]


def new_journal() -> Journal:
    """Make an empty bounded journal."""
    return deque(maxlen=KEPT_ENTRIES)
