"""The shared mailbox: many processes, one Redis. A fallback there is none: fal comes again when filing is refused.

Keys, all under `fal-proxy:`. They end HELD_SECONDS and a day after the last event; what they hold ends earlier, a little
with every operation:

    events                    hash: number to an event without its body, and how far its delivery is
    event-body:<number>       its body, as it came
    event-ids                 hash: request id to number
    event-numbers, event-ends all numbers, in order, and by when they end
    events-of:<identity>      the numbers that somebody may read
    deliveries:<host>         the numbers that wait, by when they are due; delivery-hosts: the set of these hosts
    dead-letters              the numbers that were given up, by when
    idle:<owner>              the numbers that make room; idle: these owners, by how many bytes they hold (negative)
    event-sums                hash: bytes, waiting_bytes, waiting, number (the last one)

Every operation is one script and one round trip, on connections of their own: a body of ten megabytes takes longer than
the store's calls may, and must not trip its breaker. Listening is a channel, `events`, on which only notices travel. It
loses what is published while a connection is away, so after each reconnection the notices from the last one heard on are
asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from fal_proxy.errors import StoreUnavailable
from fal_proxy.stores import holdings, mailbox, mailbox_state
from fal_proxy.stores.link import Link
from fal_proxy.stores.listeners import Listeners
from fal_proxy.stores.mailbox import DeadLetter, Delivery, Event, Listener, Notice, Standing, host_of
from fal_proxy.stores.subscription import Subscription

CALL_SECONDS = 2.0
CONNECTIONS = 8
CHANNEL = "fal-proxy:events"
_PAGE = 500  # notices
_LUA = (Path(__file__).parent / "mailbox.lua").read_text("utf-8")


class _Meta(msgspec.Struct):
    """An event as the script keeps it."""

    number: str
    request_id: str
    endpoint_id: str
    owners: tuple[str, ...]
    ok: bool
    headers: tuple[tuple[str, str], ...]
    forward_url: str
    received_at: float
    attempt: int
    given_up_at: float
    reason: str

    def event(self, body: bytes) -> Event:
        """Return it with its body."""
        names = (self.request_id, self.endpoint_id, self.owners, self.ok, self.headers)
        return Event(*names, body, self.forward_url, int(self.number), self.received_at)

    def letter(self) -> DeadLetter:
        """Return it as a dead letter."""
        names = (int(self.number), self.request_id, self.endpoint_id, self.forward_url)
        return DeadLetter(*names, self.received_at, self.given_up_at, self.attempt, self.reason)


_meta = msgspec.msgpack.Decoder(_Meta).decode
_notice = msgspec.msgpack.Decoder(tuple[str, str, tuple[str, ...]]).decode


class RedisMailbox:
    """`Mailbox` in one Redis, for any number of processes."""

    def __init__(self, url: str, clock: Callable[[], float] | None = None) -> None:
        """Connect with the first call; `clock` replaces Redis' time in tests. Raises ValueError for a bad URL."""
        self._link = Link(url, place_seconds=CALL_SECONDS, call_seconds=CALL_SECONDS, connections=CONNECTIONS)
        self._clock = clock
        self._listeners = Listeners()
        self._listening: asyncio.Task[None] | None = None
        self._heard: int | None = None  # the last number that listeners were told, or need not be

    async def file(self, event: Event) -> Event | None:
        """Keep an event; None if its request id has one already."""
        kept = {
            "request_id": event.request_id,
            "endpoint_id": event.endpoint_id,
            "owners": event.owners,
            "ok": event.ok,
            "headers": event.headers,
            "forward_url": event.forward_url,
            "host": host_of(event),
            "flooder": holdings.flooder(event.owners),
        }
        reply = await self._run("file", kept, event.body)
        if reply is None:
            return None
        number, received_at = reply
        return msgspec.structs.replace(event, number=int(number), received_at=float(received_at))

    async def filed(self, request_id: str) -> bool:
        """Say whether a request id has an event."""
        return bool(await self._run("filed", request_id))

    async def since(self, identities: frozenset[str], number: int, limit: int) -> Sequence[Event]:
        """Return the oldest events after `number` of these owners."""
        found = await self._run("since", (sorted(identities), number, limit))
        return [meta.event(body) for meta, body in _pairs(found)]

    async def before_newest(self, identities: frozenset[str], count: int) -> int:
        """Return the number after which only the newest `count` of these owners' events come."""
        return int(await self._run("before_newest", (sorted(identities), count)))

    async def claim(self, limit: int, per_host: int, busy: Mapping[str, int]) -> Sequence[Delivery]:
        """Claim deliveries that are due."""
        found = await self._run("claim", (limit, per_host, busy))
        return [Delivery(meta.event(body), meta.attempt) for meta, body in _pairs(found)]

    async def delivered(self, number: int) -> None:
        """End a delivery that succeeded."""
        await self._run("delivered", str(number))

    async def failed(self, number: int, reason: str, retry_seconds: float | None) -> None:
        """Try a delivery again later, or give it up."""
        await self._run("failed", (str(number), reason, retry_seconds))

    async def dead_letters(self, limit: int) -> Sequence[DeadLetter]:
        """Return the newest dead letters."""
        return [_meta(raw).letter() for raw in await self._run("dead_letters", limit)]

    async def revive(self, number: int) -> bool:
        """Make a dead letter due now."""
        return bool(await self._run("revive", str(number)))

    async def standing(self) -> Standing:
        """Return how much is kept."""
        return Standing(*await self._run("standing", 0))

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` for every event filed from now on, in whichever process."""
        if self._listening is None:
            subscription = Subscription(self._link.dial, CHANNEL, self._catch_up, self._hear)
            self._listening = asyncio.get_running_loop().create_task(subscription.run())
        return self._listeners.add(listener)

    async def close(self) -> None:
        """Stop listening and let go."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
        await self._link.close()

    async def _catch_up(self) -> None:
        """Tell of what was filed while nobody listened."""
        await self._begin()
        while missed := await self._call("notices", (self._heard, _PAGE)):
            for raw in missed:
                self._hear(raw)

    def _hear(self, raw: bytes) -> None:
        number, request_id, owners = _notice(raw)
        if self._heard is None or int(number) > self._heard:
            self._heard = int(number)
            self._listeners.tell(Notice(self._heard, request_id, owners))

    async def _run(self, operation: str, argument: object, body: bytes = b"") -> Any:
        if self._listening is not None:
            await self._begin()
        return await self._call(operation, argument, body)

    async def _begin(self) -> None:
        """Note what is the last event before listening begins: then all that comes after any answer is told."""
        if self._heard is None:
            self._begin_after(int(await self._call("newest", 0)))

    def _begin_after(self, number: int) -> None:
        if self._heard is None:  # another task may have been first
            self._heard = number

    async def _call(self, operation: str, argument: object, body: bytes = b"") -> Any:
        moment = "" if self._clock is None else repr(self._clock())
        arguments = (0, moment, operation, msgspec.msgpack.encode(argument), body)
        source, sha = _script()
        try:
            return await self._link.call(("EVALSHA", sha, *arguments), ("EVAL", source, *arguments))
        except ResponseError as error:
            raise StoreUnavailable(str(error).removeprefix("FULL ")) from error


def _pairs(found: list[bytes]) -> list[tuple[_Meta, bytes]]:
    return [(_meta(raw), body) for raw, body in zip(found[::2], found[1::2], strict=True)]


def _script() -> tuple[str, str]:
    """Return the script with the contract's numbers, and its hash."""
    numbers = {
        "CLAIM": mailbox.CLAIM_SECONDS,
        "EVENT": mailbox.EVENT_SECONDS,
        "HELD": mailbox.HELD_SECONDS,
        "ANSWER_BYTES": mailbox.ANSWER_BYTES,
        "EVENT_BYTES": mailbox.EVENT_BYTES,
        "MOST_BYTES": mailbox.MAX_BODY_BYTES_KEPT,
        "MOST_PER_OWNER": mailbox.MAX_EVENTS_PER_OWNER,
        "AT_ONCE": mailbox_state.DROPPED_AT_ONCE,
    }
    source = "".join(f"local {name} = {value:.0f}\n" for name, value in numbers.items()) + _LUA
    return source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
