"""The wheel, as whoever has nothing but it runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fal_proxy
from support.commands import clean_environment, running_program
from support.documents import README
from support.proxied import MOUNT
from support.raw import raw_client, request

LINE = "uvx --from dist/*.whl fal-proxy"
ROOT = README.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel into a folder's dist/."""
    made = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(made / "dist")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return made


@pytest.fixture
def environ() -> dict[str, str]:
    """Return an environment in which uv takes this Python and the lock's versions."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    versions = {"UV_CONSTRAINT": str(ROOT / "requirements.lock"), "UV_PYTHON": sys.executable}
    return clean_environment() | {"PATH": path, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_CONFIG": "1", **versions}


def test_line_of_the_readme_names_the_version_in_an_environment_that_has_nothing_else(
    folder: Path, environ: dict[str, str]
) -> None:
    assert f"{LINE} dev" in README.read_text("utf-8")
    done = subprocess.run(["sh", "-c", f"{LINE} --version"], cwd=folder, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"fal-proxy, version {fal_proxy.__version__}\n"), done.stderr


async def test_line_of_the_readme_plays_offline_and_paints(folder: Path, environ: dict[str, str]) -> None:
    command = ["sh", "-c", f"exec {LINE} dev --port 0"]
    with running_program(command, folder, environ) as playing:
        async with raw_client(playing.port) as client:
            fields = {"Host": f"127.0.0.1:{playing.port}", "Content-Type": "application/json"}
            await client.send(request("POST", MOUNT + "/fal.run/fal-ai/flux/dev", fields, b'{"prompt": "a pier"}'))
            answer = await client.answer()
    assert answer.status == 200, answer
    assert json.loads(answer.body)["images"][0]["url"].startswith("http://127.0.0.1:")
