"""Idle connections, kept for a moment, newest first. A bounded stack per origin with lazy expiry."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

# Below the idle limits of common servers (Node and uvicorn close after 5 s), so that we close first: a request that
# meets a closing connection is an unknown outcome.
IDLE_SECONDS = 4.0
MAX_IDLE = 256


class Poolable(Protocol):
    """What the pool asks of a connection."""

    @property
    def open(self) -> bool:
        """Say whether it has not ended, as far as is known."""

    @property
    def usable(self) -> bool:
        """Say whether a new request may be written; this asks the system."""

    def close(self) -> None:
        """Close without ceremony."""


ConnectionT = TypeVar("ConnectionT", bound=Poolable)
OriginT = TypeVar("OriginT")


class Pool(Generic[OriginT, ConnectionT]):
    """A LIFO of idle connections per origin; holds at most `max_idle` in all, each at most `idle_seconds`."""

    def __init__(
        self,
        *,
        max_idle: int = MAX_IDLE,
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._idle: dict[OriginT, deque[tuple[float, ConnectionT]]] = {}
        self._count = 0
        self._next_end = math.inf  # when the first of them expires, or before
        self._max_idle = max_idle
        self._idle_seconds = idle_seconds
        self._clock = clock

    def __len__(self) -> int:
        """Count what is open: one that upstream closed meanwhile stays in its stack until it is met."""
        return sum(connection.open for idle in self._idle.values() for _, connection in idle)

    def take(self, origin: OriginT) -> ConnectionT | None:
        """Return the connection that was used last and is still usable, or None."""
        if self._clock() >= self._next_end:
            self.expire()
        idle = self._idle.get(origin)
        while idle:
            _, connection = idle.pop()
            self._count -= 1
            if connection.usable:
                return connection
            connection.close()
        return None

    def put(self, origin: OriginT, connection: ConnectionT) -> None:
        """Keep a connection for the next request, or close it when there is no room."""
        if self._count >= self._max_idle or not connection.open:
            connection.close()
            return
        now = self._clock()
        idle = self._idle.get(origin)
        if idle is None:
            idle = self._idle[origin] = deque()
        idle.append((now, connection))
        self._count += 1
        self._next_end = min(self._next_end, now + self._idle_seconds)

    def expire(self) -> None:
        """Close what has been idle for too long; the oldest lie at the left."""
        horizon = self._clock() - self._idle_seconds
        self._next_end = math.inf
        for origin in list(self._idle):
            idle = self._idle[origin]
            while idle and (idle[0][0] <= horizon or not idle[0][1].open):
                idle.popleft()[1].close()
                self._count -= 1
            if idle:
                self._next_end = min(self._next_end, idle[0][0] + self._idle_seconds)
            else:
                del self._idle[origin]

    def close(self) -> None:
        """Close everything, and from now on whatever is put."""
        self._max_idle = 0
        for idle in self._idle.values():
            for _, connection in idle:
                connection.close()
        self._idle.clear()
        self._count = 0
