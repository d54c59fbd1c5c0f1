"""What fal's webhooks leave behind, as one contract: events of finished jobs, kept until those who wait for them have them.

An event is filed once per request id, durably, before fal is told that it arrived. Browsers read it as often as they
like while it is kept; the app's own server gets it as a *delivery*, which is claimed, tried, and tried again until it
succeeds or is given up as a dead letter. Delivering is at least once: whoever claims may die before saying how it went.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import msgspec

EVENT_SECONDS = 24 * 3600.0  # as long as the ownership of its request id
HELD_SECONDS = 7 * 24 * 3600.0  # while its delivery waits, or is a dead letter
CLAIM_SECONDS = 60.0  # longer than one attempt may take; after that another process may try
MAX_EVENTS_PER_OWNER = 1000  # that nobody waits to deliver
MAX_BODY_BYTES_KEPT = 64 * 1024 * 1024  # of all events together
EVENT_BYTES = 1024  # added to every body, so that many small events are bounded too
ANSWER_BYTES = 4 * 1024 * 1024  # of the bodies in one answer, unless the first alone is larger


class Event(msgspec.Struct, frozen=True):
    """One job's end, as fal told it."""

    request_id: str
    endpoint_id: str  # as it was submitted
    owners: tuple[str, ...]  # the identities that may hear of it
    ok: bool  # fal's status is OK
    headers: tuple[tuple[str, str], ...]  # fal's own: the four of its signature, and content-type
    body: bytes  # as it came
    forward_url: str = ""  # the app's own server; empty: none
    number: int = 0  # given by the mailbox: ascends within a deployment, also across restarts
    received_at: float = 0.0  # given by the mailbox, unix seconds


class Notice(NamedTuple):
    """An event that was filed, without what makes it large; `since(…, number - 1, 1)` returns it to its owners."""

    number: int
    request_id: str
    owners: tuple[str, ...]


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


Listener = Callable[[Notice], None]


class Mailbox(Protocol):
    """The contract. Methods raise StoreUnavailable when they cannot answer in time; nothing has happened then.

    Where room is needed, what nobody waits to deliver goes first: the oldest of whoever has most of it, then the oldest
    dead letters. What waits is never dropped before HELD_SECONDS are over.
    """

    async def file(self, event: Event) -> Event | None:
        """Keep an event and return it with its number; None if its request id has one already. Durable on return.

        Raises StoreUnavailable when what waits fills MAX_BODY_BYTES_KEPT: fal comes again.
        """

    async def filed(self, request_id: str) -> bool:
        """Say whether a request id has an event."""

    async def since(self, identities: frozenset[str], number: int, limit: int) -> Sequence[Event]:
        """Return the oldest events after `number` that one of the identities owns, in order.

        Large ones are fewer than `limit` (ANSWER_BYTES); none only if there are none.
        """

    async def before_newest(self, identities: frozenset[str], count: int) -> int:
        """Return the number after which only the newest `count` events of these identities come; 0 if all of them do."""

    async def claim(self, limit: int, per_host: int, busy: Mapping[str, int]) -> Sequence[Delivery]:
        """Claim deliveries that are due: the longest due first, each by one process only, within ANSWER_BYTES.

        Of each host at most `per_host` less what `busy` says of it, so that a slow one holds up nobody else's.
        """

    async def delivered(self, number: int) -> None:
        """End a delivery that succeeded, also one that was given up meanwhile."""

    async def failed(self, number: int, reason: str, retry_seconds: float | None) -> None:
        """Try a delivery again after so many seconds; None gives it up as a dead letter."""

    async def dead_letters(self, limit: int) -> Sequence[DeadLetter]:
        """Return the newest dead letters."""

    async def revive(self, number: int) -> bool:
        """Make a dead letter due now, from its first attempt on; False if there is none of that number."""

    async def standing(self) -> Standing:
        """Return how much is kept."""

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` for every event filed from now on, in whichever process; return what ends that.

        "Now" is the first answer that this mailbox gives afterwards; so who begins to listen and then asks `since` has
        missed nothing. While a shared store is away calls are late: they come, in order and once, when it is back, for
        what is still kept then.
        """

    async def close(self) -> None:
        """Flush and let go."""


def host_of(event: Event) -> str:
    """Return the host that an event is delivered to; empty without one."""
    try:
        return urlsplit(event.forward_url).hostname or ""
    except ValueError:
        return ""


def size_of(event: Event) -> int:
    """Return what an event counts as, of MAX_BODY_BYTES_KEPT."""
    return len(event.body) + EVENT_BYTES
