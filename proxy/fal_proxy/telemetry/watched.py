"""What the metrics ask of others at each scrape, instead of being told of every change."""

from __future__ import annotations

from typing import Protocol


class Upstream(Protocol):
    """What is asked of the engine at each scrape."""

    @property
    def idle(self) -> int:
        """Return the number of idle connections."""

    @property
    def open_calls(self) -> int:
        """Return the number of calls in progress."""


class Keys(Protocol):
    """What is asked of the pool of fal keys at each scrape."""

    @property
    def refused(self) -> int:
        """Return how many answers called a key invalid or locked."""

    @property
    def file_faults(self) -> int:
        """Return how many changes of the file could not be read."""

    def usable(self) -> int:
        """Return the number of keys that take new work."""

    def resting(self) -> int:
        """Return the number of keys that are set aside."""


class FetchedPrices(Protocol):
    """What is asked of the price feed at each scrape."""

    @property
    def known(self) -> int:
        """Return how many prices are fetched."""

    @property
    def lookups(self) -> int:
        """Return how many questions were asked."""

    @property
    def failures(self) -> int:
        """Return how many of them had no usable answer."""

    def age_seconds(self) -> float:
        """Return how long ago fal last named a price."""
