"""Callers that mean harm by being slow, against a server process of its own: what they cost, and who is served meanwhile.

`slowhttptest` (Debian) drips heads and bodies; idle connections and callers that never read are our own.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.commands import Running, clean_environment, running_program
from support.peers import Peer, Upstream
from support.proxied import FAL_KEY, MOUNT, SIGNING_SECRET
from support.raw import request
from support.scripts import read_request

PROGRAM = shutil.which("slowhttptest")
PROBE_PAUSE_SECONDS = 0.02
PROBE_SECONDS = 5.0  # beyond which a probe counts as not served
# `fal-proxy` with deadlines that pass so many times sooner; the sweep that looks at them comes as much more often.
HURRIED = """
import sys
from fal_proxy.downstream import deadlines
for name in [name for name in vars(deadlines) if name.endswith("_SECONDS")]:
    setattr(deadlines, name, getattr(deadlines, name) / float(sys.argv[1]))
del sys.argv[1]
from fal_proxy.cli import main
main()
"""
CONFIG = """
[server]
trusted_proxies = ["127.0.0.1"]
[identity]
sources = ["anonymous"]
[identity.anonymous]
network_factor = 1000
[plans.default]
endpoints = ["**"]
submit = "100000/second"
concurrent = 10000
"""


@dataclass
class Toll:
    """What one attack cost; memory is resident, in KiB."""

    before_kib: int = 0
    peak_kib: int = 0
    served: int = 0
    refused: int = 0
    slowest_seconds: float = 0.0
    left: int = 0  # of the attack's connections, when its time was over


class Target:
    """A proxy process in front of an upstream that never stops sending."""

    def __init__(self, process: Running) -> None:
        self.port = process.port
        self._status = Path(f"/proc/{process.process.pid}/status")

    def resident_kib(self) -> int:
        """Return the process's resident memory."""
        lines = self._status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

    async def probe(self) -> float | None:
        """Return how long an ordinary caller from another address waited for an answer, None if there was none."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=("127.0.0.2", 0))
                try:
                    writer.write(request("GET", "/healthz"))
                    line = await reader.readline()
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError):
            return None
        return time.monotonic() - began if b" 200 " in line else None

    async def endure(self, attack: Coroutine[Any, Any, int]) -> Toll:
        """Let an attack run to its end, and be an ordinary caller meanwhile."""
        toll = Toll(before_kib=self.resident_kib())
        attacking = asyncio.ensure_future(attack)
        while not attacking.done():
            waited = await self.probe()
            toll.served += waited is not None
            toll.refused += waited is None
            toll.slowest_seconds = max(toll.slowest_seconds, waited or 0.0)
            toll.peak_kib = max(toll.peak_kib, self.resident_kib())
            await asyncio.sleep(PROBE_PAUSE_SECONDS)
        toll.left = await attacking
        return toll


@contextlib.asynccontextmanager
async def target(faster: float = 1) -> AsyncIterator[Target]:
    """Run the proxy and its upstream; its deadlines pass `faster` than they are."""
    upstream = Upstream((_endless,), None)
    environ = clean_environment(
        FAL_KEY=FAL_KEY.reveal(),
        FAL_PROXY_SECRET=SIGNING_SECRET,
        FAL_PROXY_UPSTREAM=f"http://127.0.0.1:{upstream.port}",
        FAL_PROXY_SERVER__HOSTS='["127.0.0.1"]',
        FAL_PROXY_ADMIN__PORT="0",
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "fal-proxy.toml").write_text(CONFIG)
            command = [sys.executable, "-c", HURRIED, str(faster), "serve", "--port", "0"]
            with running_program(command, Path(folder), environ) as process:
                drain = asyncio.ensure_future(asyncio.to_thread(_drain, process))
                yield Target(process)
                process.process.terminate()
                await drain
    finally:
        await upstream.close()


def _drain(process: Running) -> None:
    """Read the access lines, so that the pipe never fills."""
    assert process.process.stdout is not None
    for _ in process.process.stdout:
        pass


async def _endless(peer: Peer) -> None:
    await read_request(peer)
    await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: video/mp4\r\ncontent-length: 1000000000000\r\n\r\n")
    while True:
        await peer.send(b"x" * 65536)


async def slowhttptest(port: int, mode: str, connections: int, seconds: int, each_seconds: int = 5) -> int:
    """Run slowhttptest: `mode` H drips heads, B bodies; every connection sends a little each so many seconds.

    Returns how many connections the server has left open after `seconds`, while the program would hold them longer.
    """
    assert PROGRAM is not None
    command = [PROGRAM, f"-{mode}", "-t", "POST" if mode == "B" else "GET", "-c", str(connections), "-r", "500"]
    command += ["-i", str(each_seconds), "-l", str(2 * seconds), "-p", "5", "-x", "10", "-s", "8192"]
    command += ["-u", f"http://127.0.0.1:{port}{MOUNT}/fal.run/fal-ai/flux/dev"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=seconds)
        return _established(port)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def idle(port: int, connections: int, seconds: float, first: bytes = b"") -> int:
    """Hold connections that say `first` and then nothing."""
    return await _hold(port, connections, seconds, first)


async def never_reading(port: int, connections: int, seconds: float) -> int:
    """Ask for an answer without end and read nothing of it."""
    return await _hold(port, connections, seconds, request("POST", f"{MOUNT}/fal.run/fal-ai/flux/dev", body=b"{}"))


async def _hold(port: int, connections: int, seconds: float, first: bytes) -> int:
    loop = asyncio.get_running_loop()
    held: list[socket.socket] = []
    try:
        for _ in range(connections):
            sock = socket.socket()
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            held.append(sock)
            await loop.sock_connect(sock, ("127.0.0.1", port))
            await loop.sock_sendall(sock, first)
        await asyncio.sleep(seconds)
        return _established(port)
    finally:
        for sock in held:
            sock.close()


def _established(port: int) -> int:
    """Return how many connections a local port holds that neither side has ended, as the kernel counts them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(1 for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01")
