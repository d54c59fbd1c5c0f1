"""The command `check --live`: people and programs are told the same, and it exits as `check` does."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fal_proxy.loading import Finding
from support import hearing
from support.commands import clean_environment
from support.hearing import GOOD, INVALID, NOT_FOUND, Fal
from support.proxied import FAL_KEY_ID, FAL_KEY_SECRET
from support.services import Reply

fal, url = hearing.fal, hearing.url


CONFIG = (
    '[identity]\nsources = ["key"]\n[plans.default]\nendpoints = ["fal-ai/flux/dev"]\n[state]\nurl = "memory://state"\n'
)


async def _check(folder: Path, *arguments: str, **environ: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fal_proxy", "check", *arguments),
        cwd=folder,
        env=clean_environment(FAL_KEY=GOOD, **environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


COMMANDS: list[tuple[Reply, int, str]] = [(NOT_FOUND, 0, "accepts"), (INVALID, 3, "does not accept")]


@pytest.mark.parametrize(("queue", "code", "word"), COMMANDS)
async def test_the_command_tells_people_and_programs_the_same_and_exits_as_check_does(
    queue: Reply, code: int, word: str, url: str, fal: Fal, tmp_path: Path
) -> None:
    fal.queue[GOOD] = queue
    (tmp_path / "fal-proxy.toml").write_text(CONFIG)
    text = await _check(tmp_path, "--live", FAL_PROXY_UPSTREAM=url)
    machine = await _check(tmp_path, "--live", "--json", FAL_PROXY_UPSTREAM=url)
    assert (text[0], machine[0], text[2], machine[2]) == (code, code, "", "")
    report: dict[str, Any] = json.loads(machine[1])
    assert set(report) == {"findings", "access", "live"}
    assert set(report["live"]) == {"hosts", "keys", "clock_seconds", "prices"}
    for each in report["findings"]:
        assert str(Finding(**each)) in text[1]
    assert f"live: fal {word} key {FAL_KEY_ID[:8]}…" in text[1]
    assert not any(half in text[1] + machine[1] for half in (FAL_KEY_SECRET, FAL_KEY_ID))
    before = len(fal.asked)
    assert (await _check(tmp_path, FAL_PROXY_UPSTREAM=url))[0] == 0
    assert len(fal.asked) == before, "without --live nobody is asked"
