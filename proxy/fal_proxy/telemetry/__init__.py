"""What became of each exchange: one line, the metrics, the rollup and, if wanted, spans.

Decides nothing, and sees only what an Exchange holds. Exchanges that end in one turn of the loop are recorded together, after their answers have left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

from fal_proxy.exchange import Exchange
from fal_proxy.request import Request
from fal_proxy.telemetry.access import AccessLog
from fal_proxy.telemetry.metrics import Metrics
from fal_proxy.telemetry.rollup import Rollup
from fal_proxy.telemetry.tracing import Tracing
from fal_proxy.telemetry.watched import Keys, Upstream


class Telemetry:
    """The exchanges in progress, and the one place where each is recorded when it ends."""

    def __init__(
        self,
        plans: Collection[str],
        upstream: Upstream,
        keys: Keys | None = None,
        tracing: Tracing | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.in_progress: set[Exchange] = set()
        self.metrics = Metrics(plans, upstream, self.in_progress, keys, self._record)
        self.access = AccessLog()
        self._tracing = tracing
        self.rollup = Rollup()
        self._clock = clock
        self._ended: list[Exchange] = []

    def begin(self, request: Request | None = None) -> Exchange:
        """Return a new exchange, which `finish` must end; with tracing, the request carries its place on to fal."""
        exchange = Exchange(self._clock, started=self._clock())
        if self._tracing is not None and request is not None:
            self._tracing.begin(exchange, request)
        self.in_progress.add(exchange)
        return exchange

    def finish(self, exchange: Exchange) -> None:
        """Record an exchange, whatever became of it."""
        self.in_progress.discard(exchange)
        exchange.ended_seconds, exchange.ended_at = exchange.elapsed_seconds, self.access.now()
        self._ended.append(exchange)
        if len(self._ended) == 1:
            try:
                asyncio.get_running_loop().call_soon(self._record)
            except RuntimeError:
                self._record()

    def _record(self) -> None:
        ended, self._ended = self._ended, []
        for exchange in ended:
            self.metrics.count(exchange)
        for exchange in ended:
            self.access.write(exchange)
        for exchange in ended:
            self.rollup.count(exchange)
        if self._tracing is not None:
            for exchange in ended:
                self._tracing.finish(exchange)

    async def close(self) -> None:
        """Let every line reach its reader, and spans their collector, for a bounded time."""
        self._record()
        self.access.flush()
        if self._tracing is not None:
            await self._tracing.close()
