"""Node with packages from npm: installed from a lock file once, scripts run as processes of their own.

The scripts speak over pipes: a line on stdin says "go on", the one line on stdout is the result as JSON.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INSTALL_SECONDS = 300.0
SCRIPT_SECONDS = 60.0
_STAMP = "installed-from"


class NodeMissing(Exception):
    """Node or npm is not on this machine; the text names what to install."""


class ScriptFailed(AssertionError):
    """A script ended with an error of its own; the text is what it printed."""


@dataclass(frozen=True)
class Node:
    """An executable and a folder whose packages are installed."""

    executable: str
    folder: Path

    @asynccontextmanager
    async def started(self, script: str, *arguments: str, environ: dict[str, str]) -> AsyncIterator[Run]:
        """Run a script of the folder; its environment is PATH and `environ`, so that no key of the machine gets in."""
        process = await asyncio.create_subprocess_exec(
            self.executable,
            script,
            *arguments,
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], **environ},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
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

    async def go_on(self) -> None:
        """Send the line that the script waits for."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        await self._process.stdin.drain()

    async def answer(self, question: Any) -> Any:
        """Send a line of JSON to a script that answers each with one, and return its answer. Raises ScriptFailed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        async with asyncio.timeout(SCRIPT_SECONDS):
            line = await self._process.stdout.readline()
        if not line:
            await self.result()
        return json.loads(line)

    async def result(self) -> Any:
        """Wait for the end and return the script's one line of JSON. Raises ScriptFailed."""
        async with asyncio.timeout(SCRIPT_SECONDS):
            stdout, stderr = await self._process.communicate()
        if self._process.returncode != 0:
            raise ScriptFailed(f"exit {self._process.returncode}\n{stdout.decode()}\n{stderr.decode()}")
        return json.loads(stdout)


def install(folder: Path) -> Node:
    """Return Node for a folder with a package-lock.json, after `npm ci` where needed. Raises NodeMissing."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        missing = " and ".join(name for name, found in (("node", node), ("npm", npm)) if found is None)
        raise NodeMissing(f"{missing} not found; install Node 18 or newer with npm")
    with _locked(folder):
        wanted = hashlib.sha256((folder / "package-lock.json").read_bytes()).hexdigest()
        stamp = folder / "node_modules" / _STAMP
        if not stamp.exists() or stamp.read_text() != wanted:
            done = subprocess.run(
                [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit-lockfile-registry-resolved"],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=INSTALL_SECONDS,
                check=False,
            )
            if done.returncode != 0:
                raise RuntimeError(f"npm ci failed in {folder}:\n{done.stdout}{done.stderr}")
            stamp.write_text(wanted)
    return Node(node, folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder itself against other installers: npm removes whatever lies inside node_modules."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
