"""What a socket of the emulator does on purpose, as the raw connection shows it."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from websockets.exceptions import InvalidStatus

from support.emulated import Emulated, emulated
from support.realtime import WAIT_SECONDS, ask, hear, opened, to_the_end

PATH = "/a/b/realtime"


@asynccontextmanager
async def raw(fal: Emulated, path: str = PATH) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a TCP connection and send a handshake."""
    reader, writer = await asyncio.open_connection("127.0.0.1", fal.port)
    nonce = base64.b64encode(bytes(16)).decode()
    writer.write(
        f"GET /fal.run{path} HTTP/1.1\r\nHost: h\r\nAuthorization: Key a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {nonce}\r\n\r\n".encode()
    )
    try:
        yield reader, writer
    finally:
        writer.close()


def frame(content: bytes) -> bytes:
    """Frame a short binary message as a client does, masked with zeros."""
    return bytes([0x82, 0x80 | len(content)]) + bytes(4) + content


async def rest(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    """Read to the end of the connection; also tells whether it was reset."""
    read = bytearray()
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while piece := await reader.read(65536):
                read += piece
    except ConnectionResetError:
        return bytes(read), True
    return bytes(read), False


async def message(reader: asyncio.StreamReader) -> bytes:
    """Read one message of medium size."""
    async with asyncio.timeout(WAIT_SECONDS):
        assert await reader.readexactly(2) == b"\x82\x7e"
        return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))


INPUT = frame(msgspec.msgpack.encode({"x": 1}))


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        ("status=429", 429, "application/json"),
        ("status=503", 503, "application/json"),
        ("nginx502", 502, "text/html"),
    ],
)
async def test_a_handshake_is_answered_by_a_fault_instead(fault: str, status: int, kind: str) -> None:
    async with emulated(faults=f"a/b:{fault}") as fal:
        with pytest.raises(InvalidStatus) as caught:
            async with opened(fal, PATH):
                pass
        assert caught.value.response.status_code == status
        assert caught.value.response.headers["content-type"] == kind
        async with opened(fal, "/a/c/realtime") as socket:
            assert (await ask(socket, {}))["input"] == {}


async def test_a_delay_holds_the_handshake_back_scaled_by_speed() -> None:
    async with emulated(faults="fal.run/a/b/realtime:delay=20", speed=100) as fal:
        started = time.monotonic()
        async with opened(fal, PATH):
            assert time.monotonic() - started >= 0.2


async def test_reset_answers_the_handshake_with_rst() -> None:
    async with emulated(faults="a/b:reset") as fal:
        async with raw(fal) as (reader, _):
            assert await rest(reader) == (b"", True)
        entry = await fal.finished()
        assert (entry.notes, entry.session, entry.status) == (["fault: reset"], None, None)


@pytest.mark.parametrize(("fault", "was_reset"), [("reset=1", True), ("drop=1", False)])
async def test_an_open_socket_is_cut_without_a_close_frame(fault: str, was_reset: bool) -> None:
    async with emulated(faults=f"a/b:{fault}") as fal:
        async with raw(fal) as (reader, writer):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101")
            writer.write(INPUT)
            assert (await reader.readexactly(2))[0] == 0x82
            writer.write(INPUT)
            content, reset = await rest(reader)
            assert reset is was_reset
            assert b"\x88" not in content[-4:]
        session = (await fal.finished()).session
        assert session is not None
        assert (session.sent, session.close_code, session.closed_by_client) == (1, 1006, False)


async def test_drop_strikes_instead_of_the_first_answer() -> None:
    async with emulated(faults="a/b:drop") as fal, opened(fal, PATH) as socket:
        await socket.send(msgspec.msgpack.encode({}))
        assert await to_the_end(socket) == ([], 1006, "")


async def test_truncate_ends_in_the_middle_of_a_frame() -> None:
    async with emulated(faults="a/b:truncate") as fal, raw(fal) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(INPUT)
        content, was_reset = await rest(reader)
        assert (content[0], content[1], was_reset) == (0x82, 126, False)
        assert 0 < len(content) < 4 + int.from_bytes(content[2:4], "big")


async def test_garbage_is_no_frame_and_the_client_fails_the_connection() -> None:
    async with emulated(faults="a/b:garbage=1") as fal:
        async with opened(fal, PATH) as socket:
            assert (await ask(socket, {"x": 1}))["input"] == {"x": 1}
            await socket.send(msgspec.msgpack.encode({"x": 2}))
            assert (await to_the_end(socket))[0] == []
        entry = await fal.finished()
        assert entry.session is not None
        assert (entry.session.close_code, entry.session.closed_by_client) == (1002, True)
        assert entry.notes == ["fault: garbage"]


async def test_an_oversized_message_comes_instead_of_the_first_and_the_session_goes_on() -> None:
    async with emulated(faults="a/b:oversized=3000000") as fal:
        async with opened(fal, PATH) as socket:
            await socket.send(msgspec.msgpack.encode({"x": 1}))
            assert await socket.recv() == bytes(3_000_000)
            assert (await ask(socket, {"x": 2}))["input"] == {"x": 2}
        async with opened(fal, PATH, max_size=1_000_000) as socket:
            await socket.send(msgspec.msgpack.encode({"x": 1}))
            await to_the_end(socket)
        session = (await fal.finished()).session
        assert session is not None
        assert (session.close_code, session.closed_by_client) == (1009, True)


@pytest.mark.parametrize("answered", [0, 1])
async def test_stall_neither_sends_nor_reads_until_the_client_hangs_up(answered: int) -> None:
    async with emulated(faults=f"a/b:stall={answered}") as fal:
        async with raw(fal) as (reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            for _ in range(answered):
                writer.write(INPUT)
                await message(reader)
            assert fal.last.notes == ["fault: stall"]
            writer.write(bytes([0x89, 0x80, 0, 0, 0, 0]))  # a ping
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await reader.readexactly(1)
            assert not fal.last.done.is_set()
        session = (await fal.finished()).session
        assert session is not None
        assert session.sent == answered
        assert session.close_code == 1006


async def test_close_says_1013_at_once_unless_told_another_code() -> None:
    async with emulated(faults="a/b:close;c/d:close=4000") as fal:
        async with opened(fal, PATH) as socket:
            assert await to_the_end(socket) == ([], 1013, "Concurrent session limit reached.")
        assert (await fal.finished()).units is None
        async with opened(fal, "/c/d/realtime") as socket:
            assert await to_the_end(socket) == ([], 4000, "")


async def test_socket_faults_never_strike_requests_and_truncate_strikes_both() -> None:
    async with emulated(faults="a/b:drop;a/b:garbage;a/b:oversized;a/b:close;emulator/text:gzip") as fal:
        reader, writer = await asyncio.open_connection("127.0.0.1", fal.port)
        writer.write(b"POST /fal.run/a/b HTTP/1.1\r\nHost: h\r\nAuthorization: Key a\r\nContent-Length: 2\r\n\r\n{}")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        async with opened(fal, "/emulator/text") as socket:
            await socket.send("{}")
            assert await hear(socket) == {}
