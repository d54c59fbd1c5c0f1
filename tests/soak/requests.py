"""A million requests through one proxy with everything on: what its memory comes to, every hundred thousand.

`./run env PYTHONPATH=tests python -m soak.requests [COUNT]`: half of them runs, half submits with their polls and results.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

from bench import load, machine, nginx
from bench.subjects import CALLERS, opened
from support.https import write_authority
from support.observed import raise_descriptor_limit

LOOK_EVERY = 100_000
ROUND_SECONDS = 10.0
GROWTH_BYTES = 4 << 20  # from the first look to the last


def main() -> int:
    """Ask, look, and return 1 if memory grew."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    machine.require()
    raise_descriptor_limit()
    os.sched_setaffinity(0, {machine.LOAD_CORE})
    asked, looks, began = 0.0, list[int](), time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # nginx's worker is another user
        write_authority(folder)
        plain, _ = stack.enter_context(nginx.fal(folder, machine.LOAD_CORE))
        ours = stack.enter_context(opened(folder, {"plain": ("http", plain)})).ours("plain")
        while asked < count:
            before = time.monotonic()
            runs = load.posts(ours, "fal.run/bench/run", 32, ROUND_SECONDS, folder)
            between = time.monotonic()
            jobs = load.mix(ours, CALLERS, ROUND_SECONDS, folder)
            asked += runs.rate * (between - before) + jobs.rate * (time.monotonic() - between)
            if asked >= LOOK_EVERY * (len(looks) + 1):
                looks.append(machine.resident_bytes(ours.pid))
                print(f"{asked:>12,.0f} requests: {looks[-1] / 2**20:.1f} MiB", flush=True)
    grown = looks[-1] - looks[0]
    print(f"grown by {grown / 2**20:.1f} MiB after the first {LOOK_EVERY:,}; {time.monotonic() - began:.0f} s")
    return grown > GROWTH_BYTES


if __name__ == "__main__":
    raise SystemExit(main())
