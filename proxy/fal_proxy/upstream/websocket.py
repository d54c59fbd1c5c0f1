"""Upstream's end of a session: frames down as they came, frames up as the caller masked them."""

from __future__ import annotations

import asyncio

from fal_proxy.sockets.end import End
from fal_proxy.sockets.frames import NO_FRAME, PING, Breach, Closing, FrameReader
from fal_proxy.upstream.connection import Connection

MESSAGE_BYTES = 16 * 1024 * 1024  # the largest that upstream may send
CLOSE_SECONDS = 10.0  # for upstream to answer our close frame, and to take what stands before it
FLUSH_SECONDS, LOOK_SECONDS = 1.0, 0.002  # for what was sent last, when the caller has vanished
UNANSWERED_PINGS = 2


class Socket(End):
    """An open WebSocket. Whoever opened it calls `abort` or `close` at the end, whatever happened."""

    __slots__ = ("_connection", "_timer", "_unanswered_pings")

    def __init__(self, connection: Connection) -> None:
        """Take over a connection whose handshake is done."""
        super().__init__(FrameReader(masked=False, max_bytes=MESSAGE_BYTES), masks=True)
        self._connection = connection
        self._write = connection.write
        self._unanswered_pings = 0
        self._timer: asyncio.TimerHandle | None = None
        self.write_paused = connection.write_paused
        connection.listen(self)
        connection.on_pace = self._set_pace

    def ping(self) -> bool:
        """Ask whether upstream is still there; False when it has not answered the last two times."""
        if self._held:
            return True  # nothing is read now, and the answer lies behind what waits
        if self._unanswered_pings >= UNANSWERED_PINGS:
            return False
        self._unanswered_pings += 1
        self._control(PING, b"fal-proxy")
        return True

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame (none for NO_FRAME: just end); the connection ends when upstream has answered, or soon."""
        self.listen(None)
        if code != NO_FRAME:
            self._close(code, reason)
            self._expect_end()
        elif self.write_paused:
            self.abort()
        else:
            self._abort_when_sent(asyncio.get_running_loop().time() + FLUSH_SECONDS)

    def abort(self) -> None:
        """End at once."""
        if self._timer is not None:
            self._timer.cancel()
        self._connection.abort()

    def _abort_when_sent(self, until: float) -> None:
        """End as soon as what was sent last has left us. TLS would wait for upstream to agree to an end."""

        def look() -> None:
            if self._connection.unsent_bytes and loop.time() < until:
                self._timer = loop.call_later(LOOK_SECONDS, look)
            else:
                self.abort()

        loop = asyncio.get_running_loop()
        self.close_sent = True
        self._timer = loop.call_later(LOOK_SECONDS, look)

    # upstream.connection.Listener

    def on_end(self) -> None:
        """Learn that upstream closed its direction."""
        self._no_more = True
        self._read()
        if self._over:
            self._connection.close()

    def on_time(self) -> None:
        """Do nothing: deadlines are kept elsewhere."""

    def on_lost(self, reason: str) -> None:
        """Learn that the connection is gone."""
        self._no_more = True
        self._read()
        self.close_sent = True
        if self._timer is not None:
            self._timer.cancel()

    # End

    def _pause(self) -> None:
        self._connection.pause_reading()

    def _resume(self) -> None:
        self._connection.resume_reading()

    def _on_pong(self, data: bytes) -> None:
        self._unanswered_pings = 0

    def _on_close(self) -> None:
        self._expect_end()

    def _on_breach(self) -> None:
        self._expect_end()

    def _told(self, breach: Breach) -> Closing:
        return Closing(1009 if breach.code == 1009 else 1011, "fal broke the protocol of WebSockets", broken=True)

    def _expect_end(self) -> None:
        """See to it that the connection ends."""
        if self._timer is None and not self._connection.lost:
            self._timer = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.abort)
