"""The HTTP/1.1 client: opens calls over connections that it pools. What a call is, `call.py` says.

A general client does a great deal that a credential proxy must not: it follows redirects, keeps cookies, unpacks
bodies, rewrites header fields and paths, reads proxy variables and quietly repeats requests. This one can do nothing
but carry one request and one answer over a connection that it owns meanwhile.
"""

from __future__ import annotations

from fal_proxy.upstream.call import Call
from fal_proxy.upstream.connection import Connection
from fal_proxy.upstream.dial import Dialer, Origin
from fal_proxy.upstream.pool import Pool


class Engine:
    """Open calls, reusing idle connections of the same origin. Close it with `close()`."""

    def __init__(self, dialer: Dialer, pool: Pool[Origin, Connection] | None = None) -> None:
        self._dialer = dialer
        self._pool: Pool[Origin, Connection] = pool if pool is not None else Pool()
        self.open_calls = 0

    @property
    def idle(self) -> int:
        """Return the number of idle connections."""
        return len(self._pool)

    async def open(self, origin: Origin, *, fresh: bool = False) -> Call:
        """Return a call on an idle or a new connection (`fresh`: a new one). Raises ConnectError, ConnectTimeout."""
        call = None if fresh else self.reuse(origin)
        if call is None:
            connection = await self._dialer.connect(origin)
            self.open_calls += 1
            call = Call(connection, origin, self._released, reused=False)
        return call

    def reuse(self, origin: Origin) -> Call | None:
        """Return a call on an idle connection, None when there is none."""
        connection = self._pool.take(origin)
        if connection is None:
            return None
        self.open_calls += 1
        return Call(connection, origin, self._released, reused=True)

    def close(self) -> None:
        """Close all idle connections; calls in progress end with their own release."""
        self._pool.close()

    def _released(self, origin: Origin, connection: Connection, clean: bool) -> None:
        self.open_calls -= 1
        if clean:
            self._pool.put(origin, connection)
        else:
            connection.abort()
