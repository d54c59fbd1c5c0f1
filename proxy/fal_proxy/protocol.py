"""uvicorn's HTTP/1.1 protocol, made honest: what ASGI leaves out, and what uvicorn gets wrong about callers who leave.

The app learns through `scope["extensions"]["fal_proxy"]`: the request target as it was received (ASGI drops `#…` and an
empty `?`), how to reset the connection, and how to be told that the caller has left, even behind bytes that nobody
reads yet. Trailers are dropped here, an Upgrade that we do not offer is refused here, and what is not HTTP is answered
in the form of all our errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
from collections.abc import Callable
from typing import cast

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from fal_proxy.app import EXTENSION
from fal_proxy.errors import ERROR_TYPES, render

HANGUP_POLL_SECONDS = 0.05
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, zero seconds: close() sends RST


class HttpProtocol(HttpToolsProtocol):
    """One connection of a caller."""

    _head_done = False
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's own narrowing
        """Begin, with a flow control that looks for a hang-up while it reads nothing."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self.loop)
        self._cycles: list[RequestResponseCycle] = []
        self._leaving: list[Callable[[], None]] = []

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every request of the connection, not only the newest."""
        self.flow.resume_reading()
        self._forsake()
        super().connection_lost(exc)
        for leave in self._leaving:
            leave()
        self._leaving.clear()

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._head_done = False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a field of the head; what comes after it is a trailer and means nothing (RFC 9110 §6.5.1)."""
        if not self._head_done:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Tell the app what ASGI leaves out, before it starts."""
        self._head_done = True
        if self.parser.should_upgrade() or self.parser.get_http_version() not in ("1.0", "1.1"):
            # The parser reads no body behind an Upgrade: an empty request in its place would be a lie.
            self._refused = True
            return
        extension = {"raw_target": self.url, "reset": self._reset, "on_departure": self._leaving.append}
        self.scope["extensions"] = {EXTENSION: cast("dict[object, object]", extension)}
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete]
        super().on_headers_complete()
        self._cycles.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        """Pass body bytes on, unless the request was refused."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request, or refuse it."""
        if not self._refused:
            super().on_message_complete()
        elif not self.transport.is_closing():
            self.send_400_response("")

    def on_response_complete(self) -> None:
        """Let go of what the answered request registered."""
        self._leaving.clear()
        super().on_response_complete()

    def _unsupported_upgrade_warning(self) -> None:
        if not self.transport.is_closing():
            self.send_400_response("")

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP; a request in progress is cut instead, because an answer would be taken for its own."""
        if any(not cycle.response_complete for cycle in self._cycles):
            self._reset()
            return
        own, body = render("bad_request", "this is not a request that the proxy can read (HTTP/1.1, without Upgrade)")
        lines = [b"HTTP/1.1 %d Bad Request" % ERROR_TYPES["bad_request"].status, b"content-type: application/json"]
        lines += [name + b": " + value for name, value in own]
        lines += [b"content-length: %d" % len(body), b"connection: close", b"", body]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()

    def cut(self) -> None:
        """Break the connection off, so that its caller notices."""
        self._reset()

    def _reset(self) -> None:
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()
        self._forsake()

    def _forsake(self) -> None:
        self.pipeline.clear()
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()


def cut(connection: asyncio.Protocol) -> None:
    """Break off a connection of either kind."""
    if isinstance(connection, HttpProtocol):
        connection.cut()
    else:
        connection.transport.abort()  # type: ignore[attr-defined] # every protocol of uvicorn's has it


class _Flow(FlowControl):
    """Flow control that notices a caller who leaves behind bytes that are not read yet."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(transport)
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def pause_reading(self) -> None:
        if not self.read_paused:
            self._timer = self._loop.call_later(HANGUP_POLL_SECONDS, self._look)
        super().pause_reading()

    def resume_reading(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._transport.is_closing():
            super().resume_reading()

    def _look(self) -> None:
        sock = self._transport.get_extra_info("socket")
        if sock is None or self._transport.is_closing():
            return
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLRDHUP)
        if poll.poll(0):
            self._transport.abort()
        else:
            self._timer = self._loop.call_later(HANGUP_POLL_SECONDS, self._look)
