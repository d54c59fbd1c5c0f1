"""Fal's end of a socket over TLS, as it is in the world: messages, ends of every kind, and a forged end of stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from fal_proxy.sockets.frames import BINARY, CLOSE, NO_FRAME, PONG, TEXT, Closing, Message, message
from fal_proxy.upstream.handshake import Opened, open_socket
from fal_proxy.upstream.websocket import Socket
from support.certificates import server_context
from support.dialled import NAME, dialer, origin
from support.peers import Serve
from support.websocket import GONE, PING, FalEnd, FalSockets, Frame

PATIENCE = 20.0


class Heard:
    """What a socket tells."""

    def __init__(self) -> None:
        self._found: asyncio.Queue[Message | Closing] = asyncio.Queue()

    def on_message(self, message: Message) -> None:
        self._found.put_nowait(message)

    def on_closing(self, closing: Closing) -> None:
        self._found.put_nowait(closing)

    def on_writable(self) -> None:
        pass

    async def next(self) -> tuple[bytes, bool] | Closing:
        """Return the next message's data and whether it is text, or the end."""
        async with asyncio.timeout(PATIENCE):
            found = await self._found.get()
        return found if isinstance(found, Closing) else (found.data, found.text)


Open = Callable[..., Awaitable[tuple[Socket, Heard, FalEnd]]]


@pytest.fixture
def make(serve: Serve) -> Open:
    """Return a function that opens a socket over TLS, and gives both ends."""

    async def open_one(*, tls12: bool = False) -> tuple[Socket, Heard, FalEnd]:
        fal, heard = FalSockets(), Heard()
        upstream = serve(fal.script, tls=server_context(NAME, tls12=tls12))
        found = await open_socket(dialer(upstream), origin(upstream), b"/a/b/realtime", [])
        assert isinstance(found, Opened)
        found.socket.listen(heard)
        return found.socket, heard, await fal.next()

    return open_one


@pytest.mark.parametrize("tls12", [False, True], ids=["TLS1.3", "TLS1.2"])
async def test_messages_and_pings_pass_over_tls(tls12: bool, make: Open) -> None:
    socket, heard, fal = await make(tls12=tls12)
    await fal.send(PING, b"p")
    assert await fal.frame() == Frame(PONG, b"p")
    for size in (0, 1, 70_000, 400_000):
        data = b"x" * size
        await fal.send(TEXT, data)
        assert await heard.next() == (data, True)
        socket.send(message(data, text=False, masked=True))
        assert await fal.frame() == Frame(BINARY, data)
    socket.abort()


async def test_a_close_frame_and_its_answer_pass_over_tls(make: Open) -> None:
    socket, heard, fal = await make()
    await fal.close(4000, "bye")
    assert await heard.next() == Closing(4000, "bye")
    assert (await fal.frame()).closing == (4000, "bye")
    fal.peer.close()
    other, _, fal = await make()
    other.close(1000, "enough")
    assert (await fal.frame()).closing == (1000, "enough")
    await fal.close(1000)
    fal.peer.close()
    socket.abort()
    other.abort()


async def test_an_end_without_a_close_frame_comes_behind_what_was_sent(make: Open) -> None:
    socket, _, fal = await make()
    socket.send(message(b"last words" * 1000, text=False, masked=True))
    socket.close(NO_FRAME)
    assert await fal.frame() == Frame(BINARY, b"last words" * 1000)
    assert await fal.frame() is GONE


@pytest.mark.parametrize("how", ["reset", "close", "half_close"])
async def test_fal_vanishing_is_told_behind_its_last_message(make: Open, how: str) -> None:
    _, heard, fal = await make()
    await fal.send(BINARY, b"result" * 10_000)
    await fal.peer.delivered()
    getattr(fal.peer, how)()
    assert await heard.next() == (b"result" * 10_000, False)
    assert await heard.next() == Closing(NO_FRAME, broken=True)


async def test_who_reads_nothing_is_ended_at_once(make: Open) -> None:
    socket, _, fal = await make()
    while not socket.write_paused:
        socket.send(message(bytes(1 << 20), text=False, masked=True))
        await asyncio.sleep(0)
    socket.close(NO_FRAME)
    async with asyncio.timeout(PATIENCE):
        await fal.peer.wait_gone()
    assert fal.peer.ending


async def test_a_breach_over_tls_is_answered(make: Open) -> None:
    _, heard, fal = await make()
    await fal.peer.send(b"\xff" * 16)
    assert await heard.next() == Closing(1011, "fal broke the protocol of WebSockets", broken=True)
    assert (await fal.frame()).opcode == CLOSE
