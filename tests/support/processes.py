"""`fal-proxy serve` in a process of its own, with a key's holder and a journal, until the test ends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fal_proxy.identity.key import add
from fal_proxy.stores.journal import Journal
from fal_proxy.stores.replay import StatePuts
from fal_proxy.stores.state import State
from support.commands import clean_environment
from support.proxied import FAL_KEY, MOUNT
from support.raw import request

PATIENCE = 30.0
CONFIG = """
[server]
hosts = ["127.0.0.1"]
{server}
[identity]
sources = ["key"]
[plans.default]
endpoints = ["**"]
budget = "1.00/day"
[prices]
default = 0.25
[state]
url = "memory://state"
[admin]
port = 0
"""


class Process:
    """`fal-proxy serve` in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, bearer: dict[str, str]) -> None:
        self._process = process
        self.port = port
        self.bearer = bearer

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Build a request of the key's holder."""
        return request(method, MOUNT + path, self.bearer | {"Content-Type": "application/json"}, body)

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    async def hear(self, text: str) -> str:
        """Return the next line of stderr that holds a text."""
        assert self._process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while text not in (line := (await self._process.stderr.readline()).decode()):
                assert line, f"it ended without saying {text!r}"
        return line

    def environment(self) -> bytes:
        """Return what the kernel shows of its environment; nothing, if it shows nothing."""
        try:
            return Path(f"/proc/{self._process.pid}/environ").read_bytes()
        except OSError:
            return b""

    async def ended(self) -> tuple[int | None, list[dict[str, Any]]]:
        """Return the exit code and the access lines, once it has ended."""
        out, err = await asyncio.wait_for(self._process.communicate(), PATIENCE)
        assert b"Traceback" not in err, err
        return self._process.returncode, [json.loads(line) for line in out.splitlines()]


Start = Callable[..., Any]


@pytest.fixture
async def start_process(tmp_path: Path) -> AsyncIterator[Start]:
    """Return a function that starts a proxy with lines of `[server]` in front of an upstream.

    `early` is called with its id, before anything of it is waited for.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def started(
            upstream: str,
            server: str = "",
            sections: str = "",
            environ: Mapping[str, str] | None = None,
            early: Callable[[int], Awaitable[None]] | None = None,
        ) -> Process:
            (tmp_path / "fal-proxy.toml").write_text(CONFIG.format(server=server) + sections)
            key = add(tmp_path / "users.toml", "ada", "default")
            surroundings = clean_environment(FAL_KEY=FAL_KEY.reveal(), FAL_PROXY_UPSTREAM=upstream, **(environ or {}))
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "fal_proxy", "serve", "--port", "0"),
                cwd=tmp_path,
                env=surroundings,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            stack.push_async_callback(_killed, process)
            assert process.stdout is not None
            if early is not None:
                await early(process.pid)
            line = (await process.stdout.readline()).decode()
            assert line.startswith("listening on "), line
            return Process(process, int(line.rpartition(":")[2]), {"Authorization": f"Bearer {key}"})

        yield started


async def _killed(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


async def spent(folder: Path) -> tuple[int, int]:
    """Return what the caller's budget has spent and reserved, as a fresh process would read it."""
    journal = Journal(folder / "state")
    state = State()
    try:
        journal.replay(StatePuts(state))
    finally:
        await journal.close()
    [purse] = [purse for name, purse in state.purses.items() if name[0].startswith("caller:")]
    return purse.spent, purse.reserved
