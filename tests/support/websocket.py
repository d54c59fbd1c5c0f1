"""WebSockets on bare sockets, both ends: every frame is built and taken apart here, so that none is repaired on its way."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple, Protocol

from support.peers import PATIENCE, Peer
from support.proxied import MOUNT
from support.raw import RawAnswer, RawClient, raw_client, request

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
NONCE = base64.b64encode(bytes(range(16))).decode()
ACCEPT = base64.b64encode(hashlib.sha1(NONCE.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
APP = "/fal.run/fal-ai/fast-lcm/realtime"
SHAKE = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", NONCE),
]
Fields = list[tuple[str, str]]


class Frame(NamedTuple):
    """One frame as it came."""

    opcode: int
    data: bytes = b""
    fin: bool = True

    @property
    def closing(self) -> tuple[int, str]:
        """Return code and reason of a close frame; 1005 without a code."""
        assert self.opcode == CLOSE, self
        return (int.from_bytes(self.data[:2], "big"), self.data[2:].decode()) if self.data else (1005, "")


GONE = Frame(-1)  # the connection ended instead


def frame(opcode: int, data: bytes = b"", *, fin: bool = True, masked: bool = True) -> bytes:
    """Build a frame; callers mask theirs, with zeros."""
    size, mask = len(data), 0x80 if masked else 0
    if size < 126:
        head = bytes([size | mask])
    elif size < 65536:
        head = bytes([126 | mask]) + size.to_bytes(2, "big")
    else:
        head = bytes([127 | mask]) + size.to_bytes(8, "big")
    return bytes([opcode | (0x80 if fin else 0)]) + head + (bytes(4) if masked else b"") + data


def closing(code: int, reason: str = "", *, masked: bool = True) -> bytes:
    """Build a close frame; 1005 stands for none."""
    return frame(CLOSE, b"" if code == 1005 else code.to_bytes(2, "big") + reason.encode(), masked=masked)


Read = Callable[[int], Awaitable[bytes]]


async def read_frame(read: Read) -> Frame:
    """Read one frame, masked or not."""
    first, second = await read(2)
    size = second & 0x7F
    if size > 125:
        size = int.from_bytes(await read(2 if size == 126 else 8), "big")
    mask = await read(4) if second & 0x80 else b""
    data = await read(size)
    if any(mask):
        key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        data = (int.from_bytes(data, "big") ^ key).to_bytes(size, "big")
    return Frame(first & 0x0F, data, bool(first & 0x80))


class FalEnd:
    """Fal's end of one socket; `head` is the handshake that came."""

    def __init__(self, peer: Peer, head: bytes) -> None:
        self.peer = peer
        self.head = head

    async def send(self, opcode: int, data: bytes = b"", *, fin: bool = True) -> None:
        """Send one frame."""
        await self.peer.send(frame(opcode, data, fin=fin, masked=False))

    async def close(self, code: int, reason: str = "") -> None:
        """Send a close frame."""
        await self.peer.send(closing(code, reason, masked=False))

    async def frame(self) -> Frame:
        """Return the next frame, GONE at the end of the connection."""
        async with asyncio.timeout(PATIENCE * 5):
            try:
                return await read_frame(self.peer.read)
            except (EOFError, OSError):
                return GONE


class FalSockets:
    """A script for an upstream: it accepts every handshake and hands the sockets to the test, in their order."""

    def __init__(self, fields: bytes = b"") -> None:
        self._fields = fields
        self._ends: asyncio.Queue[FalEnd] = asyncio.Queue()

    async def script(self, peer: Peer) -> None:
        """Lead one connection."""
        head = await peer.read_head()
        await peer.send(switching(head, self._fields))
        self._ends.put_nowait(FalEnd(peer, head))

    async def next(self) -> FalEnd:
        """Return the next socket that was opened."""
        async with asyncio.timeout(PATIENCE * 5):
            return await self._ends.get()

    @property
    def waiting(self) -> int:
        """Return how many were opened and not yet asked for."""
        return self._ends.qsize()


def switching(head: bytes, fields: bytes = b"") -> bytes:
    """Return the 101 that fits a handshake."""
    nonce = head.lower().partition(b"sec-websocket-key: ")[2].partition(b"\r\n")[0]
    at = head.lower().index(nonce)
    digest = hashlib.sha1(head[at : at + len(nonce)] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    accept = base64.b64encode(digest)
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n" + fields + b"\r\n"
    )


class CallerEnd:
    """The caller's end of one socket; `headers` are those of the 101."""

    def __init__(self, client: RawClient, headers: list[tuple[bytes, bytes]]) -> None:
        self.client = client
        self.headers = headers

    async def send(self, opcode: int, data: bytes = b"", *, fin: bool = True) -> None:
        """Send one frame."""
        await self.client.send(frame(opcode, data, fin=fin))

    async def close(self, code: int, reason: str = "") -> None:
        """Send a close frame."""
        await self.client.send(closing(code, reason))

    async def frame(self) -> Frame:
        """Return the next frame, GONE at the end of the connection."""
        async with asyncio.timeout(PATIENCE * 5):
            try:
                return await read_frame(self.client.reader.readexactly)
            except (asyncio.IncompleteReadError, OSError):
                return GONE

    async def end(self) -> tuple[int, str]:
        """Read on to the end and return code and reason; 1006 without a close frame."""
        while True:
            found = await self.frame()
            if found.opcode == CLOSE:
                return found.closing
            if found is GONE:
                return 1006, ""


class HasPort(Protocol):
    """A proxy."""

    @property
    def port(self) -> int:
        """Where it listens."""


def handshake(path: str, fields: Fields, *, mount: str = MOUNT) -> bytes:
    """Build a handshake."""
    return request("GET", mount + path, [*SHAKE, *fields])


@contextlib.asynccontextmanager
async def opened(proxy: HasPort, fields: Fields, path: str = APP, behind: bytes = b"") -> AsyncIterator[CallerEnd]:
    """Open a socket; `behind` is sent with the handshake."""
    async with raw_client(proxy.port) as client:
        await client.send(handshake(path, fields) + behind)
        async with asyncio.timeout(PATIENCE * 5):
            status, headers = await client.read_head()
        assert status == 101, (status, headers)
        assert (b"sec-websocket-accept", ACCEPT) in headers
        yield CallerEnd(client, headers)


async def answered(proxy: HasPort, fields: Fields, path: str = APP) -> RawAnswer:
    """Return the answer to a handshake that must not succeed."""
    async with raw_client(proxy.port) as client:
        await client.send(handshake(path, fields))
        async with asyncio.timeout(PATIENCE * 5):
            answer = await client.answer()
        assert answer.status != 101
        return answer
