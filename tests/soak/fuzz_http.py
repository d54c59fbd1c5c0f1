"""Bent HTTP by the million: `./run env PYTHONPATH=tests python tests/soak/fuzz_http.py [INPUTS] [SEED]`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from support.fuzzing import fuzz


def main() -> None:
    """Run and print what came of it."""
    inputs = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    began = time.monotonic()

    def progress(count: int) -> None:
        if count % 100_000 == 0:
            print(f"{count} inputs, {time.monotonic() - began:.0f} s", flush=True)

    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stage = runner.run(fuzz(Path(folder), inputs, seed, progress))
    answers = ", ".join(f"{status}: {count}" for status, count in sorted(stage.answers.items()))
    print(f"{inputs} inputs, seed {seed}, {time.monotonic() - began:.0f} s, nothing broke")
    print(f"upstream calls: {stage.upstream_calls}, of them to the smuggler's target, plainly: {stage.smuggled}")
    print(f"answers: {answers}")


if __name__ == "__main__":
    main()
