"""The embedded mailbox: one process's memory, bounded, and journalled when it is given a folder.

A claim is not written down: after a restart nobody has it. That a delivery went well is, within a second: a kill before
that delivers it once more. The journal is the store's (`journal`), in a folder of its own: it holds at most as much again
as the mailbox before it is rewritten, so that no body is written more than twice for each time that it was filed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from fal_proxy.errors import StoreUnavailable
from fal_proxy.stores.listeners import Listeners
from fal_proxy.stores.mailbox import DeadLetter, Delivery, Event, Listener, Notice, Standing
from fal_proxy.stores.mailbox_state import MailboxState

if TYPE_CHECKING:
    from fal_proxy.stores.journal import Journal


class MemoryMailbox:
    """`Mailbox` in one process."""

    def __init__(self, journal: Journal | None = None, clock: Callable[[], float] = time.time) -> None:
        """Replay `journal`. Raises JournalError."""
        self._clock = clock
        self._listeners = Listeners()
        self._journal = journal
        self.state = MailboxState()
        if journal is not None:
            journal.replay(self.state)
            self.state.written_down = True
            journal.start(self.state)

    async def file(self, event: Event) -> Event | None:
        """Keep an event; None if its request id has one already."""
        if self._journal is not None:
            self._journal.require()
        now = self._tick()
        if event.request_id in self.state.numbers:
            await self._durable()  # the one that came first may still be on its way
            return None
        filed = self.state.file(event, now)
        self._listeners.tell(Notice(filed.number, filed.request_id, filed.owners))
        try:
            await self._durable()
        except StoreUnavailable:
            self.state.forget(filed.number)
            raise
        return filed

    async def filed(self, request_id: str) -> bool:
        """Say whether a request id has an event."""
        self._tick()
        return request_id in self.state.numbers

    async def since(self, identities: frozenset[str], number: int, limit: int) -> Sequence[Event]:
        """Return the oldest events after `number` of these owners."""
        return self.state.since(identities, number, limit, self._tick())

    async def before_newest(self, identities: frozenset[str], count: int) -> int:
        """Return the number after which only the newest `count` of these owners' events come."""
        return self.state.before_newest(identities, count, self._tick())

    async def claim(self, limit: int, per_host: int, busy: Mapping[str, int]) -> Sequence[Delivery]:
        """Claim deliveries that are due."""
        claimed = self.state.claim(limit, per_host, busy, self._tick())
        return [Delivery(kept.event, kept.attempt) for kept in claimed]

    async def delivered(self, number: int) -> None:
        """End a delivery that succeeded."""
        self._tick()
        self.state.delivered(number)
        self._flush()

    async def failed(self, number: int, reason: str, retry_seconds: float | None) -> None:
        """Try a delivery again later, or give it up."""
        self.state.failed(number, reason, retry_seconds, self._tick())
        self._flush()

    async def dead_letters(self, limit: int) -> Sequence[DeadLetter]:
        """Return the newest dead letters."""
        self._tick()
        letters = []
        for given_up_at, number in self.state.dead[::-1][:limit]:
            kept = self.state.kept[number]
            event = kept.event
            names = (event.request_id, event.endpoint_id, event.forward_url)
            letters.append(DeadLetter(number, *names, event.received_at, given_up_at, kept.attempt, kept.reason))
        return letters

    async def revive(self, number: int) -> bool:
        """Make a dead letter due now."""
        revived = self.state.revive(number, self._tick())
        await self._durable()
        return revived

    async def standing(self) -> Standing:
        """Return how much is kept."""
        self._tick()
        return Standing(len(self.state.kept), self.state.waiting, len(self.state.dead))

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` for every event filed from now on."""
        return self._listeners.add(listener)

    async def close(self) -> None:
        """Flush the journal and let go of it."""
        if self._journal is not None:
            await self._journal.close()

    def _tick(self) -> float:
        now = self._clock()
        self.state.expire(now)
        self._flush()
        return now

    def _flush(self) -> None:
        if self._journal is not None:
            self._journal.append(self.state.take_puts())

    async def _durable(self) -> None:
        self._flush()
        if self._journal is not None:
            await self._journal.durable()
