"""A sliding window that never admits more than N in any interval of its length. Counts in slots; no clock of its own."""

from __future__ import annotations

from collections import OrderedDict, deque

from fal_proxy.stores import SLOTS, RateState


class Window:
    """The hits of one key, in slots of a sixtieth of the window.

    A hit counts from its own slot through the 60 that follow, so it holds its place for the window's length and up to
    one slot more; what lies within any interval of the window's length is always counted together.

    Most keys have hits in one slot only, so the newest is two integers and older ones get a deque when there are any.
    """

    __slots__ = ("_count", "_older", "_total", "newest")

    def __init__(self) -> None:
        self.newest = -1  # the slot of the last hit, -1 without one
        self._count = 0  # hits in it
        self._total = 0  # hits that hold a place
        self._older: deque[tuple[int, int]] | None = None  # (slot, hits), oldest first

    def count(self, slot: int) -> int:
        """Return the hits that still hold a place."""
        edge = slot - SLOTS
        if self.newest < edge:
            self._older, self._count, self._total = None, 0, 0
        elif (older := self._older) is not None:
            while older and older[0][0] < edge:
                self._total -= older.popleft()[1]
            if not older:
                self._older = None
        return self._total

    def hit(self, slot: int) -> None:
        """Add one."""
        if slot <= self.newest:  # less only where the clock stepped back across a restart
            self._count += 1
        else:
            if self._count:
                if self._older is None:
                    self._older = deque()
                self._older.append((self.newest, self._count))
            self.newest, self._count = slot, 1
        self._total += 1

    def admit(self, slot: int, limit: int) -> bool:
        """Add one unless `limit` hits hold a place; say whether it was added. What `count` and `hit` do, in one call."""
        if slot == self.newest:
            if self._total >= limit:
                return False
            self._count += 1
            self._total += 1
            return True
        if self.count(slot) >= limit:
            return False
        self.hit(slot)
        return True

    def state(self, limit: int, window_seconds: int, now: float) -> RateState:
        """Return what is left of `limit`, and the seconds until one more place is free than now."""
        slot_seconds = window_seconds / SLOTS
        total = self.count(int(now / slot_seconds))
        if total == 0:
            return RateState(limit, 0.0)
        surplus = total - limit if total > limit else 0
        freeing = self.newest
        for slot, count in self._older or ():
            surplus -= count
            if surplus < 0:
                freeing = slot
                break
        return RateState(limit - total if limit > total else 0, (freeing + SLOTS + 1) * slot_seconds - now)

    def dump(self) -> list[tuple[int, int]]:
        """Return the slots and their hits, oldest first, for the journal."""
        newest = [(self.newest, self._count)] if self._count else []
        return [*(self._older or ()), *newest]

    @classmethod
    def load(cls, hits: list[tuple[int, int]]) -> Window:
        """Rebuild a window from `dump`."""
        window = cls()
        for slot, count in hits:
            window.hit(slot)
            window._count += count - 1
            window._total += count - 1
        return window


def drop_idle(windows: OrderedDict[str, Window], slot: int, most: int) -> None:
    """Drop up to `most` of the windows, least recently hit first, in which no hit holds a place any more."""
    for _ in range(most):  # more than the new one that is the reason to look
        key = next(iter(windows), None)
        if key is None or windows[key].newest + SLOTS >= slot:
            break
        del windows[key]
