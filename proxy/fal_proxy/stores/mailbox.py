"""What fal's webhooks leave behind, as one contract: events of finished jobs, kept until those who wait for them have them.

An event is filed once per request id, durably, before fal is told that it arrived. Browsers read it as often as they
like while it is kept; the app's own server gets it as a *delivery*, which is claimed, tried, and tried again until it
succeeds or is given up as a dead letter. Delivering is at least once: whoever claims may die before saying how it went.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

EVENT_SECONDS = 24 * 3600.0  # as long as the ownership of its request id
CLAIM_SECONDS = 60.0  # longer than one attempt may take; after that another process may try
MAX_EVENTS_PER_OWNER = 1000
MAX_BODY_BYTES_KEPT = 64 * 1024 * 1024  # of all events together; beyond it filing is refused, and fal comes again


class Event(msgspec.Struct, frozen=True):
    """One job's end, as fal told it."""

    request_id: str
    endpoint_id: str  # as it was submitted
    owners: tuple[str, ...]  # the identities that may hear of it
    ok: bool  # fal's status is OK
    headers: tuple[tuple[str, str], ...]  # fal's own: the four of its signature, and content-type
    body: bytes  # as it came
    forward_url: str = ""  # the app's own server; empty: none
    number: int = 0  # given by the mailbox: ascends within a deployment
    received_at: float = 0.0  # given by the mailbox, unix seconds


class Delivery(msgspec.Struct, frozen=True):
    """An event that is due at the app's server, claimed for CLAIM_SECONDS."""

    event: Event
    attempt: int  # 0 for the first


class DeadLetter(msgspec.Struct, frozen=True):
    """A delivery that was given up, for the operator."""

    number: int
    request_id: str
    endpoint_id: str
    forward_url: str
    received_at: float
    given_up_at: float
    attempts: int
    reason: str


class Standing(msgspec.Struct, frozen=True):
    """How much is kept, for metrics."""

    events: int
    waiting: int  # deliveries
    dead: int


Listener = Callable[[Event], None]


class Mailbox(Protocol):
    """The contract. Methods raise StoreUnavailable when they cannot answer in time; nothing has happened then."""

    async def file(self, event: Event) -> Event | None:
        """Keep an event and return it with its number; None if its request id has one already. Durable on return.

        Raises StoreUnavailable when MAX_BODY_BYTES_KEPT are kept. The oldest of an owner's MAX_EVENTS_PER_OWNER are
        dropped first, unless their delivery still waits.
        """

    async def filed(self, request_id: str) -> bool:
        """Say whether a request id has an event."""

    async def since(self, identities: frozenset[str], number: int, limit: int) -> Sequence[Event]:
        """Return the oldest events after `number` that one of the identities owns, in order."""

    async def claim(self, limit: int) -> Sequence[Delivery]:
        """Claim deliveries that are due: in order of their time, each to one process only."""

    async def delivered(self, number: int) -> None:
        """End a delivery that succeeded."""

    async def failed(self, number: int, reason: str, retry_seconds: float | None) -> None:
        """Try a delivery again after so many seconds; None gives it up as a dead letter."""

    async def dead_letters(self, limit: int) -> Sequence[DeadLetter]:
        """Return the newest dead letters."""

    async def revive(self, number: int) -> bool:
        """Make a dead letter due now, from its first attempt on; False if there is none of that number."""

    async def standing(self) -> Standing:
        """Return how much is kept."""

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every event filed from now on, in whichever process; return what ends that.

        A shared store may lose a call while it is away; whoever needs every event asks `since` once a while.
        """

    async def close(self) -> None:
        """Flush and let go."""
