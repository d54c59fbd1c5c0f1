"""Files through nginx: relayed by the proxy, and fetched by nginx itself after the proxy has judged; interleaved.

`./run env PYTHONPATH=tests python tests/bench/offload.py [MEBIBYTES] [READS] [ROUNDS]`; needs nginx (Debian: nginx-light). The
CDN is another nginx, without TLS. Prints MB/s of one large file and small files a second, both with the processor time of the
proxy, and their ratios. Nothing is pinned: everything shares the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

from support.commands import clean_environment, running_program
from support.fronts import Front, front
from support.ports import free_port
from support.proxied import FAL_KEY, MOUNT, SIGNING_SECRET
from support.raw import raw_client, request

TICKS = os.sysconf("SC_CLK_TCK")
SMALL_BYTES, CONNECTIONS, PIECE_BYTES = 10_000, 16, 1 << 18
CDN = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b;
  fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  sendfile on; keepalive_requests 1000000;
  server {{ listen 127.0.0.1:{port}; root {folder}/files; }}
}}
"""
CONFIG = """
[server]
hosts = ["127.0.0.1"]
trusted_proxies = ["127.0.0.1"]
[identity]
sources = ["anonymous"]
[plans.default]
endpoints = ["a/b"]
[storage]
mode = "relay"
serve_files = true
[admin]
port = 0
"""


class Round(NamedTuple):
    """What one way did in one round."""

    megabytes_per_second: float
    proxy_seconds_per_gigabyte: float
    reads_per_second: float
    proxy_microseconds_per_read: float


@contextlib.contextmanager
def cdn(folder: Path, mebibytes: int) -> Iterator[int]:
    """Serve a large and a small file as fal's CDN would."""
    files = folder / "files" / "v3b.fal.media" / "files" / "b"
    files.mkdir(parents=True)
    (files / "small.png").write_bytes(os.urandom(SMALL_BYTES))
    with (files / "large.mp4").open("wb") as large:
        for _ in range(mebibytes):
            large.write(os.urandom(1 << 20))
    for parent in (folder, *files.parents):
        if folder in (parent, *parent.parents):
            parent.chmod(0o755)  # workers are somebody else
    port = free_port()
    (folder / "cdn.conf").write_text(CDN.format(folder=folder, port=port))
    process = subprocess.Popen([str(shutil.which("nginx")), "-p", str(folder), "-c", str(folder / "cdn.conf")])
    try:
        yield port
    finally:
        process.terminate()
        process.wait(10)


def proxy_seconds(pid: int) -> float:
    """Return the processor time that the proxy has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def asking(running: Front, name: str) -> bytes:
    """Return the request for a file."""
    return request("GET", f"{MOUNT}/v3b.fal.media/files/b/{name}", {"Host": f"127.0.0.1:{running.port}"})


async def read_large(running: Front) -> int:
    """Read the large file; return its size."""
    async with raw_client(running.port, secure=running.trusting()) as client:
        await client.send(asking(running, "large.mp4"))
        status, fields = await client.read_head()
        assert status == 200, status
        left = size = int(dict(fields)[b"content-length"])
        while left:
            left -= len(await client.reader.read(min(left, PIECE_BYTES)))
    return size


async def read_small(running: Front, reads: int) -> None:
    """Read the small file so often, over some connections."""

    async def some(count: int) -> None:
        async with raw_client(running.port, secure=running.trusting()) as client:
            for _ in range(count):
                await client.send(asking(running, "small.png"))
                answer = await client.answer()
                assert (answer.status, len(answer.body)) == (200, SMALL_BYTES), answer.status

    await asyncio.gather(*(some(reads // CONNECTIONS) for _ in range(CONNECTIONS)))


async def measured(running: Front, pid: int, reads: int) -> Round:
    """Measure one way once."""
    before, began = proxy_seconds(pid), time.perf_counter()
    size = await read_large(running)
    took, used = time.perf_counter() - began, proxy_seconds(pid) - before
    before, began = proxy_seconds(pid), time.perf_counter()
    await read_small(running, reads)
    small_took, small_used = time.perf_counter() - began, proxy_seconds(pid) - before
    return Round(size / took / 1e6, used / (size / 1e9), reads / small_took, small_used / reads * 1e6)


@contextlib.asynccontextmanager
async def ways(folder: Path, mebibytes: int) -> AsyncIterator[tuple[dict[str, Front], int]]:
    """Run the CDN, one proxy, and an nginx for each way."""
    (folder / "fal-proxy.toml").write_text(CONFIG)
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(cdn(folder, mebibytes))
        environ = clean_environment(
            FAL_KEY=FAL_KEY.reveal(),
            FAL_PROXY_SECRET=SIGNING_SECRET,
            FAL_PROXY_UPSTREAM=f"http://127.0.0.1:{upstream}",
        )
        lines = [sys.executable, "-c", "import sys; from fal_proxy.cli import main; sys.exit(main())"]
        quiet = ["sh", "-c", 'exec "$@" 2>/dev/null', "sh", *lines, "serve", "--port", "0"]
        proxy = stack.enter_context(running_program(quiet, folder, environ))
        ports = [proxy.port, proxy.port]
        fronts = {
            name: stack.enter_context(front("nginx", folder / name, free_port(), ports, offload=name == "offloaded"))
            for name in ("relayed", "offloaded")
        }
        # Access lines are read, or the pipe would fill up.
        threading.Thread(target=lambda: [None for _ in proxy.process.stdout or ()], daemon=True).start()
        yield fronts, proxy.process.pid


async def main(mebibytes: int, reads: int, rounds: int) -> None:
    """Print what each way did, medians, and their ratio."""
    seen: dict[str, list[Round]] = {"relayed": [], "offloaded": []}
    with tempfile.TemporaryDirectory() as made:
        async with ways(Path(made), mebibytes) as (fronts, pid):
            for _ in range(rounds):
                for name, running in fronts.items():
                    seen[name].append(await measured(running, pid, reads))
    medians = {name: [statistics.median(column) for column in zip(*each, strict=True)] for name, each in seen.items()}
    for number, name in enumerate(Round._fields):
        relayed, offloaded = medians["relayed"][number], medians["offloaded"][number]
        print(f"{name}: relayed {relayed:.3g}, offloaded {offloaded:.3g}, ratio {offloaded / (relayed or 1):.3g}")


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:]]
    asyncio.run(main(*(numbers + [256, 4000, 5][len(numbers) :])))
