"""Where a request's head ends, and where its body will: our own cut, made before the parser sees a byte. Does no I/O."""

from __future__ import annotations

MAX_HEAD_BYTES = 32 * 1024  # the request line and all fields; the same again for trailers
MAX_FIELDS = 100
_MAX_LENGTH_DIGITS = 18
_END_OF_HEAD = b"\r\n\r\n"
# Fields that decide where a body ends.
FRAMING_FIELDS = frozenset([b"content-length", b"transfer-encoding"])


class BehindChunkedBody(Exception):
    """Another request begins in the bytes that ended a chunked body."""


class Head:
    """Collects one head after the other, however they are cut into packets."""

    __slots__ = ("_collected", "raw")

    def __init__(self) -> None:
        self._collected = bytearray()
        self.raw = b""  # begins with the head that ended last

    @property
    def begun(self) -> bool:
        """Say whether part of a head has come."""
        return bool(self._collected)

    @property
    def full(self) -> bool:
        """Say whether a head has come as far as it may, without an end."""
        return len(self._collected) >= MAX_HEAD_BYTES

    def take(self, data: bytes) -> int:
        """Return how many bytes of `data` end the head, 0 if it goes on behind them (or is `full`)."""
        if not self._collected:
            size = data.find(_END_OF_HEAD) + 4
            if 4 <= size <= MAX_HEAD_BYTES:  # nearly always: a whole head in one packet
                self.raw = data
                return size
        before = len(self._collected)
        self._collected += data[: MAX_HEAD_BYTES - before]
        size = self._collected.find(_END_OF_HEAD, max(0, before - 3)) + 4
        if size < 4:
            return 0
        self.raw = bytes(self._collected)
        self._collected.clear()
        return size - before

    def begins_with(self, method: bytes, target: bytes, version: bytes) -> bool:
        """Say whether the request line has exactly these parts, a single space between them (RFC 9112 §3).

        One empty line before it is what old clients send behind a body (§2.2).
        """
        line = b"%b %b HTTP/%b\r\n" % (method, target, version)
        return self.raw.startswith(line) or self.raw.startswith(b"\r\n" + line)


def body_bytes(fields: list[tuple[bytes, bytes]], version: str) -> int | None:
    """Return a body's length by its framing fields, None for a chunked one. Raises ValueError if it is not clear."""
    if not fields:
        return 0
    if len(fields) > 1:
        raise ValueError("more than one field says where the body ends")
    name, value = fields[0]
    if name == b"content-length":
        if not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
            raise ValueError("Content-Length is no plain number")
        return int(value)
    if value.lower() != b"chunked" or version != "1.1":
        raise ValueError("the only coding is chunked, in HTTP/1.1")
    return None
