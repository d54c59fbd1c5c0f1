"""Callers who send too much, too small, too large or read nothing: each is cut, and the others do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from fal_proxy.settings import Realtime
from support.sockets import StartStage, stage
from support.websocket import (
    BINARY,
    CLOSE,
    CONT,
    GONE,
    PING,
    PONG,
    TEXT,
    CallerEnd,
    FalEnd,
    Frame,
    frame,
    opened,
)

start = stage
PATIENCE = 20.0
UNNOTICED_SECONDS = 1.0  # generous: what strict limits there are lives in scripts


async def test_ten_times_the_rate_ends_the_socket_with_4429(start: StartStage) -> None:
    on = await start(realtime=Realtime(messages="30/second"))
    async with opened(on.proxy, on.ada) as caller:
        fal = await on.fal.next()
        await caller.client.send(b"".join(frame(TEXT, b"%d" % n) for n in range(300)))
        assert await caller.end() == (4429, "more than 30 messages in 1 s")
        passed = []
        while (found := await fal.frame()).opcode == TEXT:
            passed.append(found.data)
        assert passed == [b"%d" % n for n in range(30)]
        assert found.closing == (1000, "")


async def test_the_rate_is_by_window_and_in_both_of_two(start: StartStage) -> None:
    on = await start(realtime=Realtime(messages="5/second; 8/minute"))
    async with opened(on.proxy, on.ada) as caller:
        for n in range(9):
            await caller.send(TEXT, b"%d" % n)
            await asyncio.sleep(0.25)  # the pace that is under test
        assert await caller.end() == (4429, "more than 8 messages in 60 s")


async def test_empty_messages_count(start: StartStage) -> None:
    on = await start(realtime=Realtime(messages="30/second"))
    async with opened(on.proxy, on.ada) as caller:
        await caller.client.send(frame(BINARY) * 3000)
        assert (await caller.end())[0] == 4429


SIZES = [(1000, None), (1001, 1009), (16 << 20, 1009)]


@pytest.mark.parametrize(("size", "code"), SIZES)
@pytest.mark.parametrize("pieces", [1, 4])
async def test_a_message_beyond_the_bound_ends_the_socket_with_1009(
    start: StartStage, size: int, code: int | None, pieces: int
) -> None:
    on = await start(realtime=Realtime(max_message_bytes=1000))
    async with opened(on.proxy, on.ada) as caller:
        fal = await on.fal.next()
        step = -(-size // pieces)
        parts = [min(step, size - at) for at in range(0, size, step)]

        async def flood() -> None:
            with contextlib.suppress(OSError):
                for n, part in enumerate(parts):
                    await caller.send(CONT if n else BINARY, bytes(part), fin=n == len(parts) - 1)

        flooding = asyncio.ensure_future(flood())
        if code is None:
            assert await fal.frame() == Frame(BINARY, bytes(size))
        else:
            assert (await caller.end())[0] == code
            assert (await fal.frame()).opcode == CLOSE
        await asyncio.wait_for(flooding, PATIENCE)


@pytest.mark.parametrize(("count", "code"), [(1024, None), (1026, 1008), (200_000, 1008)])
async def test_a_message_of_tiny_fragments_ends_the_socket_with_1008(
    start: StartStage, count: int, code: int | None
) -> None:
    on = await start()
    async with opened(on.proxy, on.ada) as caller:
        fal = await on.fal.next()
        data = frame(TEXT, b"x", fin=False) + frame(CONT, b"x", fin=False) * (count - 2) + frame(CONT, b"x")
        await caller.client.send(data)
        if code is None:
            assert await fal.frame() == Frame(TEXT, b"x" * count)
        else:
            assert (await caller.end())[0] == code
            assert (await fal.frame()).opcode == CLOSE


async def test_a_fragment_too_many_is_the_1026th(start: StartStage) -> None:
    on = await start()
    async with opened(on.proxy, on.ada) as caller:
        for _ in range(3):
            await caller.client.send(frame(TEXT, b"x", fin=False) + frame(CONT, b"") * 1)
        fal = await on.fal.next()
        for _ in range(3):
            assert await fal.frame() == Frame(TEXT, b"x"), "the count begins anew with every message"


async def test_a_flood_of_pings_ends_the_socket_with_1008(start: StartStage) -> None:
    on = await start()
    async with opened(on.proxy, on.ada) as caller:
        await caller.client.send(frame(PING, b"x") * 50)
        for _ in range(50):
            assert await caller.frame() == Frame(PONG, b"x")
        await caller.client.send(frame(PING, b"x") * 20_000)
        assert (await caller.end())[0] == 1008


async def test_a_caller_who_never_reads_is_cut(start: StartStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fal_proxy.downstream.websocket.PING_SECONDS", 0.2)
    on = await start()
    async with opened(on.proxy, on.ada) as caller:
        caller.client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        fal = await on.fal.next()
        with contextlib.suppress(OSError):
            async with asyncio.timeout(PATIENCE):
                while True:
                    await fal.send(BINARY, bytes(1 << 20))
        await on.left()


async def test_a_caller_who_reads_nothing_of_an_ending_is_let_go(
    start: StartStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fal_proxy.downstream.websocket.LINGER_SECONDS", 0.3)
    monkeypatch.setattr("fal_proxy.downstream.websocket.CLOSE_SECONDS", 0.3)
    monkeypatch.setattr("fal_proxy.upstream.websocket.CLOSE_SECONDS", 0.3)
    on = await start(realtime=Realtime(session_seconds=1))
    async with opened(on.proxy, on.ada) as caller:
        caller.client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        fal = await on.fal.next()

        async def send() -> None:
            while True:
                await fal.send(BINARY, bytes(1 << 20))

        sending = asyncio.ensure_future(send())
        await on.left()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        caller.client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert (await caller.end())[0] == 1006


async def test_an_upstream_of_empty_messages_is_held_back_by_a_caller_who_does_not_read(start: StartStage) -> None:
    on = await start()
    async with opened(on.proxy, on.ada) as caller:
        caller.client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        fal = await on.fal.next()
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    await fal.peer.send(frame(BINARY, masked=False) * 50_000)
                    sent += 50_000
        assert sent < 20_000_000, "somebody takes them all"


async def echo(fal: FalEnd) -> None:
    """Answer every message with itself."""
    while (found := await fal.frame()) is not GONE:
        await fal.send(found.opcode, found.data)


async def round_trip(caller: CallerEnd) -> float:
    """Return how long a message takes to fal and back; seconds."""
    began = time.monotonic()
    await caller.send(TEXT, b"x")
    assert await caller.frame() == Frame(TEXT, b"x")
    return time.monotonic() - began


FLOODS = [
    (frame(TEXT, b"") * 40_000, "tiny messages"),
    (frame(TEXT, b"x", fin=False) + frame(CONT, b"") * 40_000, "tiny fragments"),
    (frame(PING) * 40_000, "pings"),
    (frame(BINARY, bytes(16 << 20)), "a large message"),
    (bytes(1 << 20), "bytes that are no frames"),
]


@pytest.mark.parametrize(("flood", "reason"), FLOODS, ids=[row[1] for row in FLOODS])
async def test_other_sockets_do_not_notice_a_flood(start: StartStage, flood: bytes, reason: str) -> None:
    on = await start(realtime=Realtime(messages="1000/second"))
    async with contextlib.AsyncExitStack() as stack:
        good = await stack.enter_async_context(opened(on.proxy, on.limited.user("bea")))
        echoing = asyncio.ensure_future(echo(await on.fal.next()))
        await round_trip(good)
        slowest = 0.0

        async def attack() -> None:
            with contextlib.suppress(OSError):
                async with opened(on.proxy, on.ada) as bad:
                    with contextlib.suppress(OSError):
                        await bad.client.send(flood)
                    assert (await bad.end())[0] in (1002, 1008, 1009, 4429)

        for _ in range(3):
            attacks = asyncio.gather(*[attack() for _ in range(3)])
            while not attacks.done():
                slowest = max(slowest, await round_trip(good))
                await asyncio.sleep(0.05)  # messages have a rate here
            await attacks
        assert slowest < UNNOTICED_SECONDS, reason
        echoing.cancel()
        await asyncio.gather(echoing, return_exceptions=True)
