"""The Dockerfile without an engine: its own RUN steps in a folder, and what they made, started as the image starts it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.commands import Running, clean_environment, running_program
from support.emulated import emulated
from support.fronts import DEPLOY, put_into
from support.ports import free_port
from support.proxied import FAL_KEY, MOUNT, SIGNING_SECRET
from support.raw import raw_client, request

ROOT = DEPLOY.parent
TEXT = (DEPLOY / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
BUILD_SECONDS = 300


def instructions(stage: int, name: str) -> list[str]:
    """Return what stands behind an instruction in a stage, in order."""
    return re.findall(rf"^{name} (.+)$", re.split(r"^FROM .*$", TEXT, flags=re.MULTILINE)[stage], re.MULTILINE)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Carry out COPY and RUN of the builder in an environment of its own; return what would be /opt/fal-proxy."""
    folder = tmp_path_factory.mktemp("image")
    context, made = folder / "build", folder / "opt"
    context.mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(folder / "python")], check=True)
    environ = clean_environment() | {"PATH": f"{folder / 'python' / 'bin'}:{os.environ['PATH']}"}
    steps = re.findall(r"^(COPY|RUN) (.+)$", re.split(r"^FROM .*$", TEXT, flags=re.MULTILINE)[1], re.MULTILINE)
    for kind, text in steps:
        if kind == "RUN":
            command = text.replace("/opt/fal-proxy", str(made))
            done = subprocess.run(
                command, shell=True, cwd=context, env=environ, capture_output=True, text=True, timeout=BUILD_SECONDS
            )
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            continue
        *sources, target = text.split()
        for source in sources:
            there = Path(target.replace("/opt/fal-proxy", str(made)))
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, context / there, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, context / there / source if target.endswith("./") else context / there)
    return made


def installed(made: Path) -> dict[str, str]:
    """Return the distributions in it and their versions."""
    found = (
        each.name.removesuffix(".dist-info").split("-") for each in made.glob("lib/python3*/site-packages/*.dist-info")
    )
    return {name.lower().replace("_", "-"): version for name, version in found}


def test_image_holds_the_lock_and_no_tool(built: Path) -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    locked = set(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", lock, re.MULTILINE))  # some twice, for other Pythons
    have = installed(built)
    assert have.pop("fal-proxy")
    assert set(have.items()) <= locked
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    names = [re.split(r"[<>=\[]", each)[0] for each in project["project"]["dependencies"]]
    assert set(names) - {"pillow"} <= set(have)
    tools = [re.split(r"[<>=\[]", each)[0] for each in project["dependency-groups"]["dev"]]
    assert not {*tools, "pip", "setuptools", "pillow"} & set(have)


def test_what_runs_as_in_the_image_is_the_image_s_command() -> None:
    assert instructions(2, "ENTRYPOINT") == ['["fal-proxy"]']
    assert json.loads(instructions(2, "CMD")[0]) == ["serve", "--host", "0.0.0.0"]
    [user] = instructions(2, "USER")
    assert all(part.isdigit() and part != "0" for part in user.split(":"))


@contextlib.contextmanager
def as_in_the_image(built: Path, folder: Path, upstream: str) -> Iterator[tuple[Running, dict[str, str]]]:
    """Start the command with the image's environment, where nothing can be written if this machine lets us see to that."""
    port = free_port()
    config = put_into((DEPLOY / "fal-proxy.toml").read_text("utf-8"), {"[server]\n": f"[server]\nport = {port}\n"})
    (folder / "fal-proxy.toml").write_text(config.replace("drain_notice_seconds = 5", "drain_notice_seconds = 0"))
    environ = {
        "PATH": f"{built / 'bin'}:{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "FAL_PROXY_CONFIG": str(folder / "fal-proxy.toml"),
        "FAL_KEY": FAL_KEY.reveal(),
        "FAL_PROXY_SECRET": SIGNING_SECRET,
        "FAL_PROXY_UPSTREAM": upstream,
        "FAL_PROXY_ADMIN__PORT": "0",
    }
    command = [str(built / "bin" / "fal-proxy"), "serve", "--host", "127.0.0.1"]
    unshare = shutil.which("unshare")
    if unshare and subprocess.run([unshare, "--mount", "true"], capture_output=True, check=False).returncode == 0:
        # A root that can only be read, and no rights; the user stays, because the tests' folder is this one's.
        steps = 'mount --options remount,bind,ro / && ! touch "$0" 2>/dev/null && exec setpriv --bounding-set=-all "$@"'
        command = ["unshare", "--mount", "sh", "-c", steps, str(folder / "written"), *command]
    with running_program(command, folder, environ) as process:
        yield process, environ


def health(built: Path, environ: dict[str, str]) -> int:
    """Run the image's health check and return its exit code."""
    [text] = instructions(2, "HEALTHCHECK")
    program, script = json.loads(text.partition("CMD ")[2])
    there = [str(built / "bin" / program), script.replace("/opt/fal-proxy", str(built))]
    return subprocess.run(there, env=environ, timeout=20, check=False).returncode


async def test_image_serves_and_is_healthy_until_it_ends(built: Path, tmp_path: Path) -> None:
    async with emulated() as fal:
        with as_in_the_image(built, tmp_path, fal.url) as (process, environ):
            assert health(built, environ) == 0
            fields = {"Host": "proxy.example.com", "Content-Type": "application/json"}
            async with raw_client(process.port) as client:
                await client.send(request("POST", MOUNT + "/fal.run/fal-ai/flux/dev", fields, b'{"prompt": "a pier"}'))
                assert (await client.answer()).status == 200
            process.process.terminate()
            assert process.process.wait(20) == 0
        assert health(built, environ) == 1
