"""Public keys that somebody publishes: fetched, bounded, kept. Knows neither their form nor what they sign.

They are asked for again when they have become old, and when something comes that none of them explains, but then at
most twice a minute: such things are free to make up. While their owner cannot be asked, the last good ones are used.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from fal_proxy.errors import Refusal
from fal_proxy.identity.flights import Flights
from fal_proxy.upstream.own_calls import OwnCallError, OwnCalls

UNKNOWN_SECONDS = 30.0  # between two fetches that what no key explains can cause
RETRY_SECONDS = 5.0  # between two fetches while there were never any keys
MAX_BYTES = 256 * 1024
FETCH_SECONDS = 5.0

_log = logging.getLogger("fal_proxy.identity")
T = TypeVar("T")


class PublishedKeys(Generic[T]):
    """The current keys of one owner, in whatever form `read` makes of them."""

    def __init__(
        self,
        calls: OwnCalls,
        whose: str,
        where: Callable[[], Awaitable[str]],
        read: Callable[[bytes], T],
        refresh_seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take where the keys are, and how they are read; both may raise ValueError. `calls` is closed with this."""
        self._calls = calls
        self._whose = whose
        self._where = where
        self._read = read
        self._refresh_seconds = refresh_seconds
        self._clock = clock
        self._keys: T | None = None
        self._fetched_at = 0.0
        self._tried_at: float | None = None
        self._flights: Flights[None] = Flights()

    async def current(self) -> T:
        """Return the keys. Raises Refusal `identity_unavailable` while none could ever be fetched."""
        if self._keys is None:
            await self._fetch_unless_within(RETRY_SECONDS)
        elif self._clock() - self._fetched_at >= self._refresh_seconds:
            await self._fetch_unless_within(UNKNOWN_SECONDS)
        return self._known()

    async def anew(self) -> T:
        """Return the keys after something that none of them explains: there may be new ones. Raises as `current`."""
        await self._fetch_unless_within(UNKNOWN_SECONDS)
        return self._known()

    async def read(self, url: str) -> bytes:
        """Return what is at an address of theirs. Raises ValueError, OwnCallError."""
        answer = await self._calls.get(url)
        if answer.status != 200:
            raise ValueError(f"answered {answer.status}")
        return answer.body

    async def close(self) -> None:
        """End what is under way and close connections."""
        await self._flights.close()
        await self._calls.close()

    def _known(self) -> T:
        if self._keys is None:
            detail = f"{self._whose} keys cannot be fetched right now"
            raise Refusal("identity_unavailable", detail, headers=((b"retry-after", b"%d" % RETRY_SECONDS),))
        return self._keys

    async def _fetch_unless_within(self, seconds: float) -> None:
        await self._flights.join("keys", lambda: self._fetch(seconds))

    async def _fetch(self, seconds: float) -> None:
        now = self._clock()
        if self._tried_at is not None and now - self._tried_at < seconds:
            return
        self._tried_at = now
        try:
            self._keys = self._read(await self.read(await self._where()))
            self._fetched_at = now
        except (OwnCallError, ValueError) as error:
            kept = "there are none yet" if self._keys is None else "keeping the last good ones"
            _log.error("%s keys cannot be fetched, %s: %s", self._whose, kept, error)
