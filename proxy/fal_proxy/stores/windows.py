"""A sliding window that never admits more than N in any interval of its length. Counts in slots; no clock of its own."""

from __future__ import annotations

from collections import deque

from fal_proxy.stores import SLOTS, RateState


class Window:
    """The hits of one key, in slots of a sixtieth of the window.

    A hit counts from its own slot through the 60 that follow, so it holds its place for the window's length and up to
    one slot more; what lies within any interval of the window's length is always counted together.
    """

    __slots__ = ("_hits", "_total")

    def __init__(self) -> None:
        self._hits: deque[list[int]] = deque()  # [slot, count], oldest first
        self._total = 0

    def count(self, slot: int) -> int:
        """Return the hits that still hold a place."""
        hits = self._hits
        while hits and hits[0][0] < slot - SLOTS:
            self._total -= hits.popleft()[1]
        return self._total

    def hit(self, slot: int) -> None:
        """Add one."""
        if self._hits and self._hits[-1][0] == slot:
            self._hits[-1][1] += 1
        else:
            self._hits.append([slot, 1])
        self._total += 1

    @property
    def newest(self) -> int:
        """Return the slot of the last hit, -1 without one."""
        return self._hits[-1][0] if self._hits else -1

    def state(self, limit: int, window_seconds: int, now: float) -> RateState:
        """Return what is left of `limit`, and the seconds until one more place is free than now."""
        slot_seconds = window_seconds / SLOTS
        total = self.count(int(now / slot_seconds))
        surplus = max(total - limit, 0)
        for slot, count in self._hits:
            surplus -= count
            if surplus < 0:
                return RateState(max(limit - total, 0), (slot + SLOTS + 1) * slot_seconds - now)
        return RateState(max(limit - total, 0), 0.0)

    def dump(self) -> list[list[int]]:
        """Return the slots, for the journal."""
        return [list(hit) for hit in self._hits]

    @classmethod
    def load(cls, hits: list[list[int]]) -> Window:
        """Rebuild a window from `dump`."""
        window = cls()
        window._hits = deque(list(hit) for hit in hits)
        window._total = sum(count for _, count in hits)
        return window
