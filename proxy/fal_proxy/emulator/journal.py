"""What reached the emulator and what it sent on its own, for tests and curious developers: raw, not our reading of it.

Bounded in entries and in bytes per entry. Knows no fal.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

KEPT_BODY_BYTES = 64 * 1024
KEPT_ENTRIES = 1000


Outcome = Literal["delivered", "retry", "permanent", "given_up"]


@dataclass
class Session:
    """What went over one WebSocket that was opened; times are the emulator's clock."""

    opened_at: float
    closed_at: float | None = None
    received: int = 0  # messages
    received_bytes: int = 0
    sent: int = 0
    sent_bytes: int = 0
    inbound: list[str | bytes] = field(default_factory=list)  # while they fit KEPT_BODY_BYTES
    close_code: int | None = None  # the first close frame's, 1005 if it held none, 1006 without one
    close_reason: str = ""
    closed_by_client: bool = False

    def record(self, message: str | bytes) -> None:
        """Count a message of the client's and keep it if it fits."""
        size = message_bytes(message)
        self.received += 1
        self.received_bytes += size
        if self.received_bytes <= KEPT_BODY_BYTES:
            self.inbound.append(message)

    def count(self, message: str | bytes) -> None:
        """Count a message to the client."""
        self.sent += 1
        self.sent_bytes += message_bytes(message)


@dataclass
class Entry:
    """One request, or handshake, as received; `done` is set when the exchange is over, however it ended."""

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
    units: str | None = None  # what fal bills: as x-fal-billable-units has it, of a realtime session its seconds
    session: Session | None = None  # of a WebSocket
    notes: list[str] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def header(self, name: str) -> str | None:
        """Return the first header of that name, None without one."""
        wanted = name.lower().encode()
        return next((value.decode("latin-1") for key, value in self.headers if key == wanted), None)

    def bill(self, units: Decimal | str) -> None:
        """Add to what fal bills."""
        self.units = f"{Decimal(self.units or 0) + Decimal(units):f}"

    def record(self, chunk: bytes) -> None:
        """Count one piece of the body and keep what fits."""
        self.body_bytes += len(chunk)
        if len(self.body) < KEPT_BODY_BYTES:
            self.body += chunk[: KEPT_BODY_BYTES - len(self.body)]


@dataclass
class Delivery:
    """One attempt to deliver a webhook, as it was sent; `done` is set when it is over."""

    request_id: str
    url: str
    number: int  # of the attempt, from 1
    at: float  # the emulator's clock
    headers: list[tuple[str, str]]
    body: bytes = field(default=b"", repr=False)  # the first KEPT_BODY_BYTES
    body_bytes: int = 0
    status: int | None = None  # of the answer
    error: str | None = None  # why there is none
    outcome: Outcome | None = None  # None until it is over
    notes: list[str] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def header(self, name: str) -> str | None:
        """Return the header of that name, None without one."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def record(self, body: bytes) -> None:
        """Count the body and keep what fits."""
        self.body, self.body_bytes = body[:KEPT_BODY_BYTES], len(body)


def message_bytes(message: str | bytes) -> int:
    """Return the size of a message on the wire."""
    return len(message) if isinstance(message, bytes) else len(message.encode())


Journal = deque[Entry]
Deliveries = deque[Delivery]


def new_journal() -> Journal:
    """Make an empty bounded journal."""
    return deque(maxlen=KEPT_ENTRIES)


def new_deliveries() -> Deliveries:
    """Make an empty bounded journal of deliveries."""
    return deque(maxlen=KEPT_ENTRIES)
