"""Python processes with a fal_client of one version, pinned by hash; nothing of this machine's settings gets in."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INSTALL_SECONDS = 300.0
ANSWER_SECONDS = 60.0
_LINE_BYTES = 16 * 1024 * 1024
_STAMP = "installed-from"


@dataclass(frozen=True)
class Python:
    """This interpreter, with the packages of `folder` and no others; None: with those of the environment."""

    folder: Path | None = None

    @contextlib.asynccontextmanager
    async def started(self, script: Path, environ: dict[str, str], *arguments: str) -> AsyncIterator[Run]:
        """Run a script that answers each line of JSON on its stdin with one on its stdout."""
        isolated = [] if self.folder is None else ["-S"]
        packages = {} if self.folder is None else {"PYTHONPATH": str(self.folder)}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-B",
            *isolated,
            str(script),
            *arguments,
            env={**packages, **environ},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
        )
        try:
            yield Run(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


class Run:
    """One running script."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, **question: Any) -> Any:
        """Return the script's answer. Fails with what the script said when it ended instead."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(question).encode() + b"\n")
        async with asyncio.timeout(ANSWER_SECONDS):
            await process.stdin.drain()
            line = await process.stdout.readline()
            if not line:
                _, stderr = await process.communicate()
                raise AssertionError(f"the script ended\n{stderr.decode()}")
        return json.loads(line)


def installed(lock: Path, folder: Path) -> Python:
    """Return a Python with exactly what `lock` pins, installed into `folder` where it is not yet."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    stamp = folder / _STAMP
    with (folder.parent / f"{folder.name}.installing").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(folder)
            command = ["uv", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--python", sys.executable]
            command += ["--target", str(folder), "--requirement", str(lock)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"uv could not install {lock.name}:\n{done.stdout}{done.stderr}")
            stamp.write_text(wanted)
    return Python(folder)
