"""An HTTP/1.1 answer as it is parsed: bytes in, head, body bytes and the end out. No sockets, no time.

Parsing is llhttp in its strict mode plus rules of ours: a head of at most 32 KiB, HTTP/1.0 or 1.1, `chunked` as the
only transfer coding, no protocol switch, no content on 204 (RFC 9110 §6.4.1), at most 64 KiB of framing between two
body bytes, trailers dropped. Bytes after the end make the connection unusable, so that they can never be read as the
next answer. A close-delimited body (RFC 9112 §6.3) ends cleanly only with an orderly close.
"""

from __future__ import annotations

import httptools
import msgspec

from fal_proxy.errors import UpstreamInvalid
from fal_proxy.headers import Headers, values

MAX_HEAD_BYTES = 32 * 1024
MAX_FRAMING_BYTES = 64 * 1024
_MAX_LENGTH_DIGITS = 18


class Head(msgspec.Struct):
    """The final status and header fields of an answer; names are lower-cased, order and repeats are kept."""

    status: int
    headers: Headers
    _last: dict[bytes, bytes] | None = None  # the last value of each name

    def lines(self, name: bytes) -> list[bytes]:
        """Return the value of every line of this name."""
        if self._last is None:
            self._last = dict(self.headers)
        value = self._last.get(name)
        if value is None:
            return []
        return [value] if len(self._last) == len(self.headers) else values(self.headers, name)


class Answer:
    """Parse the one answer to one request."""

    __slots__ = (
        "_chunks",
        "_fault",
        "_framing_bytes",
        "_headers",
        "_left",
        "_parser",
        "_said_bytes",
        "_to_head",
        "_until_close",
        "buffered_bytes",
        "done",
        "head",
        "reusable",
    )

    def __init__(self, method: bytes) -> None:
        """Take the request's method: an answer to HEAD has no body whatever its head says."""
        self.head: Head | None = None
        self.done = False
        self.reusable = True  # the connection may carry another request once `done`
        self.buffered_bytes = 0
        self._to_head = method == b"HEAD"
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: list[bytes] = []
        self._headers: Headers = []
        self._said_bytes = 0  # reason phrases, and interim heads
        self._framing_bytes = 0  # since the last body byte
        self._until_close = False
        self._left: int | None = None  # of a body of known length; only the head and what came with it are parsed
        self._fault: str | None = None

    def feed(self, data: bytes) -> None:
        """Parse the next bytes. Raises UpstreamInvalid when the answer cannot be trusted."""
        if self.done:
            self.reusable = False
            return
        if self._left:
            self._take(data)
            return
        self._framing_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.reusable = False
            if not self.done:
                raise UpstreamInvalid(self._fault or f"the answer breaks HTTP: {error}", written=True) from None
        limit = MAX_HEAD_BYTES if self.head is None else MAX_FRAMING_BYTES
        if self._framing_bytes > limit and not self.done:
            self._fault = self._fault or "the answer's framing is too large"
        if self._fault is not None:
            raise UpstreamInvalid(self._fault, written=True)
        self._let_go()

    def _let_go(self) -> None:
        """Drop a parser that is asked no more: they hold each other, and garbage waits for its collector."""
        if self.done or self._left:
            del self._parser

    def _take(self, data: bytes) -> None:
        """Keep more of a body of known length, as it came: there is nothing in it to parse."""
        left = self._left or 0
        if len(data) > left:
            data = data[:left]
            self.reusable = False
        self._chunks.append(data)
        self.buffered_bytes += len(data)
        self._left = left - len(data)
        self.done = not self._left

    def end(self) -> bool:
        """Take an orderly close; return whether that completes the answer."""
        self.reusable = False
        self.done = self.done or (self._until_close and self._fault is None)
        return self.done

    def take(self) -> bytes:
        """Return all buffered body bytes, b"" when there are none."""
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self.buffered_bytes = 0
        return data

    # What the parser finds (httptools' callback names)

    def on_message_begin(self) -> None:
        """Begin the next head: the first, one after an interim answer, or one too many."""
        self._headers = []
        if self.done:
            self.reusable = False

    def on_status(self, reason: bytes) -> None:
        """Count the reason phrase; it is not passed on."""
        self._said_bytes += len(reason)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a field of the head; drop trailers."""
        if self.head is None:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Judge the head; an interim one is read past."""
        if self.head is not None:
            return
        status = self._parser.get_status_code()
        # No head is longer than what was read so far; only of that much the fields need to be counted.
        if self._framing_bytes > MAX_HEAD_BYTES and self._head_bytes() > MAX_HEAD_BYTES:
            self._fault = "the answer's head is too large"
        elif status == 101 or not 100 <= status <= 599 or self._parser.get_http_version() not in ("1.0", "1.1"):
            self._fault = f"the answer has an unusable status line ({status})"
        elif status >= 200:
            self._settle_framing(Head(status, self._headers))
        else:
            self._said_bytes = self._head_bytes()

    def _head_bytes(self) -> int:
        return self._said_bytes + sum(len(name) + len(value) + 4 for name, value in self._headers)

    def _settle_framing(self, head: Head) -> None:
        status, codings, lengths = head.status, head.lines(b"transfer-encoding"), head.lines(b"content-length")
        chunked = [coding.strip().lower() for coding in codings] == [b"chunked"]
        if codings and (not chunked or self._parser.get_http_version() == "1.0"):
            self._fault = "the answer's transfer coding is not plain chunked"
            return
        if lengths and len(lengths[0]) > _MAX_LENGTH_DIGITS:
            self._fault = "the answer's length is no plain number"
            return
        if not self._parser.should_keep_alive() or (status == 204 and (codings or lengths)):
            self.reusable = False
        self._until_close = not (self._to_head or status in (204, 304) or codings or lengths)
        if self._to_head:
            # The parser cannot be told that no body follows: this connection has said its last.
            self.reusable = False
            self.done = True
        self._framing_bytes = 0
        if lengths and not codings and not self.done and status not in (204, 304):
            self._left = int(lengths[0])
        self.head = head

    def on_body(self, data: bytes) -> None:
        """Keep body bytes until they are taken."""
        if self.done or self.head is None or self._fault is not None:
            self.reusable = False
            return
        self._framing_bytes = 0
        if self._left is not None:
            self._left -= len(data)
        self._chunks.append(data)
        self.buffered_bytes += len(data)

    def on_message_complete(self) -> None:
        """Mark the clean end of the final answer."""
        if self.head is not None and self._fault is None:
            self.done = True
