"""SIGHUP, which asks `serve` for its settings to be read anew: heard from the first moment on, and never deadly."""

from __future__ import annotations

import asyncio
import signal
from types import FrameType


class Hangup:
    """What was asked for and not answered yet. One per process, made in its main thread."""

    def __init__(self) -> None:
        self._asked = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        signal.signal(signal.SIGHUP, self._heard)

    @property
    def pending(self) -> bool:
        """Say whether somebody waits for an answer."""
        return self._asked

    def ask(self) -> None:
        """Ask, or ask again."""
        self._asked = True

    def take(self) -> bool:
        """Say whether somebody waits for an answer, who is to get it now."""
        asked, self._asked = self._asked, False
        return asked

    async def wait(self, seconds: float) -> None:
        """Wait so long, or until a signal comes."""
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass
        finally:
            self._loop = None

    def ignore(self) -> None:
        """Hear nothing any more: what is left of the process is its end."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        # Between any two instructions; the loop is there while somebody waits in it.
        if self._loop is not None and self._wake is not None:
            self._loop.call_soon_threadsafe(self._wake.set)
