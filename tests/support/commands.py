"""The real command line in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

KEPT = ("PATH", "HOME", "LANG", "SSL_CERT_FILE", "TMPDIR")


class Running(NamedTuple):
    """A serving process and the address that its first line of stdout named."""

    process: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.url.rpartition(":")[2])


def clean_environment(**variables: str) -> dict[str, str]:
    """Return an environment without anything that could configure us, plus `variables`."""
    return {name: os.environ[name] for name in KEPT if name in os.environ} | variables


@contextlib.contextmanager
def running(arguments: Sequence[str], folder: Path, environ: Mapping[str, str]) -> Iterator[Running]:
    """Run `fal-proxy ARGUMENTS` in `folder` until the block ends."""
    with running_program([sys.executable, "-m", "fal_proxy", *arguments], folder, environ) as process:
        yield process


@contextlib.contextmanager
def running_program(command: Sequence[str], folder: Path, environ: Mapping[str, str]) -> Iterator[Running]:
    """Run a fal-proxy that is installed elsewhere, as `running` does."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        assert line.startswith("listening on http://"), (line, process.stderr.read() if process.stderr else "")
        yield Running(process, line.removeprefix("listening on "))
    finally:
        process.terminate()
        process.communicate(timeout=40)
