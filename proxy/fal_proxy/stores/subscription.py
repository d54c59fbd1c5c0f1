"""One Redis channel, heard on a connection of its own that is made anew whenever it ends. Knows nothing of what it hears.

Whoever subscribes is told each time the connection stands, before the first message: what was published meanwhile is
lost, so that is the moment to ask. A connection that has said nothing for a while is asked, because one that vanished
looks just as quiet.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from fal_proxy.errors import StoreUnavailable

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

QUIET_SECONDS = 10.0
REPLY_SECONDS = 2.0
FIRST_PAUSE_SECONDS = 0.25  # between two connections; doubles
LONGEST_PAUSE_SECONDS = 5.0
_log = logging.getLogger(__name__)


class Subscription:
    """`run` until cancelled."""

    def __init__(
        self,
        dial: Callable[[], Awaitable[AbstractConnection]],
        channel: str,
        stands: Callable[[], Awaitable[None]],
        heard: Callable[[bytes], None],
    ) -> None:
        """Take how to connect, what to await when a connection stands (it may raise StoreUnavailable), and whom to tell."""
        self._dial = dial
        self._channel = channel
        self._stands = stands
        self._heard = heard
        self._pause = FIRST_PAUSE_SECONDS

    async def run(self) -> None:
        """Listen, for ever."""
        while True:
            try:
                await self._listen()
            except (RedisError, OSError, StoreUnavailable):  # OSError: TimeoutError too
                pass
            except Exception:  # noqa: BLE001 -- one message that we do not understand must not end the listening
                _log.exception("fault while listening to %s", self._channel)
            # Not all processes at once: a Redis that comes back has enough to do.
            await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))  # noqa: S311 -- no secret
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    async def _listen(self) -> None:
        async with asyncio.timeout(REPLY_SECONDS):
            connection = await self._dial()
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                await connection.send_command("SUBSCRIBE", self._channel)
                await connection.read_response()
            await self._stands()
            self._pause = FIRST_PAUSE_SECONDS
            while True:
                kind, *_, content = await self._next(connection)
                if kind == b"message":
                    self._heard(content)
        finally:
            await connection.disconnect(nowait=True)

    async def _next(self, connection: AbstractConnection) -> list[bytes]:
        # With a deadline of its own, redis-py keeps a half-read message for the next call and returns None.
        message: list[bytes] | None = await connection.read_response(timeout=QUIET_SECONDS)
        if message is None:
            await connection.send_command("PING")
            message = await connection.read_response(timeout=REPLY_SECONDS)
        if message is None:
            raise TimeoutError
        return message
