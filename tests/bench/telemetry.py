"""What recording one exchange costs: `./run env PYTHONPATH=tests python tests/bench/telemetry.py`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from fal_proxy.exchange import Caller, Exchange, Kind
from fal_proxy.telemetry import Telemetry
from fal_proxy.telemetry.lines import LineWriter

ROUNDS = 50_000


class Idle:
    """An upstream at rest."""

    idle = 0
    open_calls = 0


def microseconds(work: Callable[[], object]) -> float:
    """Return the cost of one call, the best of five series."""
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(ROUNDS):
            work()
        best = min(best, time.perf_counter() - began)
    return best / ROUNDS * 1e6


def main() -> None:
    """Measure and print."""
    with Path("/dev/null").open("w") as nowhere:
        lines = LineWriter(nowhere, max_waiting=10 * ROUNDS)
        lines.start()
        telemetry = Telemetry(["default"], Idle())
        exchange = Exchange()
        exchange.caller = Caller("key::ada", "key", "default", ambient=False)
        exchange.kind, exchange.plan, exchange.endpoint_id = Kind.RUN, "default", "fal-ai/flux/dev"
        exchange.status, exchange.first_byte_seconds, exchange.ended_seconds = 200, 0.5, 1.0
        access = telemetry.access
        access.outlet = lines
        figures = {
            "an access line": microseconds(lambda: access.write(exchange)),
            "a metrics update": microseconds(lambda: telemetry.metrics.count(exchange)),
            "the rollup": microseconds(lambda: telemetry.rollup.count(exchange)),
            "begin and finish": microseconds(lambda: telemetry.finish(telemetry.begin())),
        }
        lines.flush()
    for name, figure in figures.items():
        sys.stdout.write(f"{name}: {figure:.2f} us\n")


if __name__ == "__main__":
    main()
