"""A caller on a bare socket: it says exactly what a test wants and leaves whenever a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from typing import NamedTuple

PATIENCE_SECONDS = 10


class RawAnswer(NamedTuple):
    """One answer as it came over the wire; `complete` says whether its framing ended cleanly."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    complete: bool

    def one(self, name: bytes) -> bytes | None:
        """Return the value of the only field called `name`, None without one."""
        found = [value for key, value in self.headers if key == name]
        assert len(found) < 2, f"{name!r} appears {len(found)} times"
        return found[0] if found else None


class RawClient:
    """One connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Write and flush."""
        self.writer.write(data)
        await self.writer.drain()

    async def read_head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Return the next answer's status and fields."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        fields = [
            (name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines[1:] if line)
        ]
        return int(lines[0].split(b" ")[1]), fields

    async def read_chunk(self) -> bytes:
        """Return the next chunk of a chunked body, b"" for the last one."""
        size = int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16)
        data = await self.reader.readexactly(size)
        await self.reader.readexactly(2)
        return data

    async def answer(self, *, bodiless: bool = False) -> RawAnswer:
        """Read one answer, whole or as far as it goes; `bodiless`: to HEAD, whose length announces nothing."""
        status, headers = await self.read_head()
        if bodiless:
            return RawAnswer(status, headers, b"", complete=True)
        fields = dict(headers)
        body = b""
        complete = False
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            if fields.get(b"transfer-encoding") == b"chunked":
                while chunk := await self.read_chunk():
                    body += chunk
                complete = True
            elif b"content-length" in fields:
                size = int(fields[b"content-length"])
                while len(body) < size and (data := await self.reader.read(size - len(body))):
                    body += data
                complete = len(body) == size
            elif status in (204, 304):
                complete = True
            else:
                body = await self.reader.read()
        return RawAnswer(status, headers, body, complete)

    def reset(self) -> None:
        """Leave with a RST, as a killed tab does."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        """Leave with a FIN."""
        self.writer.close()


@contextlib.asynccontextmanager
async def raw_client(
    port: int, local: str = "127.0.0.1", secure: ssl.SSLContext | None = None
) -> AsyncIterator[RawClient]:
    """Connect to a port on loopback, from an address of it; with a context, speak TLS."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(local, 0), ssl=secure)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()


def request(
    method: str, path: str, headers: dict[str, str] | list[tuple[str, str]] | None = None, body: bytes | None = None
) -> bytes:
    """Build one request; Content-Length is added for a body, Host always."""
    pairs = list(headers.items()) if isinstance(headers, dict) else list(headers or [])
    if not any(name.lower() == "host" for name, _ in pairs):
        pairs.insert(0, ("Host", "127.0.0.1"))
    framed = any(name.lower() in ("content-length", "transfer-encoding") for name, _ in pairs)
    if body is not None and not framed:
        pairs.append(("Content-Length", str(len(body))))
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in pairs) + "\r\n"
    return head.encode("latin-1") + (body or b"")


async def refusal(client: RawClient) -> RawAnswer:
    """Read one refusal of ours and the end of the connection."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        answer = await client.answer()
        assert await client.reader.read() == b""
    body = json.loads(answer.body)
    assert body["error_type"].encode() == answer.one(b"x-fal-error-type")
    assert body["detail"] == body["message"]
    assert answer.one(b"connection") == b"close"
    return answer


async def ended(client: RawClient) -> bytes:
    """Return what comes until the connection ends, however it ends."""
    back = b""
    async with asyncio.timeout(PATIENCE_SECONDS):
        with contextlib.suppress(ConnectionError):
            while piece := await client.reader.read(1 << 20):
                back += piece
    return back
