"""`./run soak`: thousands of streams through one proxy process for minutes; does its memory stand still?

Four processes: this one watches, one is the proxy, one upstream, one all callers. A kind of load is a module of this
folder with the two sides as its commands (`upstream`, and `callers PORT COUNT CHURN`); LOADS lists them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median

from soak.sse import Tally
from support.observed import Observed, Sight, observed, raise_descriptor_limit

LOADS = {"sse": "soak.sse", "sockets": "soak.sockets"}
LOOK_SECONDS = 5.0  # each takes the proxy a few tenths of a second: it collects garbage first
LOOKS = 10  # of a short run
WINDOW_SECONDS = 60.0
GROWTH_PERCENT = 2.0
Looks = list[tuple[float, Sight, Tally]]


@contextlib.asynccontextmanager
async def process(module: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a module until the block ends; its stdout is a pipe."""
    made = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        yield made
    finally:
        if made.returncode is None:
            made.terminate()
        await made.wait()


async def soak(load: str, streams: int, minutes: float, churn: int, most_growth: float) -> bool:
    """Run one load and print what it came to; return whether memory stood still and no stream was harmed."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = await stack.enter_async_context(process(LOADS[load], "upstream"))
        assert upstream.stdout is not None
        proxy = await stack.enter_async_context(observed(int(await upstream.stdout.readline()), folder))
        empty = await proxy.look()
        callers = await stack.enter_async_context(
            process(LOADS[load], "callers", str(proxy.port), str(streams), str(churn))
        )
        looks = await _watch(proxy, callers, streams, churn, minutes * 60)
    return _tell(load, empty, looks) < most_growth and looks[-1][2].faults == 0


async def _watch(
    proxy: Observed, callers: asyncio.subprocess.Process, streams: int, churn: int, seconds: float
) -> Looks:
    """Look at the proxy from the moment that it has all streams but those that come and go."""
    loop = asyncio.get_running_loop()
    looks: Looks = []
    began: float | None = None
    looked = 0.0
    assert callers.stdout is not None
    while line := await callers.stdout.readline():
        tally = Tally(*json.loads(line))
        if tally.open < streams or loop.time() - looked < min(LOOK_SECONDS, seconds / LOOKS):
            continue
        looked, sight = loop.time(), await proxy.look()
        if began is None and sight.in_progress >= streams - 2 * churn:
            began = looked
        if began is not None:
            looks.append((looked - began, sight, tally))
            if looked - began >= seconds:
                return looks
    raise AssertionError("the callers ended")


def _tell(load: str, empty: Sight, looks: Looks) -> float:
    """Print what came of it; return how much the memory grew, in percent."""
    seconds, _, tally = looks[-1]
    window = min(WINDOW_SECONDS, seconds / 3)
    begin = [sight for at, sight, _ in looks if at <= window]
    end = [sight for at, sight, _ in looks if at >= seconds - window]
    first, last = (median(sight.resident_kib for sight in sights) for sights in (begin, end))
    growth = 100 * (last - first) / first
    live = [median(sight.blocks / sight.in_progress for sight in sights) for sights in (begin, end)]
    each = (first - empty.resident_kib) / tally.open
    heard = (tally.events - looks[0][2].events) / seconds
    delays = sorted(tally.slowest_ms for _, _, tally in looks)
    sockets = sorted({sight.sockets for _, sight, _ in looks})
    print(f"{load}: {tally.open} streams for {seconds / 60:.1f} minutes, {tally.opened} opened in all")
    print(f"  events: {tally.events} ({heard:.0f} a second), streams cut or with a gap: {tally.faults}")
    print(f"  slowest event of a second: {median(delays):.0f} ms (median), {delays[-1]:.0f} ms (worst)")
    print(f"  resident memory: {empty.resident_kib / 1024:.1f} MiB empty; {each:.1f} KiB a stream")
    print(
        f"  first {window:.0f} s: {first / 1024:.1f} MiB, last {window:.0f} s: {last / 1024:.1f} MiB: {growth:+.2f} %"
    )
    print(f"  blocks of memory in use, a stream: {live[0]:.1f} first, {live[1]:.1f} last")
    print(f"  sockets: {sockets[0]} to {sockets[-1]}; tasks: {looks[0][1].tasks} first, {looks[-1][1].tasks} last")
    return growth


def main() -> int:
    """Run the loads that were asked for."""
    parser = argparse.ArgumentParser(prog="./run soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--churn", type=int, default=10, help="streams that leave and are replaced, a second")
    parser.add_argument("--load", choices=sorted(LOADS), action="append", help="default: all")
    parser.add_argument(
        "--growth", type=float, default=GROWTH_PERCENT, help="of memory that is still no growth, percent"
    )
    options = parser.parse_args()
    print(f"descriptors allowed: {raise_descriptor_limit()}", flush=True)
    loads = options.load or sorted(LOADS)
    passed = [
        asyncio.run(soak(load, options.streams, options.minutes, options.churn, options.growth)) for load in loads
    ]
    print("passed" if all(passed) else "FAILED")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
