"""What the README says of realtime from Python and from a shell, run as it stands there."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

from support.certificates import authority
from support.commands import clean_environment, running
from support.documents import README
from support.emulated import emulated
from support.proxied import proxied
from support.tls import terminated

DOT = "data:image/gif;base64,R0lGODlhAQABAPAAAP8AAP///yH5BAAAAAAALAAAAAABAAEAAAICRAEAOw=="
SECONDS = 30.0


def _blocks(language: str) -> list[str]:
    section = README.read_text("utf-8").partition("\n### Realtime\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


async def test_the_python_snippet_paints_a_picture(tmp_path: Path) -> None:
    [snippet] = _blocks("python")
    exports = next(block for block in _blocks("sh") if "FAL_RUN_HOST" in block)
    authority().cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    async with emulated() as fal, proxied(fal.url, tmp_path) as proxy, terminated(proxy.port) as port:
        exports = exports.replace("proxy.example.com", f"localhost:{port}").replace("fpk_…", proxy.user_key)
        variables = dict(pair.split("=", 1) for pair in exports.split()[1:])
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            f"drawing = {DOT!r}\n{snippet}\nprint(picture)",
            stdout=asyncio.subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "SSL_CERT_FILE": str(tmp_path / "authority.pem"), **variables},
        )
        try:
            async with asyncio.timeout(SECONDS):
                stdout, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert stdout.startswith(b"data:image/jpeg;base64,")


async def test_the_shell_line_talks_to_what_run_starts(tmp_path: Path) -> None:
    line = next(block for block in _blocks("sh") if "websockets" in block).strip()
    command = line.removeprefix("./run ").split()
    with running(["dev", "--port", "0"], tmp_path, clean_environment()) as proxy:
        command[-1] = command[-1].replace(":8080", f":{proxy.port}")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        said = b""
        try:
            async with asyncio.timeout(SECONDS):
                while b"Connected" not in said:
                    said += await process.stdout.read(1024)
                process.stdin.write(b"hello\n")
                while b"< hello" not in said:
                    said += await process.stdout.read(1024)
                process.stdin.close()
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
