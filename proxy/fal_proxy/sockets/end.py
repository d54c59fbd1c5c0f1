"""One end of an open WebSocket: what comes is read in turns and told to a listener, what is sent passes as it is.

Pings are answered here and the rest of a session is decided by the listener. Nothing is read before there is one, nor
while it holds this end back; and never for longer than a turn, because 256 KiB may hold 40,000 frames.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from fal_proxy.sockets.frames import (
    NO_FRAME,
    PONG,
    Breach,
    Closing,
    Event,
    FrameReader,
    Message,
    Ping,
    Pong,
    build,
    closing,
)

TURN_SECONDS = 0.002


class Listener(Protocol):
    """Whoever a session's messages go to."""

    def on_message(self, message: Message) -> None:
        """Take a message."""

    def on_closing(self, closing: Closing) -> None:
        """Learn how the other side ended; nothing comes behind it."""

    def on_writable(self) -> None:
        """Learn that the other side, which was slower than what is sent, has caught up."""


class Side(Protocol):
    """One side of a session, of whatever it is made."""

    write_paused: bool  # the other side is slower than what is sent

    def listen(self, listener: Listener | None) -> None:
        """Begin to tell what comes; None: it is of no interest any more."""

    def hold(self) -> None:
        """Tell nothing more until `release`."""

    def release(self) -> None:
        """Go on."""

    def send(self, message: Message) -> None:
        """Send a message, however slow the other side is. After the end it means nothing."""


class End:
    """A Side on a transport. Subclasses say what it is made of, and what happens around an end.

    Whoever has received bytes calls `on_bytes`.
    """

    __slots__ = (
        "_held",
        "_listener",
        "_masks",
        "_no_more",
        "_over",
        "_owed_pong",
        "_read_paused",
        "_reader",
        "_turn",
        "_write",
        "close_sent",
        "write_paused",
    )

    _write: Callable[[bytes], None]  # the transport's own: it is called for every message

    def __init__(self, reader: FrameReader, *, masks: bool) -> None:
        """Take what reads the other side, and whether what is said to it must be masked."""
        self.close_sent = False
        self.write_paused = False
        self._reader = reader
        self._masks = masks
        self._listener: Listener | None = None
        self._held = True
        self._read_paused = False
        self._turn: asyncio.Handle | None = None  # to read on
        self._no_more = False  # bytes will come
        self._owed_pong: bytes | None = None
        self._over = False  # how the other side ended was told

    def listen(self, listener: Listener | None) -> None:
        """Begin to tell what comes; None: it is of no interest any more."""
        self._listener = listener
        self.release()

    def hold(self) -> None:
        """Tell nothing more until `release`."""
        if not self._over:
            self._held = True
            self._keep_pace(wait=True)

    def release(self) -> None:
        """Go on."""
        if self._held:
            self._held = False
            self._read()

    def send(self, message: Message) -> None:
        """Send a message, however slow the other side is. After the end it means nothing."""
        if not self.close_sent:
            self._write(message.frame)

    def on_bytes(self, data: bytes) -> None:
        """Take what arrived, and read it unless somebody holds us back."""
        listener = self._listener
        if listener is not None and not self._held and (message := self._reader.whole(data)) is not None:
            listener.on_message(message)
            return
        self._reader.feed(data)
        self._read()

    def _read(self) -> None:
        """Tell what was received, for one turn."""
        reader, ends, waits = self._reader, 0.0, False
        while not self._held:
            event = reader.next()
            if type(event) is Message:
                if self._listener is not None:
                    self._listener.on_message(event)
                else:
                    self._on_unwanted(event)
            elif event is not None:
                self._take(event)
            if event is None or not reader.pending:
                break
            if not ends:
                ends = time.monotonic() + TURN_SECONDS
            elif waits := time.monotonic() >= ends:
                break
        if self._no_more and not (self._held or waits):
            self._ended(Closing(NO_FRAME, broken=True))
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if waits:
            self._turn = asyncio.get_running_loop().call_soon(self._read)
        self._keep_pace(wait=waits or self._held)

    def _keep_pace(self, *, wait: bool) -> None:
        if wait != self._read_paused:
            self._read_paused = wait
            (self._pause if wait else self._resume)()

    def _take(self, event: Event) -> None:
        if isinstance(event, Ping):
            self._on_ping(event.data)
        elif isinstance(event, Pong):
            self._on_pong(event.data)
        elif isinstance(event, Closing):
            self._close(event.code, event.reason)
            self._on_close()
            self._ended(event)
        elif isinstance(event, Breach):
            self._break(event)

    def _break(self, breach: Breach) -> None:
        """End for what the other side did wrong."""
        self._close(breach.code, breach.reason)
        self._on_breach()
        self._ended(self._told(breach))

    def _ended(self, end: Closing) -> None:
        if not self._over:
            self._over = True
            self._held = False
            listener, self._listener = self._listener, None
            if listener is not None:
                listener.on_closing(end)

    def _set_pace(self, paused: bool) -> None:
        """Learn from the transport that the other side has fallen behind, or has caught up."""
        self.write_paused = paused
        if paused:
            return
        if self._owed_pong is not None:
            self._control(PONG, self._owed_pong)
            self._owed_pong = None
        if self._listener is not None:
            self._listener.on_writable()

    def _close(self, code: int, reason: str) -> None:
        """Send a close frame, unless one was sent."""
        if not self.close_sent:
            self.close_sent = True
            self._write(closing(code, reason, masked=self._masks))

    def _control(self, opcode: int, data: bytes) -> None:
        if not self.close_sent:
            self._write(build(opcode, data, masked=self._masks))

    # What subclasses have to say

    def _pause(self) -> None:
        raise NotImplementedError

    def _resume(self) -> None:
        raise NotImplementedError

    def _on_ping(self, data: bytes) -> None:
        """Answer: the last ping only, while the other side does not read what is said (RFC 6455 §5.5.3)."""
        if self.write_paused:
            self._owed_pong = data
        else:
            self._control(PONG, data)

    def _on_pong(self, data: bytes) -> None:
        """Learn that the other side is there."""

    def _on_unwanted(self, message: Message) -> None:
        """Learn of a message that comes when nobody wants to hear of any."""

    def _on_close(self) -> None:
        """Learn that close frames went both ways."""

    def _on_breach(self) -> None:
        """Learn that nothing more is read."""

    def _told(self, breach: Breach) -> Closing:
        """Return what the listener is told of a breach."""
        return Closing(breach.code, breach.reason)
