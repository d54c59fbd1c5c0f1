"""One mailbox of the contract suite, the moments that a test tells it, and events to file."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from contract.bench import NOON
from fal_proxy.stores.mailbox import Delivery, Event, Mailbox, Notice

HOOK = "https://app.example.com/hook"


def event(name: str, *owners: str, forward_url: str = "", body: bytes = b"{}") -> Event:
    """Return an event of a job by its name, owned by `me` unless others are given."""
    headers = (("x-fal-webhook-request-id", name), ("content-type", "application/json"))
    return Event(name, "fal-ai/flux", owners or ("me",), True, headers, body, forward_url)


@dataclass
class Post:
    """A mailbox under test and the moments it is told."""

    mailbox: Mailbox
    now: float = NOON

    async def file(self, name: str, *owners: str, forward_url: str = "", body: bytes = b"{}") -> Event:
        """File an event that must be new."""
        filed = await self.mailbox.file(event(name, *owners, forward_url=forward_url, body=body))
        assert filed is not None
        return filed

    async def read(self, *identities: str, after: int = 0, limit: int = 2000) -> list[str]:
        """Return the names of the events that somebody may read."""
        return [each.request_id for each in await self.mailbox.since(frozenset(identities), after, limit)]

    async def claim(self, limit: int = 100, per_host: int = 100, **busy: int) -> list[tuple[str, int]]:
        """Claim deliveries; return the names and attempts."""
        return [(each.event.request_id, each.attempt) for each in await self.claimed(limit, per_host, **busy)]

    async def claimed(self, limit: int = 100, per_host: int = 100, **busy: int) -> list[Delivery]:
        """Claim deliveries; of `busy`, an underscore in a host stands for a dot."""
        hosts = {host.replace("_", "."): count for host, count in busy.items()}
        return list(await self.mailbox.claim(limit, per_host, hosts))

    async def told(self, notices: list[Notice], count: int) -> None:
        """Wait until a listener has heard so much; with a shared mailbox that takes a moment."""
        async with asyncio.timeout(10):
            while len(notices) < count:  # noqa: ASYNC110 -- a listener is a plain function
                await asyncio.sleep(0.005)

    async def dead(self) -> list[str]:
        """Return the names of the dead letters, newest first."""
        return [letter.request_id for letter in await self.mailbox.dead_letters(1000)]

    async def counts(self) -> tuple[int, int, int]:
        """Return how many events, waiting deliveries and dead letters there are."""
        standing = await self.mailbox.standing()
        return standing.events, standing.waiting, standing.dead
