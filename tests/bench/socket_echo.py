"""Realtime echo beside nginx: 1 KiB messages there and back on many sockets, interleaved, each proxy pinned to one core.

`./run env PYTHONPATH=tests python tests/bench/socket_echo.py [--sockets N] [--seconds S] [--rounds N] [--size BYTES]
[--text] [--beside FOLDER]`; needs nginx (Debian: nginx-light). `--beside` measures another tree of this project too.
Prints messages a second (there and back is one), and those of each second of the proxy's own processor time. Callers and
upstream share the other core and do as little as can be: they count bytes, and look whether one message is what it was.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import uvloop

from support.commands import clean_environment, running
from support.observed import raise_descriptor_limit
from support.proxied import FAL_KEY, MOUNT
from support.websocket import BINARY, TEXT, frame, handshake, switching

ECHO = "/fal.run/fal-ai/echo/realtime"
TICKS = os.sysconf("SC_CLK_TCK")
WARM_SECONDS = 0.5
OPEN_SECONDS = 10.0
NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/a; uwsgi_temp_path {folder}/b; scgi_temp_path {folder}/c;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{upstream}; proxy_http_version 1.1;
      proxy_set_header Connection upgrade; proxy_set_header Upgrade websocket;
    }}
  }}
}}
"""
CONFIG = """
[server]
hosts = ["127.0.0.1"]
trusted_proxies = ["127.0.0.1"]
[identity]
sources = ["anonymous"]
[admin]
port = 0
[plans.default]
endpoints = ["**"]
submit = "1000000/second"
realtime_sessions = 100000
budget = "1000000.00/total"
[prices]
default = 0.01
[realtime]
usd_per_second = 0.000001
messages = "1000000/second"
"""


class Peer(NamedTuple):
    """A proxy to measure."""

    port: int
    pid: int
    mount: str


class Said:
    """One message as it goes up and as it comes back; how many came back in all."""

    def __init__(self, opcode: int, size: int) -> None:
        data = (b"\xc3\xa9{}" * size)[: size // 4 * 4] if opcode == TEXT else (bytes(range(256)) * size)[:size]
        self.up, self.down = frame(opcode, data), frame(opcode, data, masked=False)
        self.count = 0


class Echo(asyncio.Protocol):
    """Upstream: for every message that has come, its answer."""

    def __init__(self, said: Said) -> None:
        self._said = said
        self._head: bytes | None = b""
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast("asyncio.Transport", transport).write

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += data
            if b"\r\n\r\n" in self._head:
                self._write(switching(self._head))
                self._head = None
            return
        count, self._left = divmod(self._left + len(data), len(self._said.up))
        if count:
            self._write(self._said.down * count)


class Caller(asyncio.Protocol):
    """A caller who says it again whenever it came back."""

    def __init__(self, said: Said, mount: str) -> None:
        self._said = said
        self._mount = mount
        self.opened = asyncio.Event()
        self._head: bytes | None = b""
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._write = self.transport.write
        self._write(handshake(ECHO, [], mount=self._mount))

    def data_received(self, data: bytes) -> None:
        said = self._said
        if self._head is not None:
            self._head += data
            if self._head.endswith(b"\r\n\r\n"):
                assert self._head.startswith(b"HTTP/1.1 101"), self._head
                self._head = None
                self.opened.set()
            return
        if data == said.down:
            count = 1
        else:
            count, self._left = divmod(self._left + len(data), len(said.down))
        if count:
            said.count += count
            self._write(said.up * count)

    def begin(self) -> None:
        """Say it for the first time."""
        self._write(self._said.up)


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextlib.contextmanager
def nginx(folder: Path, upstream: int) -> Iterator[Peer]:
    """Run nginx with one worker in front of `upstream`."""
    program = shutil.which("nginx")
    if program is None:
        raise SystemExit("nginx is missing: apt-get install nginx-light")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, upstream=upstream))
    process = subprocess.Popen([program, "-p", str(folder), "-c", "nginx.conf"])
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (workers := children.read_text().split()):
            time.sleep(0.01)
        yield Peer(port, int(workers[0]), "")
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def proxy(folder: Path, upstream: int, tree: str | None = None) -> Iterator[Peer]:
    """Run `fal-proxy serve` of this tree or another in front of `upstream`."""
    folder.mkdir()
    (folder / "fal-proxy.toml").write_text(CONFIG)
    environ = clean_environment(
        FAL_KEY=FAL_KEY.reveal(),
        FAL_PROXY_SECRET="a signing secret for benchmarks only and long enough",
        FAL_PROXY_UPSTREAM=f"http://127.0.0.1:{upstream}",
    )
    if tree is not None:
        environ["PYTHONPATH"] = str(Path(tree) / "proxy")
    with running(["serve", "--port", "0"], folder, environ) as serving:
        yield Peer(serving.port, serving.process.pid, MOUNT)


async def opened(peer: Peer, said: Said) -> Caller:
    """Return a caller whose socket is open."""
    caller = Caller(said, peer.mount)
    await asyncio.get_running_loop().create_connection(lambda: caller, "127.0.0.1", peer.port)
    await asyncio.wait_for(caller.opened.wait(), OPEN_SECONDS)
    return caller


async def run(peer: Peer, sockets: int, seconds: float, said: Said) -> tuple[float, float]:
    """Talk for a while; return messages a second and messages a processor second."""
    callers = [await opened(peer, said) for _ in range(sockets)]
    for caller in callers:
        caller.begin()
    await asyncio.sleep(WARM_SECONDS)
    count, busy, began = said.count, processor_seconds(peer.pid), time.perf_counter()
    await asyncio.sleep(seconds)
    count, busy, took = said.count - count, processor_seconds(peer.pid) - busy, time.perf_counter() - began
    for caller in callers:
        assert not caller.transport.is_closing()
        caller.transport.abort()
    return count / took, count / max(busy, 1 / TICKS)


async def main(asked: argparse.Namespace) -> None:
    """Measure and print."""
    raise_descriptor_limit()
    os.sched_setaffinity(0, {1})
    said = Said(TEXT if asked.text else BINARY, asked.size)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = await asyncio.get_running_loop().create_server(lambda: Echo(said), "127.0.0.1", 0)
        upstream = server.sockets[0].getsockname()[1]
        peers = {"nginx": stack.enter_context(nginx(folder, upstream))}
        if asked.beside:
            peers["beside"] = stack.enter_context(proxy(folder / "beside", upstream, asked.beside))
        peers["fal-proxy"] = stack.enter_context(proxy(folder / "ours", upstream))
        for peer in peers.values():
            os.sched_setaffinity(peer.pid, {0})
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
        for _ in range(asked.rounds):
            for name, peer in peers.items():
                found[name].append(await run(peer, asked.sockets, asked.seconds, said))
                await asyncio.sleep(0.2)
        server.close()
    first = statistics.median(rate for rate, _ in found["nginx"])
    for name, rounds in found.items():
        rates = [rate for rate, _ in rounds]
        median, busy = statistics.median(rates), statistics.median(each for _, each in rounds)
        spread = f"{min(rates):.0f} to {max(rates):.0f}"
        print(
            f"{name}: {median:.0f} messages/s ({spread}), {median / first:.2f} of nginx; {busy:.0f} a processor second"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sockets", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--text", action="store_true")
    parser.add_argument("--beside")
    uvloop.run(main(parser.parse_args()))
