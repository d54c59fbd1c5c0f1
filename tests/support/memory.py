"""What a large transfer costs the proxy: its peak memory before and after, read from the process itself.

As a script: `./run env PYTHONPATH=tests python tests/support/memory.py [MEBIBYTES]` prints a line per direction.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from support.commands import Running, clean_environment, running
from support.peers import Peer, Upstream
from support.proxied import FAL_KEY, MOUNT
from support.raw import RawClient, raw_client, request

PIECE = os.urandom(1024 * 1024)
CONFIG = """
[server]
max_body_bytes = 4294967296
[identity]
sources = ["anonymous"]
[plans.default]
endpoints = ["**"]
[storage]
mode = "relay"
max_upload_bytes = 4294967296
"""
INITIATE = "/rest.fal.ai/storage/upload/initiate"
_UPLOAD_URL = b'{"upload_url":"https://v3b.fal.media/files/b/1/film.mp4?signature=s"}'


class Growth(NamedTuple):
    """Peak resident memory after one small exchange, and how much a large one added; KiB."""

    before_kib: int
    grown_kib: int


async def measure(direction: str, mebibytes: int) -> Growth:
    """Send `mebibytes` MiB "up", "down", or to the file host ("upload") through a proxy process."""
    upstream = Upstream((_download if direction == "down" else _upload,), None)
    environ = clean_environment(
        FAL_KEY=FAL_KEY.reveal(),
        FAL_PROXY_SECRET="a signing secret for tests only and long enough",
        FAL_PROXY_UPSTREAM=f"http://127.0.0.1:{upstream.port}",
        FAL_PROXY_SERVER__HOSTS='["127.0.0.1"]',
        FAL_PROXY_ADMIN__PORT="0",
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "fal-proxy.toml").write_text(CONFIG)
            with running(["serve", "--port", "0"], Path(folder), environ) as proxy:
                await _transfer(direction, proxy, 1)
                before = _peak_kib(proxy)
                await _transfer(direction, proxy, mebibytes)
                return Growth(before, _peak_kib(proxy) - before)
    finally:
        await upstream.close()


async def _transfer(direction: str, proxy: Running, mebibytes: int) -> None:
    identity = [("x-fal-target-url", "https://fal.run/fal-ai/flux/dev")]
    async with raw_client(proxy.port) as client:
        if direction == "upload":
            await client.send(request("POST", MOUNT + INITIATE, identity[:0], b'{"content_type":"video/mp4"}'))
            path = "/" + json.loads((await client.answer()).body)["upload_url"].split("/", 3)[3]
            await _send(client, "PUT", path, mebibytes, [])
        elif direction == "up":
            await _send(client, "POST", MOUNT, mebibytes, identity)
        else:
            await client.send(request("POST", MOUNT, identity, b"%d" % mebibytes))
            _, headers = await client.read_head()
            left = int(dict(headers)[b"content-length"])
            while left:
                data = await client.reader.read(1 << 20)
                assert data, "cut"
                left -= len(data)


async def _send(client: RawClient, method: str, path: str, mebibytes: int, fields: list[tuple[str, str]]) -> None:
    size = mebibytes * len(PIECE)
    await client.send(request(method, path, [("Content-Length", str(size)), *fields]))
    for _ in range(mebibytes):
        await client.send(PIECE)
    answer = await client.answer()
    assert answer.body == b"%d" % size, answer


async def _upload(peer: Peer) -> None:
    while True:
        head = await peer.read_head()
        left = size = _length(head)
        while left:
            left -= len(await peer.read(min(left, len(PIECE))))
            peer.forget()
        body = _UPLOAD_URL if INITIATE.encode() in head else b"%d" % size
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


async def _download(peer: Peer) -> None:
    while True:
        pieces = int(await peer.read(_length(await peer.read_head())))
        size = pieces * len(PIECE)
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: video/mp4\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(pieces):
            await peer.send(PIECE)


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])


def _peak_kib(proxy: Running) -> int:
    for line in Path(f"/proc/{proxy.process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise AssertionError("this system does not tell a process's peak memory")


if __name__ == "__main__":
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    for direction in ("up", "down", "upload"):
        growth = asyncio.run(measure(direction, size))
        print(f"{direction}: {size} MiB, peak {growth.before_kib} KiB before, {growth.grown_kib} KiB more")  # noqa: T201
