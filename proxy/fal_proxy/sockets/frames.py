"""The frames of WebSockets (RFC 6455 §5), apart from I/O: bytes in, messages and control frames out.

A message that came in one frame is handed on as that very frame, mask and all, so that a relay neither unmasks nor
builds anything. What came in fragments, or with a longer length than it needs, becomes one frame of ours. Whatever
breaks the protocol, or is too large, is a Breach and the last thing that is read.
"""

from __future__ import annotations

import os
from typing import NamedTuple

try:
    from websockets.speedups import apply_mask
except ImportError:  # a build without C
    from websockets.utils import apply_mask

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
NO_CODE, NO_FRAME = 1005, 1006
# What may stand in a close frame (RFC 6455 §7.4, IANA's registry).
SENDABLE_CODES = frozenset([1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)])
REASON_BYTES = 123
_OPCODES = frozenset([CONT, TEXT, BINARY, CLOSE, PING, PONG])
_FIN, _RESERVED, _CONTROL, _MASK = 0x80, 0x70, 0x08, 0x80
_WHOLE_BINARY = _FIN | BINARY
_WHOLE = (_WHOLE_BINARY, _FIN | TEXT)
_CONTROL_BYTES = 125


class Message(NamedTuple):
    """One message as one frame: `frame` is all of it, and its payload begins at `start`. Text is UTF-8."""

    frame: bytes
    start: int
    text: bool

    @property
    def size(self) -> int:
        """Return how many bytes the payload has."""
        return len(self.frame) - self.start

    @property
    def data(self) -> bytes:
        """Return the payload."""
        data = self.frame[self.start :]
        return apply_mask(data, self.frame[self.start - 4 : self.start]) if self.frame[1] & _MASK else data


class Ping(NamedTuple):
    """A question whether we are there, to be answered with the same bytes."""

    data: bytes


class Pong(NamedTuple):
    """The answer to such a question."""

    data: bytes


class Closing(NamedTuple):
    """How the other side ended: NO_CODE for a close frame without a code, NO_FRAME for an end without a frame."""

    code: int
    reason: str = ""
    broken: bool = False  # not by a close frame of theirs


class Breach(NamedTuple):
    """What the other side did wrong, and the code that says so."""

    code: int
    reason: str


class Fragment(NamedTuple):
    """A piece of a message that is not whole yet."""


Event = Message | Ping | Pong | Closing | Breach | Fragment
_FRAGMENT = Fragment()


