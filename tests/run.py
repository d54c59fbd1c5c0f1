"""`./run test`: format, lint, import contracts, then types beside every test. Arguments go to pytest and skip the rest."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CHECKS = [
    ["ruff", "format", "--check", "--quiet", "."],
    ["ruff", "check", "--quiet", "."],
    ["lint-imports"],
]
TYPES = ["mypy"]  # half a minute without its cache, on one core: beside the tests
# Much of the suite waits for other processes; a third worker saves a minute and lets Redis and pages miss their deadlines.
# A file stays together, for the fixtures that it shares.
PARALLEL = ["--numprocesses", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
TOGETHER = ("browser", "deploy")  # folders that stay together too: one Chromium, one deployment behind each front
# What takes ten seconds or more, longest first: tests/conftest.py begins with it, or the last of it would run alone. Behind
# it come the files of most tests.
LONGEST = (
    *TOGETHER,
    "client/test_client_realtime.py",
    "client/test_clients_of_every_age.py",
    "fault/test_delivery_crash.py",
    "fault/test_webhook_crash.py",
    "wire/test_slow_clients.py",
    "fault/test_soaks.py",
    "unit/test_rewrite.py",
    "fault/test_redis_outages.py",
    "client/test_python_client.py",
    "wire/test_reconcile_command.py",
    "wire/test_commands.py",
    "unit/test_target_reference.py",
)
PACKAGES = ["client", "browser", "browser/bundle"]  # folders with a package-lock.json
SERVERS = "/usr/sbin"  # where Debian puts nginx; not in everybody's PATH
# What the tests start, or draw with, and the Debian package that brings it.
PROGRAMS = {
    "/usr/share/fonts/opentype/inter": "fonts-inter",
    "/usr/share/fonts/truetype/jetbrains-mono": "fonts-jetbrains-mono",
    "chromium": "chromium",
    "caddy": "caddy",
    "curl": "curl",
    "nginx": "nginx-light",
    "node": "nodejs",
    "npm": "npm",
    "promtool": "prometheus",
    "redis-server": "redis-server",
    "slowhttptest": "slowhttptest",
    "systemd-analyze": "systemd",
}


def main() -> int:
    """Run everything; return the first failure's exit code."""
    os.chdir(ROOT)
    os.environ["PATH"] += os.pathsep + SERVERS  # last: what the caller's PATH names comes first
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # the tests start hundreds of Pythons
    if len(sys.argv) > 1:
        return subprocess.call([sys.executable, "-m", "pytest", *sys.argv[1:]])
    install_programs()
    for command in CHECKS:
        check = started(command)
        if code := told(check, check.process.communicate()[0]):
            return code
    types = started(TYPES)
    install_packages()
    with subprocess.Popen([sys.executable, "-m", "pytest", "-q", *PARALLEL]) as tests:
        said, _ = types.process.communicate()
        if types.process.returncode:  # nobody need wait for the tests then
            tests.send_signal(signal.SIGINT)
            tests.wait()
        print()  # behind pytest's dots
        return told(types, said) or tests.wait()


class Check(NamedTuple):
    """A check that runs."""

    command: list[str]
    process: subprocess.Popen[str]
    since: float


def started(command: list[str]) -> Check:
    """Start a check."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return Check(command, process, time.monotonic())


def told(check: Check, said: str) -> int:
    """Tell what came of a check that has ended, and return its exit code."""
    code = check.process.returncode
    outcome = f"{'FAILED' if code else 'ok'} ({time.monotonic() - check.since:.1f} s)"
    print(f"run: {' '.join(check.command)}: {outcome}", flush=True)
    if code:
        print(said, flush=True)
    return code


def install_packages() -> None:
    """Install what the tests take from npm before they begin: a cold start is no time that a test should wait for."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return  # their tests say so
    sys.path.insert(0, str(ROOT / "tests"))
    from support.node import install

    with ThreadPoolExecutor() as pool:
        list(pool.map(install, [ROOT / "tests" / folder for folder in PACKAGES]))


def install_programs() -> None:
    """Install missing system programs as root on Debian; elsewhere say which tests will be skipped and why."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None and not Path(program).is_dir()]
    if not missing:
        return
    packages = sorted({PROGRAMS[program] for program in missing})
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"run: installing {', '.join(packages)} from Debian for {', '.join(missing)}", flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-qq", "--no-install-recommends", *packages],
        ):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    else:
        print(f"run: {', '.join(missing)} not found (Debian: {', '.join(packages)}): their tests will be skipped")


if __name__ == "__main__":
    sys.exit(main())
