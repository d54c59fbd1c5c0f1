"""What became of each exchange: one line, the metrics and the rollup. Decides nothing, and sees only what an Exchange holds.

Exchanges that end in one turn of the loop are recorded together, after their answers have left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

from fal_proxy.exchange import Exchange
from fal_proxy.telemetry.access import AccessLog
from fal_proxy.telemetry.metrics import Metrics
from fal_proxy.telemetry.rollup import Rollup
from fal_proxy.telemetry.watched import Keys, Upstream


class Telemetry:
    """The exchanges in progress, and the one place where each is recorded when it ends."""

    def __init__(
        self,
        plans: Collection[str],
        upstream: Upstream,
        keys: Keys | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.in_progress: set[Exchange] = set()
        self.metrics = Metrics(plans, upstream, self.in_progress, keys, self._record)
        self.access = AccessLog()
        self.rollup = Rollup()
        self._clock = clock
        self._ended: list[Exchange] = []

    def begin(self) -> Exchange:
        """Return a new exchange, which `finish` must end."""
        exchange = Exchange(self._clock, started=self._clock())
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

    def close(self) -> None:
        """Let every line reach its reader."""
        self._record()
        self.access.flush()
