"""The machine that the bench runs on: its two cores, its programs, and what it is called in the report."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

PROXY_CORE, LOAD_CORE = 0, 1
# What the bench starts, and the Debian package that brings it; any package with nginx in it will do.
PROGRAMS = {"nginx": "nginx-light", "node": "nodejs", "npm": "npm", "redis-server": "redis-server", "wrk": "wrk"}


def require() -> None:
    """Install missing programs as root on Debian; elsewhere end and say what to install. Ends without two cores, too."""
    if not {PROXY_CORE, LOAD_CORE} <= os.sched_getaffinity(0):
        raise SystemExit("bench: two cores are needed, one for the proxy and one for the load")
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if not missing:
        return
    packages = sorted({PROGRAMS[program] for program in missing})
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SystemExit(f"bench: {', '.join(missing)} not found; install them (Debian: {' '.join(packages)})")
    print(f"bench: installing {', '.join(packages)} from Debian", file=sys.stderr, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-qq", "--no-install-recommends", *packages]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """Return the command, to be run on one core only; its process id stays that of the command."""
    return ["taskset", "--cpu-list", str(core), *command]


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process so far, all threads, to the nanosecond."""
    return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3), CPUCLOCK_SCHED


def resident_bytes(pid: int) -> int:
    """Return the memory of a process that is in RAM now."""
    return _status(pid, "VmRSS")


def peak_bytes(pid: int) -> int:
    """Return the most memory of a process that ever was in RAM."""
    return _status(pid, "VmHWM")


def _status(pid: int, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if match is None:
        raise SystemExit(f"bench: this system does not tell {name} of a process")
    return int(match[1]) * 1024


def description() -> str:
    """Return one paragraph about the machine: what was measured on what."""
    models = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    model, cores = (models[0] if models else platform.machine()), os.cpu_count()
    memory = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    gib = f", {int(memory[1]) / 2**20:.0f} GiB" if memory else ""
    tools = [
        f"Python {platform.python_version()} ({'in a shared library' if _is_shared() else 'linked statically'})",
        *(f"{name} {version(name)}" for name in ("uvicorn", "uvloop", "httptools")),
        f"nginx {_said(['nginx', '-v'], r'nginx/([0-9.]+)')}",
        f"Node {_said(['node', '--version'], r'v([0-9.]+)')}",
        f"wrk {_said(['wrk', '--version'], r'([0-9]+[0-9.]+)')}",
    ]
    return f"{model}, {cores} cores{gib}, Linux {platform.release()}; {', '.join(tools)}."


def _is_shared() -> bool:
    """Say whether this Python is a shared library, which makes it an eighth slower."""
    return "libpython" in Path("/proc/self/maps").read_text()


def load_average() -> float:
    """Return how many processes wanted a core during the last minute."""
    return os.getloadavg()[0]


def _said(command: list[str], pattern: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    match = re.search(pattern, done.stdout + done.stderr)
    return match[1] if match else "?"
