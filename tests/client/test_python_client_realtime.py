"""Python's fal_client, unmodified, through TLS and the proxy: the client speaks https and wss only, and the proxy neither."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from client.stage import judge
from fal_proxy.settings import Settings
from support.certificates import authority
from support.emulated import Emulated, emulated
from support.proxied import MOUNT, Proxy, open_settings, proxied
from support.tls import terminated

SCRIPT = Path(__file__).parent / "python_client.py"
SCRIPT_SECONDS = 60.0


class Python:
    """A machine with the Python client, a user key, and the proxy's name in place of fal's."""

    def __init__(self, fal: Emulated, proxy: Proxy, port: int, folder: Path) -> None:
        self.fal = fal
        self._proxy = proxy
        self._port = port
        self._authority = folder / "authority.pem"
        authority().cert_pem.write_to_path(str(self._authority))

    async def play(self, scenario: str, endpoint: str, **environ: str) -> Any:
        """Run a scenario with an environment of its own."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(SCRIPT),
            scenario,
            endpoint,
            stdout=asyncio.subprocess.PIPE,
            env={
                "PATH": os.environ["PATH"],
                "SSL_CERT_FILE": str(self._authority),
                "FAL_KEY": self._proxy.user_key,
                "FAL_RUN_HOST": f"localhost:{self._port}{MOUNT}/fal.run",
                **environ,
            },
        )
        try:
            async with asyncio.timeout(SCRIPT_SECONDS):
                stdout, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return json.loads(stdout)


@asynccontextmanager
async def python(folder: Path, settings: Settings | None = None, **emulator: Any) -> AsyncIterator[Python]:
    """Run emulator, proxy and TLS for the client; in the end judge everything that reached fal."""
    async with (
        emulated(**emulator) as fal,
        proxied(fal.url, folder, settings) as proxy,
        terminated(proxy.port) as port,
    ):
        yield Python(fal, proxy, port, folder)
        judge(fal.app.journal, proxy.user_key)


@pytest.mark.parametrize("scenario", ["sync", "of_async", "led_sync", "led_of_async"])
async def test_realtime_gets_its_answers_with_a_user_key_and_with_a_ticket(scenario: str, tmp_path: Path) -> None:
    async with python(tmp_path) as machine:
        assert await machine.play(scenario, "a/b/c") == [0, 1, 2]
        [handshake] = machine.fal.app.journal
        assert handshake.target == b"/a/b/c/realtime?max_buffering=5"
        names = "Python/" if scenario.startswith("led") else "fal-client/"  # with a ticket it does not name itself
        assert (handshake.header("user-agent") or "").startswith(names)


@pytest.mark.parametrize("scenario", ["path_sync", "path_async", "led_path_sync"])
async def test_an_apps_own_path_speaks_text(scenario: str, tmp_path: Path) -> None:
    async with python(tmp_path) as machine:
        assert await machine.play(scenario, "emulator/text") == "hello"
        [handshake] = machine.fal.app.journal
        assert handshake.target == b"/emulator/text/chat"


async def test_the_default_asks_rest_fal_ai_for_a_token_whatever_the_environment_says(tmp_path: Path) -> None:
    """Such a client never reaches the proxy, and shows its user key to fal: `use_jwt=False` is the way."""
    asked: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    outside = await asyncio.start_server(note, "127.0.0.1", 0)
    async with outside, python(tmp_path) as machine:
        way_out = f"http://127.0.0.1:{outside.sockets[0].getsockname()[1]}"
        seen = await machine.play("default", "a/b", HTTPS_PROXY=way_out, NO_PROXY="localhost")
        assert seen["failed"] == "ProxyError"
        assert set(asked) == {b"CONNECT rest.fal.ai:443 HTTP/1.1\r\n"}
        assert list(machine.fal.app.journal) == []


@pytest.mark.parametrize(
    ("endpoint", "emulator", "error", "reason"),
    [
        ("emulator/idle", {}, "TIMEOUT", "no inputs, reconnect when needed!"),
        ("emulator/fail", {}, "INTERNAL_ERROR", "Internal Server Error"),
        ("a/closed", {"faults": "a/closed:close"}, "CONNECTION_CLOSED", "Concurrent session limit reached."),
        ("a/b", {"faults": "a/b:drop"}, "CONNECTION_CLOSED", "no close frame received or sent"),
    ],
)
async def test_ends_are_the_same_errors_as_without_a_proxy(
    endpoint: str, emulator: dict[str, Any], error: str, reason: str, tmp_path: Path
) -> None:
    async with python(tmp_path, **emulator) as machine:
        seen = await machine.play("ended", endpoint)
        assert seen["error"] == error
        assert reason in seen["reason"]


async def test_a_refused_handshake_says_why(tmp_path: Path) -> None:
    settings = open_settings(tmp_path)
    plan = msgspec.structs.replace(settings.plans["default"], endpoints=("acme/**",))
    async with python(tmp_path, msgspec.structs.replace(settings, plans={"default": plan})) as machine:
        seen = await machine.play("refused", "a/b")
        assert (seen["status"], seen["body"]["error_type"]) == (403, "endpoint_denied")
        assert list(machine.fal.app.journal) == []


async def test_a_key_that_is_none_of_ours_is_refused_and_goes_nowhere(tmp_path: Path) -> None:
    async with python(tmp_path) as machine:
        seen = await machine.play("refused", "a/b", FAL_KEY="fpk_nobody")
        assert (seen["status"], seen["body"]["error_type"]) == (401, "unidentified")
        assert list(machine.fal.app.journal) == []
