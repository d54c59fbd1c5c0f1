"""Every `curl` of the README, run as it is written, by the real curl."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from client.ages import CURL
from support.emulated import Emulated, emulated
from support.proxied import FAL_KEY_SECRET, Proxy, proxied
from support.snippets import at, client_lines, shell_commands

SECONDS = 30.0
MOUNT_URL = "https://app.example.com/api/fal/proxy"


@dataclass
class Shell:
    """What one person types: variables are filled from earlier answers."""

    folder: Path
    proxy: Proxy
    fal: Emulated
    variables: dict[str, str]

    async def type(self, command: str) -> str:
        """Run one command as the README has it; it must succeed. Returns what it prints."""
        silent = command.replace("curl ", "curl -sS --fail-with-body --max-time 20 ", 1)
        process = await asyncio.create_subprocess_exec(
            "sh",
            "-c",
            at(self.proxy.origin, silent),
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], **self.variables},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(SECONDS):
            out, err = await process.communicate()
        assert process.returncode == 0, (command, out, err)
        assert FAL_KEY_SECRET.encode() not in out + err
        return out.decode()


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    if shutil.which("curl") is None:
        pytest.skip("curl not found")
    (tmp_path / "a.txt").write_text("a file")
    async with emulated(speed=1000.0) as fal, proxied(fal.url, tmp_path) as proxy:
        yield Shell(tmp_path, proxy, fal, {"USER_KEY": proxy.user_key})
        for entry in fal.app.journal:
            assert not any(proxy.user_key.encode() in value for _, value in entry.headers)


async def test_the_line_of_the_table_makes_a_picture(shell: Shell) -> None:
    answer = json.loads(await shell.type(client_lines()[CURL]))

    assert answer["images"][0]["url"].startswith(shell.fal.url)
    assert json.loads(shell.fal.last.body) == {"prompt": "a harbour at dawn"}


async def test_the_commands_do_what_the_readme_says_in_their_order(shell: Shell) -> None:
    submit, status, result, stream, initiate, upload = shell_commands_of_the_proxy()

    submitted = json.loads(await shell.type(submit))
    shell.variables["REQUEST_ID"] = submitted["request_id"]
    async with asyncio.timeout(SECONDS):
        while (now := json.loads(await shell.type(status)))["status"] != "COMPLETED":
            assert now["status"] in ("IN_QUEUE", "IN_PROGRESS")
    assert now["logs"]
    assert json.loads(await shell.type(result))["prompt"] == "a pier"

    events = [line for line in (await shell.type(stream)).splitlines() if line.startswith("data: ")]
    assert json.loads(events[-1].removeprefix("data: "))["partial"] is False

    started = json.loads(await shell.type(initiate))
    shell.variables["UPLOAD_URL"] = started["upload_url"]
    await shell.type(upload)
    assert (shell.fal.last.method, shell.fal.last.body) == ("PUT", b"a file")
    assert shell.fal.last.header("authorization") is None


async def test_no_command_of_the_readme_is_left_out(shell: Shell) -> None:
    known = shell_commands_of_the_proxy()
    assert len(known) == 6
    for command in shell_commands():
        assert command in known
        assert shlex.split(command)[0] == "curl"


def shell_commands_of_the_proxy() -> list[str]:
    """Return the commands of "Your client"."""
    return [command for command in shell_commands() if MOUNT_URL in command or "$UPLOAD_URL" in command]
