"""`./run test`: format, lint, types, import contracts, then every test. Arguments go to pytest and skip the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKS = [
    ["ruff", "format", "--check", "--quiet", "."],
    ["ruff", "check", "--quiet", "."],
    ["mypy"],
    ["lint-imports"],
]
# Two at a time: much of the suite waits for other processes. A file stays together, for the fixtures that it shares.
PARALLEL = ["--numprocesses", "2", "--dist", "loadfile"]
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
    if len(sys.argv) > 1:
        return subprocess.call([sys.executable, "-m", "pytest", *sys.argv[1:]])
    install_programs()
    for check in CHECKS:
        started = time.monotonic()
        result = subprocess.run(check, capture_output=True, text=True)
        print(
            f"run: {' '.join(check)}: {'ok' if result.returncode == 0 else 'FAILED'} ({time.monotonic() - started:.1f} s)"
        )
        if result.returncode:
            print(result.stdout + result.stderr)
            return result.returncode
    return subprocess.call([sys.executable, "-m", "pytest", "-q", *PARALLEL])


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
