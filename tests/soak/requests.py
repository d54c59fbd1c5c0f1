"""A million requests through one proxy with everything on: what its memory comes to, every hundred thousand.

`./run env PYTHONPATH=tests python -m soak.requests [COUNT]`: runs, which must leave nothing behind, then a minute of jobs, whose
owners are remembered for a day.
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
JOB_SECONDS = 60.0
JOB_REQUESTS = 22  # a submit, twenty polls, a result
GROWTH_BYTES = 4 << 20  # from the first look to the last
JOB_BYTES = 4096  # at most, each, with what the first of them brings


def main() -> int:
    """Ask, look, and return 1 if runs left something behind, or jobs more than they may."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    machine.require()
    raise_descriptor_limit()
    os.sched_setaffinity(0, {machine.LOAD_CORE})
    asked, looks = 0.0, list[int]()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # nginx's worker is another user
        write_authority(folder)
        plain, _ = stack.enter_context(nginx.fal(folder, machine.LOAD_CORE))
        ours = stack.enter_context(opened(folder, {"plain": ("http", plain)})).ours("plain")
        while asked < count:
            began = time.monotonic()
            rate = load.posts(ours, "fal.run/bench/run", 32, ROUND_SECONDS, folder).rate
            asked += rate * (time.monotonic() - began)
            if asked >= LOOK_EVERY * (len(looks) + 1):
                looks.append(machine.resident_bytes(ours.pid))
                print(f"{asked:>12,.0f} runs: {looks[-1] / 2**20:.1f} MiB", flush=True)
        load.mix(ours, CALLERS, 1, folder)
        before, began = machine.resident_bytes(ours.pid), time.monotonic()
        rate = load.mix(ours, CALLERS, JOB_SECONDS, folder).rate
        jobs = rate * (time.monotonic() - began) / JOB_REQUESTS
        each = (machine.resident_bytes(ours.pid) - before) / jobs
    grown = looks[-1] - looks[0]
    print(
        f"grown by {grown / 2**20:.1f} MiB after the first {LOOK_EVERY:,} runs; {each:,.0f} bytes a job, {jobs:,.0f} jobs"
    )
    return grown > GROWTH_BYTES or each > JOB_BYTES


if __name__ == "__main__":
    raise SystemExit(main())
