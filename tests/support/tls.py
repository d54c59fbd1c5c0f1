"""TLS in front of a plain listener, as a reverse proxy has it: bytes go through, and nothing is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from support.certificates import server_context

_PIECE_BYTES = 64 * 1024


@asynccontextmanager
async def terminated(port: int) -> AsyncIterator[int]:
    """Listen with a certificate for `localhost` in front of a port of loopback; yields the port."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        ways = [asyncio.create_task(_pump(reader, inner_writer)), asyncio.create_task(_pump(inner_reader, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            inner_writer.transport.abort()
            writer.close()

    carried: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        carried.add(asyncio.get_running_loop().create_task(carry(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=server_context("localhost"))
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in carried:
            task.cancel()
        await asyncio.gather(*carried, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_PIECE_BYTES):
        writer.write(data)
        await writer.drain()
