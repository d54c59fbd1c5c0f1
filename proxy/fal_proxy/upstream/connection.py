"""One socket to upstream: bytes in, bytes out, back-pressure, and the end of it. Knows no HTTP."""

from __future__ import annotations

import asyncio
import select
import ssl
from collections.abc import Callable
from typing import Protocol, cast

# Unread answer bytes beyond the first mark stop the socket; below the second they start it again.
HIGH_WATER_BYTES = 256 * 1024
LOW_WATER_BYTES = 64 * 1024


class Listener(Protocol):
    """Whoever speaks on the connection now."""

    def on_bytes(self, data: bytes) -> None:
        """Take what arrived."""

    def on_end(self) -> None:
        """Learn that upstream closed its direction cleanly."""

    def on_lost(self, reason: str) -> None:
        """Learn that the connection is gone."""

    def on_time(self) -> None:
        """Look at deadlines, if there are any: it may be too early."""


class Connection(asyncio.Protocol):
    """A transport with one listener at a time; bytes that nobody asked for make it unusable."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None  # once it is open: to ask for it is a system call
        self._transport: asyncio.Transport | None = None
        self._listener: Listener | None = None
        self._drained: asyncio.Future[None] | None = None
        self._unread: select.poll | None = None  # asks about the socket
        self._write_paused = False
        self._read_paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ends = 0.0
        self.lost = False
        self.on_pace: Callable[[bool], None] | None = None  # called when upstream falls behind (True) or has caught up

    @property
    def open(self) -> bool:
        """Say whether bytes can still be written."""
        return self._transport is not None and not (self.lost or self._transport.is_closing())

    @property
    def usable(self) -> bool:
        """Say whether an idle connection may carry a new request: open, and nothing lies unread in the socket.

        What the loop has not yet read is the end of the connection, or bytes that would become the next answer.
        """
        if self._transport is None or self.lost or self._transport.is_closing():
            return False
        if self._unread is None:
            self._unread = select.poll()
            self._unread.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not self._unread.poll(0)

    @property
    def write_paused(self) -> bool:
        """Say whether upstream is slower than we write."""
        return self._write_paused

    @property
    def unsent_bytes(self) -> int:
        """Return how much of what was written has not left the process."""
        return 0 if self._transport is None or self.lost else self._transport.get_write_buffer_size()

    def listen(self, listener: Listener | None) -> None:
        """Hand the connection to its next listener, or to nobody while it idles."""
        self._listener = listener
        if self._read_paused:
            self.resume_reading()

    def look_at(self, when: float) -> None:
        """Call the listener's `on_time` at `when`, by the loop's clock, or before.

        The timer outlives calls, because most of them end long before it does, and making one costs more than leaving it.
        """
        if self._timer is None or when < self._timer_ends:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_ends = when
            self._timer = asyncio.get_running_loop().call_at(when, self._on_time)

    def write(self, data: bytes) -> None:
        """Queue bytes; the caller awaits `drained()` while `write_paused`."""
        if self._transport is not None and not self.lost:
            self._transport.write(data)

    async def drained(self) -> None:
        """Return when upstream has taken enough, or the connection is gone."""
        if self._write_paused and not self.lost:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    def pause_reading(self) -> None:
        """Stop taking bytes: the reader is slower than upstream."""
        if not self._read_paused and self._transport is not None and not self._transport.is_closing():
            self._read_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take bytes again."""
        if self._read_paused and self._transport is not None:
            self._read_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def close(self) -> None:
        """Close; nothing that matters is unsent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        if self._transport is not None:
            self._transport.abort()
        else:
            self.lost = True

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have asyncio's interface without its base class.
        self._transport = cast("asyncio.Transport", transport)
        self.loop = asyncio.get_running_loop()
        if self.lost:
            # Whoever dialled was cancelled while the connection came up.
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._listener is not None:
            self._listener.on_bytes(data)
        else:
            self.abort()

    def eof_received(self) -> None:
        if self._listener is not None and self._ended_cleanly():
            self._listener.on_end()

    def pause_writing(self) -> None:
        self._write_paused = True
        if self.on_pace is not None:
            self.on_pace(True)

    def resume_writing(self) -> None:
        self._write_paused = False
        self._wake_writer()
        if self.on_pace is not None:
            self.on_pace(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._timer is not None:
            self._timer.cancel()
        self._write_paused = False
        self._wake_writer()
        if self._listener is not None:
            self._listener.on_lost("upstream reset the connection" if exc else "upstream closed the connection")

    def _on_time(self) -> None:
        self._timer = None
        if self._listener is not None:
            self._listener.on_time()

    def _ended_cleanly(self) -> bool:
        # Below TLS a bare FIN may be forged: both loops report it like a close_notify, only OpenSSL knows which it was.
        tls = self._transport.get_extra_info("ssl_object") if self._transport is not None else None
        try:
            return tls is None or tls.read(1) == b""
        except ssl.SSLError:
            return False

    def _wake_writer(self) -> None:
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None
