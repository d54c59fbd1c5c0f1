"""A ceiling per address for the ordinary routes, those that relay nothing; the relay has rules of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from fal_proxy.errors import Refusal

PER_MINUTE = 600
MAX_ADDRESSES = 10_000
WINDOW_SECONDS = 60.0


class AddressGuard:
    """Count requests per address and minute; nothing is kept beyond the minute.

    Of addresses beyond `MAX_ADDRESSES`, all new ones share one count: a flood from everywhere costs no memory.
    """

    def __init__(self, per_minute: int = PER_MINUTE, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._until = 0.0
        self._hits: dict[str, int] = {}

    def hit(self, address: str) -> None:
        """Count one request. Raises Refusal `rate_limited` beyond the ceiling."""
        address, hits = self._look(address)
        self._hits[address] = hits + 1

    def judge(self, address: str) -> None:
        """Raise Refusal `rate_limited` for an address that has reached the ceiling; counts nothing."""
        self._look(address)

    def _look(self, address: str) -> tuple[str, int]:
        """Return the name that an address is counted under, and how often it was."""
        now = self._clock()
        if now >= self._until:
            self._hits.clear()
            self._until = now + WINDOW_SECONDS
        if address not in self._hits and len(self._hits) >= MAX_ADDRESSES:
            address = ""
        hits = self._hits.get(address, 0)
        if hits >= self._per_minute:
            wait = b"%d" % math.ceil(self._until - now)
            detail = f"more than {self._per_minute} requests a minute from this address"
            raise Refusal("rate_limited", detail, headers=((b"retry-after", wait),))
        return address, hits
