"""What stands in front of the proxy where clients speak https only: TLS on a port of its own, bytes to another one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from support.certificates import authority, server_context

_READ_BYTES = 64 * 1024


@dataclass
class Front:
    """A port that speaks TLS as 127.0.0.1; `leads_to` is the port behind it, settled once that one is known."""

    port: int
    leads_to: int = 0

    @property
    def authority(self) -> str:
        """Host and port, as URLs write them."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The origin that clients see."""
        return f"https://{self.authority}"


@contextlib.asynccontextmanager
async def https_front() -> AsyncIterator[Front]:
    """Run one until the block ends; connections that are open then are cut."""
    pumps: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = await asyncio.open_connection("127.0.0.1", front.leads_to)
        for pump in (_pump(reader, behind[1]), _pump(behind[0], writer)):
            task = asyncio.ensure_future(pump)
            pumps.add(task)
            task.add_done_callback(pumps.discard)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context("127.0.0.1"))
    front = Front(server.sockets[0].getsockname()[1])
    try:
        yield front
    finally:
        server.close()
        for pump in list(pumps):
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until one side ends, then end the other one in the same way."""
    try:
        while data := await reader.read(_READ_BYTES):
            writer.write(data)
            await writer.drain()
        writer.close()
    except OSError:
        writer.transport.abort()
    finally:
        writer.close()


def write_authority(folder: Path) -> Path:
    """Write the tests' CA where `SSL_CERT_FILE` can name it."""
    path = folder / "authority.pem"
    authority().cert_pem.write_to_path(str(path))
    return path
