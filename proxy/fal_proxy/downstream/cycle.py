"""One request and its answer, as ASGI sees them: messages become bytes, few writes, and no more than the caller takes.

What an application may do wrong is judged by uvicorn. A head waits for the first piece of its body until the loop has
gone round once, so that a small answer is one write; pieces of a body pass both ways as they came.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent, HTTPResponseBodyEvent, HTTPResponseStartEvent, HTTPScope
    from uvicorn.protocols.http.flow_control import FlowControl

    from fal_proxy.headers import Headers

MAX_WAITING_BYTES = 256 * 1024  # of a request, and one read of the socket more, before we read no further
PIECE_BYTES = 128 * 1024  # of a long piece of the answer; the next one goes when the caller has taken this
_FRAMING = frozenset([b"content-length", b"transfer-encoding", b"connection"])
_CONTROLS = bytes([*range(0x09), *range(0x0A, 0x20), 0x7F])  # all but the tab
_log = logging.getLogger("uvicorn.error")


class Cycle(RequestResponseCycle):
    """One request and its answer."""

    def __init__(
        self,
        scope: HTTPScope,
        transport: asyncio.Transport,
        flow: FlowControl,
        loop: asyncio.AbstractEventLoop,
        expect_100_continue: bool,
        keep_alive: bool,
        on_response: Callable[[], None],
    ) -> None:
        # What uvicorn's own would set, without its detour through a dozen arguments.
        self.scope, self.transport, self.flow, self.on_response = scope, transport, flow, on_response
        self.logger = _log
        self.message_event = asyncio.Event()
        self.disconnected = self.response_started = self.response_complete = False
        self.keep_alive, self.waiting_for_100_continue = keep_alive, expect_100_continue
        self.more_body = True
        self.chunked_encoding: bool | None = None
        self.expected_content_length = 0
        self._loop = loop
        self._head = b""  # not written yet
        self._received: list[bytes] = []
        self.waiting_bytes = 0

    def take(self, body: bytes) -> None:
        """Take a piece of the request's body, which the application has not asked for yet."""
        self._received.append(body)
        self.waiting_bytes += len(body)
        if self.waiting_bytes > MAX_WAITING_BYTES:
            self.flow.pause_reading()
        self.message_event.set()

    async def receive(self) -> ASGIReceiveEvent:
        """Return the next ASGI message: all of the body that waits, as it came if it is one piece."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not (self.disconnected or self.response_complete):
            if self.flow.read_paused:
                self.flow.resume_reading()
            await self.message_event.wait()
            self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        pieces, self._received = self._received, []
        self.waiting_bytes = 0
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    def received(self) -> bytes | None:
        """Return the body if all of it has come and `receive` was not called; what `receive` would, without a task's turn."""
        if self.more_body or self.disconnected or self.flow.read_paused:
            return None
        pieces, self._received = self._received, []
        self.waiting_bytes = 0
        self.message_event.clear()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def send(self, message: ASGISendEvent) -> None:
        """Take one ASGI message."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if self.response_complete:
            raise RuntimeError(f"{message['type']} after the end of the answer")
        if message["type"] == "http.response.start" and not self.response_started:
            self._begin(message)
        elif message["type"] == "http.response.body" and self.response_started:
            await self._go_on(message)
        else:
            raise RuntimeError(f"{message['type']} out of its order")

    def push(self, body: bytes) -> bool:
        """Write a piece of the body now, as `send` would; return whether another may follow without waiting for `send`."""
        if self.disconnected or self.response_complete or not self.response_started:
            return False
        self._write(self._framed(body))
        return not self.flow.write_paused

    def answer(self, status: int, headers: Headers, body: bytes) -> bool:
        """Write a whole answer now, as `send` would in two messages; return False, with nothing done, where it must.

        Of framing `headers` hold nothing, and `status` allows a body.
        """
        sendable = not (self.disconnected or self.response_started or self.flow.write_paused)
        if not sendable or len(body) > PIECE_BYTES or self.scope["method"] == "HEAD":
            return False
        lines = [STATUS_LINE[status], *[b"%b: %b\r\n" % field for field in headers]]
        lines.append(b"content-length: %d\r\n" % len(body))
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        head = _joined(lines)
        self.response_started = True
        self.waiting_for_100_continue = False
        self.transport.write(head + body)
        self._end()
        return True

    def _begin(self, message: HTTPResponseStartEvent) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        status = message["status"]
        lines = [STATUS_LINE[status]]
        closes = False
        for name, value in message.get("headers", ()):
            lines.append(b"%b: %b\r\n" % (name, value))
            if name in _FRAMING:
                closes = self._note_framing(name, value) or closes
        if not self.keep_alive and not closes:
            lines.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in (204, 304):
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
        self._head = _joined(lines)
        self._loop.call_soon(self.flush)

    def _note_framing(self, name: bytes, value: bytes) -> bool:
        """Note how the body is framed; say whether the field closes the connection."""
        if name == b"content-length":
            if self.chunked_encoding is None:
                self.expected_content_length = int(value)
                self.chunked_encoding = False
        elif name == b"transfer-encoding":
            self.expected_content_length = 0
            self.chunked_encoding = value.lower() == b"chunked" or None
        elif b"close" in [token.strip().lower() for token in value.split(b",")]:
            self.keep_alive = False
            return True
        return False

    async def _go_on(self, message: HTTPResponseBodyEvent) -> None:
        body: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > PIECE_BYTES:
            whole = cast("bytes", memoryview(body))  # a view does here what bytes do, and copies nothing
            last_from = (len(body) - 1) // PIECE_BYTES * PIECE_BYTES
            for start in range(0, last_from, PIECE_BYTES):
                self._write(self._framed(whole[start : start + PIECE_BYTES]))
                if self.flow.write_paused and not self.disconnected:
                    await self.flow.drain()
                if self.disconnected:
                    return
            body = whole[last_from:]
        last = self._framed(body)
        if more:
            self._write(last)
            return
        if self.expected_content_length:
            raise RuntimeError("the answer is shorter than its Content-Length")
        self._write(b"%b0\r\n\r\n" % last if self.chunked_encoding and self.scope["method"] != "HEAD" else last)
        self._end()

    def _end(self) -> None:
        self.response_complete = True
        self.message_event.set()
        self.on_response()  # which closes, unless it is to be kept alive

    def _framed(self, body: bytes) -> bytes:
        """Return a piece of the body as it goes over the wire. Raises RuntimeError beyond the announced length."""
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            return b""
        if self.chunked_encoding:
            return b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        if len(body) > self.expected_content_length:
            raise RuntimeError("the answer is longer than its Content-Length")
        self.expected_content_length -= len(body)
        return body

    def _write(self, data: bytes) -> None:
        head, self._head = self._head, b""
        if head or data:
            self.transport.write(head + data if head else data)

    def flush(self) -> None:
        """Write a head whose body has not come yet."""
        if self._head and not self.disconnected and not self.transport.is_closing():
            self._write(b"")


def _joined(lines: list[bytes]) -> bytes:
    """Return a head. Raises RuntimeError for a field that would make more of it."""
    head = b"".join([*lines, b"\r\n"])
    count = len(lines) + 1
    # Two a line, and these are its end.
    if len(head) - len(head.translate(None, _CONTROLS)) != 2 * count or head.count(b"\r\n") != count:
        raise RuntimeError("a field of the answer holds a control character")
    return head
