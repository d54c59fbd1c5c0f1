"""A fal for `check --live`: what it says to each key, by host, and what it was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from support.price_list import page, row
from support.proxied import FAL_KEY
from support.services import Asked, Reply, Service, served

GOOD = FAL_KEY.reveal()
BAD = "bbbbbbbb-0000-4000-8000-00000000feed:" + "b2" * 16
ADMIN = "adadadad-0000-4000-8000-00000000feed:" + "ad" * 16
INVALID = Reply(401, b'{"detail":"invalid key credentials"}')
LOCKED = Reply(
    403, b'{"detail":"User is locked. Reason: Exhausted balance. Top up your balance at fal.ai/dashboard/billing"}'
)
NOT_FOUND = Reply(404, b'{"status":"NOT_FOUND"}')
NO_BILLS = Reply(200, b'{"billing_events":[],"next_cursor":null,"has_more":false}')
PRICED = page(row("fal-ai/flux/dev", "0.025"))


@dataclass
class Fal:
    """What is said to each key, by host; a Date of the test's choice."""

    queue: dict[str, Reply] = field(default_factory=dict)
    prices: dict[str, Reply] = field(default_factory=dict)
    bills: Reply = NO_BILLS
    ahead_seconds: float | None = 0
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.service = Service(self.answer)

    def answer(self, asked: Asked) -> Reply:
        """Answer one question."""
        key = asked.values(b"authorization")[0].decode().removeprefix("Key ")
        host = asked.path.split("/")[1]
        self.asked.append(asked.path)
        if host == "queue.fal.run":
            reply = self.queue.get(key, NOT_FOUND)
        elif "billing-events" in asked.path:
            reply = self.bills
        else:
            reply = self.prices.get(key, PRICED)
        if self.ahead_seconds is None:
            return reply._replace(headers=((b"date", b"soon"),))
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=self.ahead_seconds), usegmt=True)
        return reply._replace(headers=((b"date", date.encode()),))


@pytest.fixture
def fal() -> Fal:
    """Return a fal that accepts every key."""
    return Fal()


@pytest.fixture
async def url(fal: Fal) -> AsyncIterator[str]:
    """Return where it listens."""
    async with served(fal.service) as running:
        yield running
