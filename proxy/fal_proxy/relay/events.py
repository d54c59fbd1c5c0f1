"""Server-sent events on their way down: never cut inside a UTF-8 character that upstream sent whole."""

from __future__ import annotations

from fal_proxy.headers import media_type
from fal_proxy.upstream.answer import Head


class WholeCharacters:
    """Hold back at most three bytes: the beginning of a character whose rest has not arrived.

    TCP may cut one write of upstream's anywhere. The JavaScript client decodes each chunk for itself, so a cut inside
    a character would reach the page as U+FFFD.
    """

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """Return what can be passed on now."""
        if self._tail:
            data = self._tail + data
        whole = len(data) - _unfinished(data)
        self._tail = data[whole:]
        return data[:whole] if self._tail else data

    def rest(self) -> bytes:
        """Return what is left when the stream has ended, however it ended."""
        tail, self._tail = self._tail, b""
        return tail


def is_event_stream(head: Head) -> bool:
    """Say whether an answer is a stream of events that can be read."""
    types = head.lines(b"content-type")
    plain = not head.lines(b"content-encoding")
    return bool(types) and plain and media_type(types[0]).lower() == b"text/event-stream"


def _unfinished(data: bytes) -> int:
    """Return how many bytes at the end begin a character without finishing it (RFC 3629 §3)."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            return 0
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4 if byte < 0xF8 else 0
            return back if length > back else 0
    return 0
