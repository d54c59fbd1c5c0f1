"""`./run bench [--quick] [CASE ...]`: ours beside nginx and the official proxy, with everything on.

All cases at full length are written to tests/bench/RESULTS.md; anything less is printed only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import machine, nginx
from bench.cases import CASES, FULL, GOALS, QUICK, Bench
from bench.figures import Figures
from bench.subjects import opened
from support.https import write_authority
from support.observed import raise_descriptor_limit

RESULTS = Path(__file__).with_name("RESULTS.md")
QUIET_LOAD = 0.7
_BUSY = " **The machine was busy: whatever is measured by the clock is chance, ratios of processor time are not.**"
BEGIN, END = "<!-- written by ./run bench -->\n", "<!-- end of what ./run bench writes -->\n"


@contextlib.contextmanager
def talk() -> Iterator[int]:
    """Run the upstream of streams, sockets and uploads; yields its port."""
    command = machine.pinned(machine.LOAD_CORE, [sys.executable, "-m", "bench.talk"])
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def run(names: list[str], *, quick: bool) -> Figures:
    """Measure and return every figure."""
    figures = Figures()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # nginx's worker is another user
        write_authority(folder)
        plain, tls = stack.enter_context(nginx.fal(folder, machine.LOAD_CORE))
        upstreams = {"plain": ("http", plain), "tls": ("https", tls), "talk": ("http", stack.enter_context(talk()))}
        for name in names:
            with opened(folder, upstreams) as stage:
                CASES[name](Bench(stage, QUICK if quick else FULL, figures))
    return figures


def report(figures: Figures, took_seconds: float, loads: tuple[float, float]) -> str:
    """Return everything as a section of Markdown."""
    goals = [line for goal in GOALS if (line := goal.line(figures)) is not None]
    parts = [
        f"{machine.description()} Load average {loads[0]:.1f} before, {loads[1]:.1f} after; {took_seconds:.0f} s."
        + (_BUSY if loads[0] > QUIET_LOAD else ""),
        "\n".join(figures.table()) if figures.rows else "",
        "\n".join(["| what must be reached | | here | | by processor time |", "|---|---|---|---|---|", *goals])
        if goals
        else "",
        "\n".join(["Microseconds per request of each stage of the spine, its own alone:", "", *figures.profile()])
        if figures.stages
        else "",
        "\n".join(["Admission alone:", "", *(f"- {note}" for note in figures.notes)]) if figures.notes else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write(text: str) -> None:
    """Put the section in its place in RESULTS.md."""
    page = RESULTS.read_text("utf-8")
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    RESULTS.write_text(pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", page), "utf-8")


def main() -> None:
    """Measure, print, and write what is complete."""
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of: {', '.join(CASES)}; none: all")
    parser.add_argument("--quick", action="store_true", help="short rounds; all cases in less than two minutes")
    asked = parser.parse_args()
    if unknown := sorted(set(asked.cases) - set(CASES)):
        parser.error(f"no such case: {', '.join(unknown)}")
    machine.require()
    raise_descriptor_limit()
    os.sched_setaffinity(0, {machine.LOAD_CORE})
    before, began = machine.load_average(), time.monotonic()
    figures = run(asked.cases or list(CASES), quick=asked.quick)
    text = report(figures, time.monotonic() - began, (before, machine.load_average()))
    print(text)
    if not asked.cases and not asked.quick:
        write(text)


if __name__ == "__main__":
    main()
