"""The scripts of tests/soak in short: a live proxy process in a storm of faults, of departures, and under many streams.

Their long runs and figures are in tests/soak/RESULTS.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from soak.__main__ import LOADS
from soak.cancellations import cancellations
from soak.faults import storm

RUN = Path(__file__).resolve().parents[2] / "run"


@pytest.mark.parametrize("seed", [1, 2])
async def test_hundreds_of_random_faults_leave_nothing_behind_and_the_books_agree(seed: int, tmp_path: Path) -> None:
    report = await storm(250, seed, tmp_path)
    report.judge()
    assert sum(report.storm.tally.values()) >= 250


async def test_a_thousand_departures_at_random_moments_leave_nothing_behind(tmp_path: Path) -> None:
    report = await cancellations(1000, 3, tmp_path)
    report.judge()
    assert len(report.delays_ms) > 300, "most had reached upstream"
    assert report.delay_ms(0.5) < 1000


def test_streams_are_held_open_without_a_gap() -> None:
    command = [sys.executable, "-m", "soak", "--minutes", "0.05", "--streams", "100", "--churn", "2", "--growth", "50"]

    def soaked(load: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "--load", load],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    with ThreadPoolExecutor() as pool:
        for done in pool.map(soaked, LOADS):
            assert done.returncode == 0, done.stdout + done.stderr
            assert "streams cut or with a gap: 0" in done.stdout


def test_run_soak_says_what_it_can_do() -> None:
    done = subprocess.run([RUN, "soak", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--minutes" in done.stdout
