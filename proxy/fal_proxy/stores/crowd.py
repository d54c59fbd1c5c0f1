"""Numbered things by their owner, and which owner holds most: so that a flood drops the flooder's own first."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort

_STALE_MOST = 1000  # places in the heap that are no longer true, before it is built anew


class Crowd:
    """Numbers and their sizes in bytes; every operation is O(log n) but for the owner's own list."""

    def __init__(self) -> None:
        self._numbers: dict[str, list[int]] = {}
        self._bytes: dict[str, int] = {}
        self._heaviest: list[tuple[int, str]] = []  # bytes, negative; old places stay until they come up

    def add(self, owner: str, number: int, size: int) -> None:
        """Add a number to what an owner has."""
        insort(self._numbers.setdefault(owner, []), number)
        self._weigh(owner, size)

    def remove(self, owner: str, number: int, size: int) -> None:
        """Remove one that was added."""
        remove(self._numbers, owner, number)
        self._weigh(owner, -size)

    def count(self, owner: str) -> int:
        """Return how many an owner has."""
        return len(self._numbers.get(owner, ()))

    def oldest(self, owner: str) -> int:
        """Return an owner's lowest number. Raises KeyError without one."""
        return self._numbers[owner][0]

    def oldest_of_heaviest(self) -> int | None:
        """Return the lowest number of whoever has the most bytes; of equals, the first by name."""
        while self._heaviest:
            weight, owner = self._heaviest[0]
            if self._bytes.get(owner) == -weight:
                return self.oldest(owner)
            heapq.heappop(self._heaviest)
        return None

    def _weigh(self, owner: str, more: int) -> None:
        weight = self._bytes[owner] = self._bytes.get(owner, 0) + more
        if not weight:
            del self._bytes[owner]
        elif len(self._heaviest) > 2 * len(self._bytes) + _STALE_MOST:
            self._heaviest = [(-each, name) for name, each in self._bytes.items()]
            heapq.heapify(self._heaviest)
        else:
            heapq.heappush(self._heaviest, (-weight, owner))


def remove(index: dict[str, list[int]], name: str, number: int) -> None:
    """Remove a number from an ascending list of an index, and the list with its last."""
    numbers = index[name]
    del numbers[bisect_left(numbers, number)]
    if not numbers:
        del index[name]
