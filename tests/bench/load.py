"""What is asked of a proxy, from the load's core: wrk where it fits, else sockets of our own."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

from bench.machine import LOAD_CORE, pinned, processor_seconds
from bench.subjects import USER_KEYS, Subject

WRK = Path(__file__).parent
MESSAGE = random.Random(1).randbytes(1024).hex()[:1024].encode()
_PIECE_BYTES = 1 << 20
_OPEN_SECONDS = 60.0


class Measured(NamedTuple):
    """One round: operations a second, processor seconds of the proxy per operation, and the median time in seconds."""

    rate: float
    cost_seconds: float
    p50_seconds: float = 0.0
    busy: float = 0.0  # share of its core that the proxy used


def posts(subject: Subject, target: str, connections: int, seconds: float, folder: Path) -> Measured:
    """Repeat one small JSON POST on so many connections."""
    path, fields = subject.address(target)
    (folder / "fields.txt").write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
    return _wrk(subject, "post.lua", connections, seconds, [path, str(folder / "fields.txt")])


def mix(subject: Subject, callers: int, seconds: float, folder: Path) -> Measured:
    """Submit, poll 20 times and read the result, for so many callers at once."""
    _, fields = subject.address("")
    kept = {name: value for name, value in fields.items() if name not in ("x-fal-target-url", "Authorization")}
    (folder / "mix-fields.txt").write_text("".join(f"{name}: {value}\n" for name, value in kept.items()))
    (folder / "keys.txt").write_text("".join(f"{key}\n" for key in USER_KEYS[:callers]))
    form = "header" if subject.scheme else "path"
    files = [str(folder / "mix-fields.txt"), str(folder / "keys.txt")]
    return _wrk(subject, "mix.lua", callers, seconds, [subject.prefix, form, subject.scheme or "", *files])


def _wrk(subject: Subject, script: str, connections: int, seconds: float, arguments: list[str]) -> Measured:
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{max(1, round(seconds))}s"]
    command += ["--timeout", "20s", "--script", str(WRK / script), f"http://127.0.0.1:{subject.port}", "--", *arguments]
    before = processor_seconds(subject.pid) if subject.pid else 0.0
    done = subprocess.run(pinned(LOAD_CORE, command), capture_output=True, text=True, check=False)
    spent = (processor_seconds(subject.pid) if subject.pid else 0.0) - before
    if done.returncode or not done.stdout.strip():
        raise SystemExit(f"bench: wrk failed against {subject.name}: {done.stdout}{done.stderr}")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    if told["errors"] or not told["requests"]:
        raise SystemExit(f"bench: {subject.name} failed under load: {told}")
    count, took = told["requests"], told["seconds"]
    return Measured(count / took, spent / count, told["p50"] / 1e6, spent / took)


class Listener(asyncio.Protocol):
    """A caller who hears events and notes how old each is."""

    def __init__(self, request: bytes, delays: list[int]) -> None:
        self._request = request
        self._delays = delays
        self.events = 0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note the age of each event that ends here."""
        now = time.monotonic_ns()
        *events, self._tail = (self._tail + data).split(b"\n\n")
        for event in events:
            _, found, rest = event.partition(b'{"t":')
            if found:
                self.events += 1
                self._delays.append(now - int(rest.partition(b",")[0]))


async def events(subject: Subject, target: str, streams: int, seconds: float) -> Measured:
    """Listen to so many streams at once."""
    delays: list[int] = []
    loop = asyncio.get_running_loop()
    callers: list[Listener] = []
    for _ in range(streams):
        _, caller = await loop.create_connection(
            lambda: Listener(_request(subject, "POST", target, b"{}"), delays), "127.0.0.1", subject.port
        )
        callers.append(caller)
        await asyncio.sleep(0.0031)  # so that their events do not fall together
    await _until(lambda: all(caller.events > 1 for caller in callers), f"{subject.name} streams")
    delays.clear()
    before, began = processor_seconds(subject.pid) if subject.pid else 0.0, time.perf_counter()
    await asyncio.sleep(seconds)
    took = time.perf_counter() - began
    spent, heard = (processor_seconds(subject.pid) if subject.pid else 0.0) - before, len(delays)
    p50 = statistics.median(delays) / 1e9
    for caller in callers:
        caller.transport.abort()
    return Measured(heard / took, spent / heard, p50, spent / took)


