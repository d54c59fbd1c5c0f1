"""The upload relay beside nginx: one large file through either to the same sink, interleaved, each pinned to one core.

`./run env PYTHONPATH=tests python tests/bench/uploads.py [MEBIBYTES] [ROUNDS]`; needs nginx (Debian: nginx-light).
Prints MB/s and MB per second of the proxy's own processor time; load and sink share the other core.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from support.commands import clean_environment, running
from support.memory import CONFIG, INITIATE
from support.proxied import FAL_KEY, MOUNT
from support.raw import raw_client, request

PIECE = os.urandom(1 << 20)
TICKS = os.sysconf("SC_CLK_TCK")
UPLOAD_URL = b'{"upload_url":"https://v3b.fal.media/files/b/1/film.mp4?signature=s"}'
NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/a; uwsgi_temp_path {folder}/b; scgi_temp_path {folder}/c;
  client_max_body_size 0;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{sink}; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_request_buffering off; proxy_buffering off;
    }}
  }}
}}
"""


class Sink(asyncio.Protocol):
    """Swallow bodies and say how long they were."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = 0
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._write = transport.write

    def data_received(self, data: bytes) -> None:
        if not self._left:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data = bytes(self._head[:end]).lower(), bytes(self._head[end + 4 :])
            self._head.clear()
            length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
            body = UPLOAD_URL if INITIATE.encode() in head else length
            self._answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            self._left = int(length or b"0")
        self._left -= len(data)
        if self._left == 0:
            self._write(self._answer)


async def sink() -> None:
    """Serve a sink for ever; the port is the first line."""
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def sinking() -> Iterator[int]:
    """Run the sink in a process of its own."""
    process = subprocess.Popen([sys.executable, __file__, "sink"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def nginx(folder: Path, sink_port: int) -> Iterator[tuple[int, int]]:
    """Run nginx in front of the sink; yields its port and its worker's process id."""
    program = shutil.which("nginx")
    if program is None:
        raise SystemExit("nginx is missing: apt-get install nginx-light")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, sink=sink_port))
    process = subprocess.Popen([program, "-p", str(folder), "-c", "nginx.conf"])
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (workers := children.read_text().split()):
            time.sleep(0.01)
        yield port, int(workers[0])
    finally:
        process.terminate()
        process.wait()


def upload(port: int, path: str, mebibytes: int) -> float:
    """Upload a file and return the seconds that it took."""
    head = request("PUT", path, [("Content-Length", str(mebibytes << 20)), ("Content-Type", "video/mp4")])
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(head)
        for _ in range(mebibytes):
            client.sendall(PIECE)
        answer = client.recv(65536)
        while str(mebibytes << 20).encode() not in answer:
            more = client.recv(65536)
            assert more, answer
            answer += more
    return time.perf_counter() - began


async def upload_path(port: int) -> str:
    """Ask the proxy where to upload."""
    async with raw_client(port) as client:
        await client.send(request("POST", MOUNT + INITIATE, [], b'{"content_type":"video/mp4"}'))
        url: str = json.loads((await client.answer()).body)["upload_url"]
        return "/" + url.split("/", 3)[3]


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def main(mebibytes: int, rounds: int) -> None:
    """Measure and print."""
    os.sched_setaffinity(0, {1})
    with (
        tempfile.TemporaryDirectory() as folder,
        sinking() as sink_port,
        nginx(Path(folder), sink_port) as (port, worker),
    ):
        (Path(folder) / "fal-proxy.toml").write_text(CONFIG)
        environ = clean_environment(
            FAL_KEY=FAL_KEY.reveal(),
            FAL_PROXY_SECRET="a signing secret for benchmarks only and long enough",
            FAL_PROXY_UPSTREAM=f"http://127.0.0.1:{sink_port}",
            FAL_PROXY_SERVER__HOSTS='["127.0.0.1"]',
            FAL_PROXY_ADMIN__PORT="0",
        )
        with running(["serve", "--port", "0"], Path(folder), environ) as proxy:
            for pid in (worker, proxy.process.pid):
                os.sched_setaffinity(pid, {0})
            peers = {"nginx": (port, worker, "/file"), "fal-proxy": (proxy.port, proxy.process.pid, "")}
            wall: dict[str, list[float]] = {name: [] for name in peers}
            busy: dict[str, list[float]] = {name: [] for name in peers}
            for _ in range(rounds):
                for name, (at, pid, path) in peers.items():
                    where = path or asyncio.run(upload_path(at))
                    before = processor_seconds(pid)
                    seconds = upload(at, where, mebibytes)
                    wall[name].append(mebibytes * 1.048576 / seconds)
                    busy[name].append(mebibytes * 1.048576 / max(processor_seconds(pid) - before, 1 / TICKS))
    for name in peers:
        low, high = min(wall[name]), max(wall[name])
        median, per_second = statistics.median(wall[name]), statistics.median(busy[name])
        print(f"{name}: {median:.0f} MB/s ({low:.0f} to {high:.0f}); {per_second:.0f} MB per processor second")


if __name__ == "__main__":
    if sys.argv[1:] == ["sink"]:
        uvloop.run(sink())
    else:
        asked = [int(argument) for argument in sys.argv[1:]]
        main(*asked, *(1024, 5)[len(asked) :])