class FrameReader:
    """Feed it bytes, and take events until there is none. The last event is a Closing or a Breach; then nothing is read."""

    __slots__ = (
        "_at",
        "_ended",
        "_fragments",
        "_masked",
        "_max_bytes",
        "_max_fragments",
        "_opcode",
        "_partial",
        "_partial_bytes",
        "_parts",
        "pending",
    )

    def __init__(self, *, masked: bool, max_bytes: int, max_fragments: int | None = None) -> None:
        """Take whether frames must be masked, as a client's are, and how large and how broken a message may be."""
        self._masked = masked
        self._max_bytes = max_bytes
        self._max_fragments = max_fragments
        self.pending = b""  # received, and read up to `_at`; empty: there is no event
        self._at = 0
        self._partial: bytearray | None = None  # the frame that comes first, until it has `_partial_bytes`
        self._partial_bytes = 0
        self._parts: bytearray | None = None  # the payload of fragments, until the last one
        self._opcode = 0  # of the first of them
        self._fragments = 0
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Take what arrived."""
        if self._ended:
            return
        if self._partial is not None:
            self._feed_partial(data)
        elif self._at == len(self.pending):
            self.pending, self._at = data, 0
        else:
            self.pending, self._at = self.pending[self._at :] + data, 0

    def _feed_partial(self, data: bytes) -> None:
        """Collect a frame that comes in pieces, without copying it with every one of them."""
        partial = self._partial
        assert partial is not None  # noqa: S101 -- by its only caller
        missing = self._partial_bytes - len(partial)
        if missing > 0:
            partial += data if len(data) <= missing else data[:missing]
            data = data[missing:]
        if len(partial) < self._partial_bytes:
            return
        self._partial = None
        self.pending, self._at = bytes(partial) + data, 0

    def whole(self, data: bytes) -> Message | None:
        """Return the message that `data` is, if it is one and nothing else; otherwise nothing was taken.

        Most bytes are: for them this comes to the same as `feed` and `next` in half the time.
        """
        if self.pending or self._partial is not None or self._parts is not None or self._ended or len(data) < 6:
            return None
        first, size, start = data[0], data[1], 2
        if self._masked:
            size -= _MASK
            start = 6
        if size == 126:
            size = data[2] << 8 | data[3]
            start += 2
            if size < 126:
                return None
        elif not 0 <= size < 126:
            return None
        if first not in _WHOLE or start + size != len(data) or size > self._max_bytes:
            return None
        if first == _WHOLE_BINARY:
            return Message(data, start, False)
        payload = apply_mask(data[start:], data[start - 4 : start]) if self._masked else data[start:]
        try:
            payload.decode()
        except UnicodeDecodeError:
            return None
        return Message(data, start, True)

    def next(self) -> Event | None:
        """Return the next event, None when more bytes are needed."""
        data, at = self.pending, self._at
        available = len(data) - at
        if available < 2:
            return None
        first, second = data[at], data[at + 1]
        size, start, shortest = second & 0x7F, 2, True
        if size >= 126:
            start = 4 if size == 126 else 10
            if available < start:
                return self._judge_beginning(first, second)
            size = int.from_bytes(data[at + 2 : at + start], "big")
            shortest = size >= (126 if start == 4 else 1 << 16)
        if second & _MASK:
            start += 4
        ordinary = first in _WHOLE and self._parts is None
        if not ordinary or (second >= _MASK) != self._masked or size > self._max_bytes:
            breach = self._judge_beginning(first, second) or self._judge_head(first, size)
            if breach is not None:
                return breach
        end = start + size
        if available == end:
            frame = data[at:]  # the same object where it is all
            self.pending, self._at = b"", 0
        elif available > end:
            frame = data[at : at + end]
            self._at = at + end
        else:
            if available >= start:
                self._partial, self._partial_bytes = bytearray(data[at:]), end
                self.pending, self._at = b"", 0
            return None
        if first == _WHOLE_BINARY and shortest:
            return Message(frame, start, False)
        return self._take(first, frame, start, shortest=shortest)

    def _judge_beginning(self, first: int, second: int) -> Breach | None:
        """Judge the first two bytes of a frame."""
        if first & 0x0F not in _OPCODES:
            return self._end(1002, "invalid opcode")
        if (second >= _MASK) != self._masked:
            return self._end(1002, "incorrect masking")
        return None

    def _judge_head(self, first: int, size: int) -> Breach | None:
        """Judge the rest of what is known of a frame before its payload is."""
        opcode, collected = first & 0x0F, self._parts
        if first & _RESERVED:
            return self._end(1002, "reserved bits must be 0")
        if opcode & _CONTROL:
            if size > _CONTROL_BYTES:
                return self._end(1002, "control frame too long")
            return None if first & _FIN else self._end(1002, "fragmented control frame")
        if (opcode == CONT) != (collected is not None):
            return self._end(1002, "unexpected continuation frame" if opcode == CONT else "no continuation frame")
        if self._max_fragments is not None and self._fragments >= self._max_fragments:
            return self._end(1008, "a message of so many fragments")
        size += len(collected or b"")
        if size > self._max_bytes:
            return self._end(1009, f"a message of {size} bytes or more, of {self._max_bytes} that are allowed")
        return None

    def _take(self, first: int, frame: bytes, start: int, *, shortest: bool) -> Event:
        """Return what a whole frame means, of which all but the payload was judged."""
        opcode = first & 0x0F
        payload = frame[start:]
        if self._masked:
            payload = apply_mask(payload, frame[start - 4 : start])
        if opcode & _CONTROL:
            if opcode == CLOSE:
                return self._take_close(payload)
            return Ping(payload) if opcode == PING else Pong(payload)
        if opcode != CONT:
            self._opcode = opcode
        if self._parts is not None:
            self._parts += payload
            payload = b""
        elif not first & _FIN:
            self._parts = bytearray(payload)
        if not first & _FIN:
            self._fragments += 1
            return _FRAGMENT
        if self._parts is not None:
            payload, shortest = bytes(self._parts), False
            self._parts, self._fragments = None, 0
        text = self._opcode == TEXT
        if text:
            try:
                payload.decode()
            except UnicodeDecodeError:
                return self._end(1007, "text that is not UTF-8")
        return Message(frame, start, text) if shortest else message(payload, text=text, masked=self._masked)

    def _take_close(self, payload: bytes) -> Closing | Breach:
        if len(payload) == 1:
            return self._end(1002, "close frame too short")
        code = int.from_bytes(payload[:2], "big") if payload else NO_CODE
        try:
            reason = payload[2:].decode()
        except UnicodeDecodeError:
            return self._end(1007, "a reason that is not UTF-8")
        if payload and code not in SENDABLE_CODES:
            return self._end(1002, "invalid close code")
        if self._parts is not None:
            return self._end(1002, "incomplete fragmented message")
        self.stop()
        return Closing(code, reason)

    def _end(self, code: int, reason: str) -> Breach:
        self.stop()
        return Breach(code, reason)

    def stop(self) -> None:
        """Read nothing more."""
        self._ended = True
        self.pending, self._at, self._partial, self._parts = b"", 0, None, None


def build(opcode: int, data: bytes, *, masked: bool) -> bytes:
    """Build a whole frame, masked with a fresh key where the receiver expects it."""
    size, mask = len(data), _MASK if masked else 0
    if size < 126:
        head = bytes([_FIN | opcode, mask | size])
    elif size < 1 << 16:
        head = bytes([_FIN | opcode, mask | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([_FIN | opcode, mask | 127]) + size.to_bytes(8, "big")
    if not masked:
        return head + data
    key = os.urandom(4)
    return head + key + apply_mask(data, key)


def message(data: bytes, *, text: bool, masked: bool) -> Message:
    """Return a message of ours as one frame; `data` is UTF-8 if it is text."""
    frame = build(TEXT if text else BINARY, data, masked=masked)
    return Message(frame, len(frame) - len(data), text)


def closing(code: int, reason: str, *, masked: bool) -> bytes:
    """Build a close frame, an empty one for a code that no frame may carry; the reason is cut to what fits."""
    if code not in SENDABLE_CODES:
        return build(CLOSE, b"", masked=masked)
    return build(CLOSE, code.to_bytes(2, "big") + shortened(reason).encode(), masked=masked)


def shortened(reason: str) -> str:
    """Return as much of a reason as a close frame holds."""
    return reason.encode()[:REASON_BYTES].decode(errors="ignore")
