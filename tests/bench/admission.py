"""What an admission costs in memory: CPU microseconds per admit and settle, and bytes of state per anonymous caller.

`./run env PYTHONPATH=tests python tests/bench/admission.py [CALLERS]`: rounds are interleaved, medians are printed.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import time
import tracemalloc

from fal_proxy.admission.gate import Gate
from fal_proxy.admission.limits import compile_limits, parse_budget
from fal_proxy.exchange import Caller, Kind, Target
from fal_proxy.settings import Plan
from fal_proxy.stores import Outcome
from fal_proxy.stores.memory import MemoryStore

CALLERS = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
CALLS = CALLERS // 5
ROUNDS = 5
PLAN = Plan(endpoints=("**",), submit="100000/minute; 1000000/day", budget="1000/day", total_budget="100000/day")
RUN = Target(b"fal.run", b"/fal-ai/flux/dev", None, Kind.RUN, "fal-ai/flux/dev")
STATUS = Target(b"queue.fal.run", b"/x", None, Kind.STATUS, "fal-ai/flux", "abc")


def caller(number: int) -> Caller:
    """Return one of many anonymous callers, two hundred to a network."""
    network = f"anonymous::network-10.{number // 50_000}.{number // 200 % 250}.0/32"
    name = f"anonymous::cookie-{number:022d}"
    return Caller(name, "anonymous", "default", ambient=True, network=network, proves=frozenset([name, network]))


def gate(store: MemoryStore) -> Gate:
    """Return a gate with two rates, concurrency and four budgets for everyone."""
    limits = {"default": compile_limits(PLAN)}
    return Gate(store, limits, parse_budget("1000000/day"), network_factor=100_000, ownership=False)


async def main() -> None:
    """Measure and print."""
    store = MemoryStore()
    desk = gate(store)
    callers = [caller(number) for number in range(CALLERS)]
    gc.collect()
    tracemalloc.start()
    for one in callers:
        grant = await desk.admit(one, desk.demand(one, "default", RUN), 10, "1/100000")
        await store.settle(grant.entry_id, Outcome.BILLED, 10)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"state per anonymous caller: {held / CALLERS:.0f} bytes ({CALLERS} callers)")
    figures: dict[str, list[float]] = {
        "make ready what a run asks, once for a head and a caller": [],
        "admit a run": [],
        "settle it": [],
        "admit a poll": [],
    }
    for _ in range(ROUNDS):
        asked = callers[:CALLS]
        polls = [desk.demand(one, "default", STATUS) for one in asked]
        first = time.process_time()
        runs = [desk.demand(one, "default", RUN) for one in asked]
        began = time.process_time()
        grants = [await desk.admit(one, demand, 10, "1/100000") for one, demand in zip(asked, runs, strict=True)]
        admitted = time.process_time()
        for grant in grants:
            await store.settle(grant.entry_id, Outcome.BILLED, 10)
        settled = time.process_time()
        for one, demand in zip(asked, polls, strict=True):
            await desk.admit(one, demand)
        polled = time.process_time()
        spans = (began - first, admitted - began, settled - admitted, polled - settled)
        for name, span in zip(figures, spans, strict=True):
            figures[name].append(span / CALLS * 1e6)
    for name, values in figures.items():
        print(f"{name}: {statistics.median(values):.1f} µs ({min(values):.1f} to {max(values):.1f})")


if __name__ == "__main__":
    asyncio.run(main())
