"""Python processes with a fal_client of one version, pinned by hash; nothing of this machine's settings gets in."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INSTALL_SECONDS = 300.0
SCRIPT_SECONDS = 60.0
_STAMP = "installed-from"


@dataclass(frozen=True)
class Python:
    """This interpreter, with the packages of `folder` and no others; None: with those of the environment."""

    folder: Path | None = None

    async def play(self, script: Path, scenario: str, environ: dict[str, str], **params: Any) -> Any:
        """Run one scenario of a script to its end and return the JSON that it prints. Fails with what else it said."""
        isolated = [] if self.folder is None else ["-S"]
        packages = {} if self.folder is None else {"PYTHONPATH": str(self.folder)}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-B",
            *isolated,
            str(script),
            scenario,
            json.dumps(params),
            env={**packages, **environ},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(SCRIPT_SECONDS):
                stdout, stderr = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, f"exit {process.returncode}\n{stdout.decode()}\n{stderr.decode()}"
        return json.loads(stdout)


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