class Echoed(asyncio.Protocol):
    """A caller who says one message, waits until it comes back whole, and says it again."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.opened = False
        self.heard = self._waits_for = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the socket."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count what came back."""
        if not self.opened:
            assert data.startswith(b"HTTP/1.1 101") and data.endswith(b"\r\n\r\n"), data  # noqa: PT018
            self.opened = True
            return
        self._waits_for -= len(data)
        if self._waits_for <= 0:
            self.heard += 1
            self.say()

    def say(self) -> None:
        """Say the message: text, masked with zeros, which leave it as it is."""
        self._waits_for += 4 + len(MESSAGE)
        self.transport.write(b"\x81\xfe" + len(MESSAGE).to_bytes(2, "big") + bytes(4) + MESSAGE)


async def sockets(subject: Subject, target: str, count: int) -> list[Echoed]:
    """Open so many sockets that say nothing yet."""
    loop = asyncio.get_running_loop()
    more = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    callers: list[Echoed] = []
    for _ in range(count):
        request = _request(subject, "GET", target, None, more)
        _, caller = await loop.create_connection(lambda r=request: Echoed(r), "127.0.0.1", subject.port)  # type: ignore[misc]
        callers.append(caller)
        if len(callers) % 50 == 0:
            await _until(lambda: all(caller.opened for caller in callers), f"{subject.name} sockets")
    await _until(lambda: all(caller.opened for caller in callers), f"{subject.name} sockets")
    return callers


async def echoes(subject: Subject, callers: list[Echoed], seconds: float) -> Measured:
    """Let them all talk."""
    for caller in callers:
        caller.say()
    await asyncio.sleep(0.3)
    heard, before = sum(caller.heard for caller in callers), processor_seconds(subject.pid)
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    took, spent = time.perf_counter() - began, processor_seconds(subject.pid) - before
    count = sum(caller.heard for caller in callers) - heard
    return Measured(count / took, spent / count, 0.0, spent / took)


def download(subject: Subject, target: str, size: int) -> Measured:
    """Read a large answer and return bytes a second."""
    before, began, got = processor_seconds(subject.pid), time.perf_counter(), 0
    with socket.create_connection(("127.0.0.1", subject.port), timeout=60) as client:
        client.sendall(_request(subject, "POST", target, b"{}", {"Connection": "close"}))
        piece = bytearray(_PIECE_BYTES)
        while got < size and (read := client.recv_into(piece)):
            got += read
    took, spent = time.perf_counter() - began, processor_seconds(subject.pid) - before
    if got < size:
        raise SystemExit(f"bench: {subject.name} sent {got} of {size} bytes")
    return Measured(size / took, spent / size, 0.0, spent / took)


def upload(subject: Subject, path: str, fields: dict[str, str], film: Path, method: str) -> Measured:
    """Send a large body and return bytes a second."""
    size = film.stat().st_size
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}Content-Length: {size}\r\nConnection: close\r\n\r\n"
    before, began = processor_seconds(subject.pid), time.perf_counter()
    with socket.create_connection(("127.0.0.1", subject.port), timeout=60) as client, film.open("rb") as file:
        client.sendall(head.encode())
        client.sendfile(file)
        answer = b""
        while read := client.recv(65536):
            answer += read
    took, spent = time.perf_counter() - began, processor_seconds(subject.pid) - before
    if not answer.startswith(b"HTTP/1.1 200") or str(size).encode() not in answer:
        raise SystemExit(f"bench: {subject.name} answered an upload with {answer[:500]!r}")
    return Measured(size / took, spent / size, 0.0, spent / took)


def make_film(folder: Path, mebibytes: int) -> Path:
    """Write a file that looks like no text."""
    film = folder / "film"
    with film.open("wb") as file:
        for _ in range(mebibytes):
            file.write(os.urandom(_PIECE_BYTES))
    return film


def _request(
    subject: Subject, method: str, target: str, body: bytes | None, more: dict[str, str] | None = None
) -> bytes:
    path, fields = subject.address(target)
    fields = {"Host": "127.0.0.1", **fields, **(more or {})}
    if body is not None:
        fields["Content-Length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + (body or b"")


async def _until(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _OPEN_SECONDS
    while not happened():
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: {what} do not open")
        await asyncio.sleep(0.02)
