"""How much may wait on a caller's connection, in both directions, and who notices a caller that leaves meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
from typing import TYPE_CHECKING

from uvicorn.protocols.http.flow_control import FlowControl

if TYPE_CHECKING:
    from collections.abc import Callable

HANGUP_POLL_SECONDS = 0.05
# Of an answer that is not read, at most the sum of both waits here.
HIGH_WATER_BYTES = 124 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, zero seconds: close() sends RST


class Outlet:
    """A transport that counts what is written to it; everything else is the transport's own."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.written_bytes = 0
        self._write = transport.write
        self.is_closing = transport.is_closing
        self.close = transport.close

    def write(self, data: bytes) -> None:
        """Queue bytes."""
        self.written_bytes += len(data)
        self._write(data)

    def reset(self) -> None:
        """Cut the connection so that the caller knows that it was cut."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    def __getattr__(self, name: str) -> object:
        return getattr(self.transport, name)


class Lookout:
    """Look for a caller's hang-up while nothing is read, which would tell."""

    __slots__ = ("_loop", "_timer", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look from now on, and abort the connection when its caller has left."""
        self._timer = self._loop.call_later(HANGUP_POLL_SECONDS, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        sock = self._transport.get_extra_info("socket")
        if sock is None or self._transport.is_closing():
            return
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLRDHUP)
        if poll.poll(0):
            self._transport.abort()
        else:
            self.start()


class Departure:
    """Tells those who work for a caller that it has left, once, and who comes too late at once."""

    __slots__ = ("_happened", "_listeners")

    def __init__(self) -> None:
        self._happened = False
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` when the caller has left."""
        if self._happened:
            listener()
        else:
            self._listeners.append(listener)

    def happen(self) -> None:
        """Tell everybody."""
        self._happened = True
        for listener in self._listeners:
            listener()
        self._listeners.clear()

    def forget(self) -> None:
        """Tell nobody who listened so far: their work is done."""
        self._listeners.clear()


class Flow(FlowControl):
    """Flow control that notices a caller who leaves behind bytes that are not read yet."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(transport)
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._lookout = Lookout(transport, loop)
        self.stop_looking = self._lookout.stop
        self._held = False

    def hold(self) -> None:
        """Read nothing until `release`, whoever asks: bytes wait behind a request that is not answered yet."""
        self._held = True
        self.pause_reading()

    def release(self) -> None:
        """Read again."""
        self._held = False
        if self.read_paused:
            self.resume_reading()

    def pause_reading(self) -> None:
        """Stop reading, and look for a hang-up instead."""
        if not self.read_paused and not self._transport.is_closing():
            self._lookout.start()
            super().pause_reading()

    def resume_reading(self) -> None:
        """Read again, unless bytes are held."""
        if self.read_paused and not self._held and not self._transport.is_closing():
            self._lookout.stop()
            super().resume_reading()
