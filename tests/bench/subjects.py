"""What is measured: nginx, the official proxy on Express and on Hono, ours with everything on, ours with nothing but the relay.

Each is one process on the proxies' core in front of upstreams on the other one. One that does not start, or answers
otherwise than upstream did, ends the bench.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from bench import nginx
from bench.machine import PROXY_CORE, pinned
from fal_proxy.identity.key import KeyRecord, hash_of
from support.commands import clean_environment
from support.node import install
from support.proxied import FAL_KEY, MOUNT, SIGNING_SECRET

CALLERS = 200
USER_KEYS = [f"fpk_{number:043d}" for number in range(1, CALLERS + 1)]
PEERS = Path(__file__).parent / "peers"
NGINX, EXPRESS, HONO, OURS, BARE = "nginx", "Express", "Hono", "fal-proxy", "bare relay"
# Everything that judges and counts is on; nothing is so tight that it refuses.
CONFIG = """
total_budget = "100000000/day"
[server]
hosts = ["127.0.0.1"]
max_body_bytes = 4294967296
trusted_proxies = ["127.0.0.1"]
[identity]
sources = ["key"]
[plans.default]
endpoints = ["bench/**"]
submit = "100000000/minute; 1000000000/day"
read = "100000000/minute"
upload = "100000000/minute"
concurrent = 100000
realtime_sessions = 100000
budget = "100000000/day"
total_budget = "100000000/day"
[prices]
default = 0.01
"bench/job/*" = 0.002
[realtime]
usd_per_second = 0.000001
messages = "100000000/second"
[storage]
mode = "relay"
max_upload_bytes = 4294967296
[admin]
port = 0
"""
# What a browser sends along.
FIELDS = {
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Accept-Language": "en-GB,en;q=0.9",
    "Content-Type": "application/json",
    "Origin": "http://127.0.0.1",
    "Cookie": "session=0123456789abcdef0123456789abcdef; theme=dark",
    "Referer": "http://127.0.0.1/app",
    "Sec-Fetch-Dest": "empty",
    "Sec-Fetch-Mode": "cors",
    "Sec-Fetch-Site": "same-origin",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
}
_OUR_MODULES = {"PYTHONPATH": os.pathsep.join(sys.path)}


@dataclass(frozen=True)
class Subject:
    """One proxy in front of one upstream, or nothing at all (`pid` 0), on a port of loopback."""

    name: str
    port: int
    pid: int
    prefix: str = MOUNT  # before `/<host>/<path>`
    scheme: str | None = None  # of targets in `x-fal-target-url`; None: the target is in the path

    def address(self, target: str, key: str = USER_KEYS[0]) -> tuple[str, dict[str, str]]:
        """Return the path and the fields of a request for a target such as `fal.run/bench/run`."""
        fields = {**FIELDS, "Authorization": f"Bearer {key}"}
        if self.scheme is None:
            return f"{self.prefix}/{target}", fields
        return self.prefix, {**fields, "x-fal-target-url": f"{self.scheme}://{target}"}


def prove(subject: Subject, target: str, method: str = "POST") -> None:
    """End the bench unless the proxy answers with what upstream says."""
    path, fields = subject.address(target)
    try:
        connection = http.client.HTTPConnection("127.0.0.1", subject.port, timeout=10)
        connection.request(method, path, b"{}" if method == "POST" else None, fields)
        answer = connection.getresponse()
        body = answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise SystemExit(f"bench: {subject.name} does not answer: {error!r}") from error
    if answer.status != 200 or body != nginx.IMAGE:
        raise SystemExit(f"bench: {subject.name} answers {answer.status} {body[:500]!r}")


@dataclass(frozen=True)
class Stage:
    """Where processes are started, and upstreams by name: a scheme and a port."""

    folder: Path
    upstreams: Mapping[str, tuple[str, int]]
    stack: contextlib.ExitStack = field(repr=False)

    def direct(self, name: str) -> Subject:
        """Return the upstream itself, as if there were no proxy."""
        return Subject("upstream", self.upstreams[name][1], 0, prefix="")

    def nginx(self, name: str) -> Subject:
        """Return nginx in front of an upstream."""
        folder = self._folder("nginx", name)
        ports, worker = self.stack.enter_context(nginx.proxy(folder, PROXY_CORE, {name: self.upstreams[name]}))
        return Subject(NGINX, ports[name], worker)

    def official(self, framework: str, name: str) -> Subject:
        """Return the official proxy on Express or Hono."""
        scheme, port = self.upstreams[name]
        ports = {f"{scheme}:{host}": port for host in ("fal.run", "queue.fal.run")}
        node = install(PEERS)
        environ = {
            "FAL_KEY": FAL_KEY.reveal(),
            "NODE_ENV": "production",
            "NODE_EXTRA_CA_CERTS": str(self.folder / "authority.pem"),
            "BENCH_PORTS": json.dumps(ports),
        }
        command = [node.executable, "--require", "./redirect.cjs", f"{framework.lower()}.mjs"]
        port, pid = self._started(framework, command, PEERS, environ)
        return Subject(framework, port, pid, scheme=scheme)

    def ours(self, name: str, *, header_form: bool = True) -> Subject:
        """Return fal-proxy as its operators run it."""
        folder = self._configured("ours", name)
        command = [sys.executable, "-m", "fal_proxy", "serve", "--port", "0"]
        port, pid = self._started(OURS, command, folder, self._environ(name))
        return Subject(OURS, port, pid, scheme="https" if header_form else None)

    def clocked(self, name: str) -> Subject:
        """Return fal-proxy with a clock around every stage, which it writes to the folder `clocked`."""
        command = [sys.executable, "-m", "bench.spine"]
        port, pid = self._started(OURS, command, self._configured("clocked"), self._environ(name) | _OUR_MODULES)
        return Subject(OURS, port, pid, scheme="https")

    def bare(self, name: str) -> Subject:
        """Return our server and our engine with nothing between them."""
        command = [sys.executable, "-m", "bench.bare"]
        port, pid = self._started(BARE, command, self.folder, self._environ(name) | _OUR_MODULES)
        return Subject(BARE, port, pid, scheme="https")

    def _configured(self, *names: str) -> Path:
        folder = self._folder(*names)
        (folder / "fal-proxy.toml").write_text(CONFIG)
        records = [KeyRecord(f"caller-{number}", hash_of(key), "default", "") for number, key in enumerate(USER_KEYS)]
        tables = [f'[keys.{record.name}]\nhash = "{record.hash}"\nplan = "{record.plan}"\n' for record in records]
        (folder / "users.toml").write_text("".join(tables))
        return folder

    def _environ(self, name: str) -> dict[str, str]:
        scheme, port = self.upstreams[name]
        return clean_environment(
            FAL_KEY=FAL_KEY.reveal(),
            FAL_PROXY_SECRET=SIGNING_SECRET,
            FAL_PROXY_UPSTREAM=f"{scheme}://127.0.0.1:{port}",
        ) | {"SSL_CERT_FILE": str(self.folder / "authority.pem")}

    def _folder(self, *names: str) -> Path:
        folder = self.folder / "-".join(names)
        folder.mkdir(exist_ok=True)
        return folder

    def _started(self, name: str, command: Sequence[str], cwd: Path, environ: Mapping[str, str]) -> tuple[int, int]:
        """Start a process whose first line ends with its port; what it says after that is read and dropped."""
        errors = (self.folder / f"{name}.stderr").open("wb+")
        process = subprocess.Popen(
            pinned(PROXY_CORE, command),
            cwd=cwd,
            env={"PATH": os.environ["PATH"], **environ},
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        self.stack.callback(_end, process)
        assert process.stdout is not None
        line = process.stdout.readline().decode().strip()
        try:
            port = int(line.rpartition(":")[2])
        except ValueError:
            process.wait()
            errors.seek(0)
            raise SystemExit(f"bench: {name} does not start: {line}\n{errors.read().decode()}") from None
        threading.Thread(target=_drop, args=(process.stdout,), daemon=True).start()
        return port, process.pid


def _drop(stream: IO[bytes]) -> None:
    while stream.read(65536):
        pass


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def opened(folder: Path, upstreams: Mapping[str, tuple[str, int]]) -> Iterator[Stage]:
    """Yield a stage; what was started on it ends with the block."""
    with contextlib.ExitStack() as stack:
        yield Stage(folder, upstreams, stack)
