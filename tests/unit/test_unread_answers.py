"""An answer that the caller does not read: how much of it waits here, and that none of it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from support.memory_socket import MemoryServer

MAX_WAITING_BYTES = 256 * 1024
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
Send = Callable[[dict[str, Any]], Awaitable[None]]

SIZES = [(5_000_000, "one piece larger than all that may wait"), (100_000, "pieces"), (1000, "small pieces")]


@pytest.mark.parametrize("framed", [True, False], ids=["content-length", "chunked"])
@pytest.mark.parametrize(("size", "reason"), SIZES)
async def test_at_most_256_kib_wait_for_a_caller_and_every_byte_arrives(size: int, reason: str, framed: bool) -> None:
    pieces = 5_000_000 // size

    async def app(scope: dict[str, Any], receive: object, send: Send) -> None:
        headers = [(b"content-length", b"%d" % (size * pieces))] if framed else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for index in range(pieces):
            last = index == pieces - 1
            await send({"type": "http.response.body", "body": b"x" * size, "more_body": not last})

    caller = MemoryServer(app).connect()
    caller.transport.taking = False
    await caller.send(REQUEST)
    rounds = 0
    async with asyncio.timeout(20):
        while caller.protocol._unanswered is not None:
            await caller.settle(lambda: caller.protocol.flow.write_paused or caller.protocol._unanswered is None)
            assert len(caller.transport.unsent) <= MAX_WAITING_BYTES, reason
            caller.take()
            rounds += 1
    caller.take()
    body = bytes(caller.transport.written).partition(b"\r\n\r\n")[2]
    assert body.count(b"x") == size * pieces, reason
    assert rounds >= 5_000_000 // MAX_WAITING_BYTES, "it had to wait"
    caller.transport.close()


async def test_pipelined_requests_wait_unread_and_unjudged() -> None:
    seen: list[str] = []
    may_answer = asyncio.Event()

    async def app(scope: dict[str, Any], receive: object, send: Send) -> None:
        seen.append(scope["path"])
        await may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    caller = MemoryServer(app).connect()
    await caller.send(REQUEST)
    await caller.send(REQUEST.replace(b"/ ", b"/second ") * 1000)
    await caller.settle(lambda: len(seen) > 1)
    assert seen == ["/"]
    assert not caller.transport.reading, "nothing more is read behind them"
    may_answer.set()
    async with asyncio.timeout(20):
        while len(seen) < 1001:
            await caller.settle(lambda: len(seen) == 1001)
    assert set(seen[1:]) == {"/second"}
    caller.transport.close()
