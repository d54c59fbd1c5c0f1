"""The wire to Redis: connections, deadlines, the breaker. Knows nothing of what the scripts mean.

No call takes longer than PLACE_SECONDS + CALL_SECONDS (or what it was given instead), whatever Redis or the network does. After a failure every call
fails at once, while one probe at a time asks whether Redis is back. Having to wait for a connection is no failure of
Redis: it says that we ask too much at once. redis-py brings connections and the protocol, but its pool cannot tell the
one from the other, so the list of idle connections is ours. What did not end with a whole reply is closed, never listed:
no reply can reach the wrong caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from fal_proxy.errors import StoreUnavailable

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

PLACE_SECONDS = 0.1  # for a connection that nobody uses
CALL_SECONDS = 0.19  # from then on: dial, send, receive
PROBE_SECONDS = 0.25
CONNECTIONS = 32

Argument = str | bytes | int
T = TypeVar("T")


class NotSent(StoreUnavailable):
    """Redis never saw the call, or answered it with an error."""


class Link:
    """Calls to one Redis. Made and used on one event loop; `close` ends it."""

    def __init__(
        self,
        url: str,
        *,
        place_seconds: float = PLACE_SECONDS,
        call_seconds: float = CALL_SECONDS,
        connections: int = CONNECTIONS,
    ) -> None:
        """Read the URL; connects with the first call. Raises ValueError for what is no Redis URL."""
        self._place_seconds = place_seconds
        self._call_seconds = call_seconds
        self._factory = BlockingConnectionPool.from_url(
            url,
            protocol=2,  # no HELLO: one round trip less per connection
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=call_seconds,
            socket_timeout=None,  # the deadline of the whole call is stricter
            socket_keepalive=True,
            driver_info=None,
        )
        self._idle: list[AbstractConnection] = []
        self._places = asyncio.Semaphore(connections)
        self._answering = asyncio.Event()
        self._answering.set()
        self._probe: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def broken(self) -> bool:
        """Whether calls fail at once."""
        return not self._answering.is_set()

    async def answering(self) -> None:
        """Wait until calls are worth trying."""
        await self._answering.wait()

    async def call(self, *commands: tuple[Argument, ...]) -> Any:
        """Return Redis' reply to the first command; to the next one, if the first names a script that Redis lacks.

        Raises StoreUnavailable, NotSent if nothing was written, or ResponseError for an error that Redis answered with.
        """
        self._refuse_if_away()
        await self._take_place()
        raised: type[StoreUnavailable] = NotSent
        try:
            async with asyncio.timeout(self._call_seconds):
                connection = await self._connect()
                raised = StoreUnavailable
                return await self._converse(connection, commands)
        except ResponseError:
            raise
        except (RedisError, OSError) as failure:
            self._break()
            raise raised(f"Redis: {type(failure).__name__}") from failure
        finally:
            self._places.release()

    def _refuse_if_away(self) -> None:
        if self.broken or self._closed:
            raise NotSent("Redis does not answer")

    async def _take_place(self) -> None:
        try:
            async with asyncio.timeout(self._place_seconds if self._places.locked() else None):
                await self._places.acquire()
        except TimeoutError:
            raise NotSent("too many calls to Redis at once") from None
        try:
            self._refuse_if_away()
        except NotSent:
            self._places.release()
            raise

    async def _connect(self) -> AbstractConnection:
        connection: AbstractConnection
        while self._idle:
            connection = self._idle.pop()
            # Readable before a question was asked: closed by Redis, or out of step.
            if not await _done(connection, connection.can_read()):
                return connection
            await connection.disconnect(nowait=True)
        return await self.dial()

    async def dial(self) -> AbstractConnection:
        """Return a new connection, which is the caller's alone to close. Raises RedisError or OSError."""
        connection: AbstractConnection = self._factory.make_connection()  # type: ignore[no-untyped-call]
        await _done(connection, connection.connect())  # type: ignore[no-untyped-call]
        return connection

    async def _converse(self, connection: AbstractConnection, commands: tuple[tuple[Argument, ...], ...]) -> Any:
        reply: Any = None
        try:
            for command in commands:
                await connection.send_command(*command)
                try:
                    reply = await connection.read_response()
                    break
                except NoScriptError:
                    if command is commands[-1]:
                        raise
        except BaseException:
            # Errors too: a demoted primary answers READONLY for ever, and its name may lead elsewhere by now.
            await connection.disconnect(nowait=True)
            raise
        if self._closed:
            await connection.disconnect(nowait=True)
        else:
            self._idle.append(connection)
        return reply

    def _break(self) -> None:
        if self._probe is None:
            self._answering.clear()
            self._probe = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        while True:
            while self._idle:
                await self._idle.pop().disconnect(nowait=True)
            await asyncio.sleep(PROBE_SECONDS)
            try:
                async with asyncio.timeout(self._call_seconds):
                    await self._converse(await self._connect(), (("PING",),))
                break
            except (RedisError, OSError):
                continue
        self._probe = None
        self._answering.set()

    async def close(self) -> None:
        """Close every connection that nobody waits for, stop probing, and refuse further calls."""
        self._closed = True
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait([self._probe])
        while self._idle:
            await self._idle.pop().disconnect(nowait=True)


async def _done(connection: AbstractConnection, step: Awaitable[T]) -> T:
    try:
        return await step
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
