"""Single flight: whoever asks for what is already being asked for waits for that one answer. Knows nothing of answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Flights(Generic[T]):
    """The questions under way, one per key; a caller that leaves does not end what others wait for."""

    def __init__(self) -> None:
        self._flying: dict[Hashable, asyncio.Task[T]] = {}

    async def join(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        """Return what `ask` returns, asking only if nobody is asking already. Raises what it raises."""
        task = self._flying.get(key)
        if task is None:
            task = self._flying[key] = asyncio.create_task(self._fly(key, ask))
            task.add_done_callback(_look_at)
        return await asyncio.shield(task)

    async def _fly(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            return await ask()
        finally:
            del self._flying[key]

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._flying.values())
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


def _look_at(task: asyncio.Task[T]) -> None:
    """Take note of a failure: everyone who waited for it may have left."""
    if not task.cancelled():
        task.exception()
