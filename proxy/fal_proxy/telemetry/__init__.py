"""What became of each exchange: one line, the metrics and the rollup. Decides nothing, and sees only what an Exchange holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from fal_proxy.exchange import Exchange
from fal_proxy.telemetry.access import AccessLog
from fal_proxy.telemetry.metrics import Keys, Metrics, Upstream
from fal_proxy.telemetry.rollup import Rollup


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
        self.metrics = Metrics(plans, upstream, self.in_progress, keys)
        self.access = AccessLog()
        self.rollup = Rollup()
        self._clock = clock

    def begin(self) -> Exchange:
        """Return a new exchange, which `finish` must end."""
        exchange = Exchange(self._clock)
        self.in_progress.add(exchange)
        return exchange

    def finish(self, exchange: Exchange) -> None:
        """Record an exchange, whatever became of it."""
        self.in_progress.discard(exchange)
        exchange.ended_seconds = exchange.elapsed_seconds
        self.metrics.count(exchange)
        self.access.write(exchange)
        self.rollup.count(exchange)

    def close(self) -> None:
        """Let every line reach its reader."""
        self.access.flush()
