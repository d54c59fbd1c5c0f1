"""Server-sent events: an upstream that never stops talking, and callers who count what reaches them.

Each event is a number; a caller that misses one, or is cut, says so. As a script this module is one of the two
processes: `upstream`, or `callers PORT COUNT CHURN`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

import httptools
import uvloop

from support.observed import raise_descriptor_limit, target
from support.raw import request

EVENT_SECONDS = 1.0
OPENED_A_SECOND = 200
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Tally(NamedTuple):
    """What the callers saw so far."""

    open: int
    opened: int
    events: int
    faults: int
    slowest_ms: float  # from upstream to a caller, of the last second


class Speaker(asyncio.Protocol):
    """Upstream's end of one stream."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._received = b""
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Answer the request as soon as it is whole."""
        self._received += data
        if self._timer is None and self._received.endswith(b"\r\n\r\n{}"):
            self._transport.write(_HEAD)
            self._speak()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()

    def _speak(self) -> None:
        event = b"data: %d %d\n\n" % (self._number, time.monotonic_ns())  # one clock for all processes
        self._number += 1
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self._timer = asyncio.get_running_loop().call_later(EVENT_SECONDS, self._speak)


class Hearer(asyncio.Protocol):
    """One caller; it checks that the numbers come without a gap."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers
        self._buffer = b""
        self._expected = 0
        self._parser = httptools.HttpResponseParser(self)
        self._harmed = False
        self.leaving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for a stream."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's have no base class
        self.transport.write(request("POST", target("/fal.run/fal-ai/soak/stream"), None, b"{}"))

    def data_received(self, data: bytes) -> None:
        """Count events."""
        self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        """Judge the head (httptools' callback)."""
        if self._parser.get_status_code() != 200:
            self._fault(f"answered {self._parser.get_status_code()}")

    def on_body(self, data: bytes) -> None:
        """Take body bytes, whatever the chunks are (httptools' callback)."""
        *events, self._buffer = (self._buffer + data).split(b"\n\n")
        now = time.monotonic_ns()
        for event in events:
            number, sent = map(int, event.removeprefix(b"data: ").split(b" "))
            if number != self._expected:
                self._fault(f"event {number} in place of {self._expected}")
            self._expected = number + 1
            self._callers.slowest_ns = max(self._callers.slowest_ns, now - sent)
        self._callers.events += len(events)

    def _fault(self, text: str) -> None:
        if not self._harmed:
            self._harmed = True
            self._callers.fault(text)

    def leave(self) -> None:
        """Hang up."""
        self.leaving = True
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Say so when the stream was cut."""
        self._callers.lost(self)


class Caller(Protocol):
    """One caller's connection."""

    leaving: bool

    def leave(self) -> None:
        """Go, and set `leaving`."""


class Callers:
    """All callers of one process; `make` makes the protocol of one."""

    def __init__(self, port: int, make: Callable[[Callers], Caller]) -> None:
        self._port = port
        self._make = make
        self._open: dict[Caller, None] = {}
        self.opened = 0
        self.events = 0
        self.faults = 0
        self.slowest_ns = 0

    async def keep(self, count: int, churn: int) -> None:
        """Open `count` streams, then replace the `churn` oldest every second; report every second."""
        while True:
            began = asyncio.get_running_loop().time()
            if len(self._open) == count:
                for caller in list(self._open)[:churn]:
                    caller.leave()
                    del self._open[caller]
            await self.open(min(count, len(self._open) + OPENED_A_SECOND))
            slowest, self.slowest_ns = self.slowest_ns / 1e6, 0
            sys.stdout.write(json.dumps(Tally(len(self._open), self.opened, self.events, self.faults, slowest)) + "\n")
            sys.stdout.flush()
            await asyncio.sleep(max(0.0, began + 1 - asyncio.get_running_loop().time()))

    async def open(self, count: int) -> None:
        """Open connections until there are `count`."""
        while len(self._open) < count:
            await self._dial()

    def leave(self) -> None:
        """Let everybody go."""
        for caller in self._open:
            caller.leave()
        self._open.clear()

    def lost(self, caller: Caller) -> None:
        """Learn that a connection ended."""
        if not caller.leaving:
            self._open.pop(caller, None)
            self.fault("a stream was cut")

    def fault(self, text: str) -> None:
        """Note what should not have happened."""
        self.faults += 1
        sys.stderr.write(text + "\n")

    async def _dial(self) -> None:
        make = cast("Callable[[], asyncio.Protocol]", lambda: self._make(self))
        _, made = await asyncio.get_running_loop().create_connection(make, "127.0.0.1", self._port)
        self._open[cast("Caller", made)] = None
        self.opened += 1


async def speak() -> None:
    """Be upstream until killed; the first line of stdout is the port."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
    server = await asyncio.get_running_loop().create_server(Speaker, sock=sock)
    sys.stdout.write(f"{sock.getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    raise_descriptor_limit()
    if sys.argv[1] == "upstream":
        uvloop.run(speak())
    else:
        port, count, churn = map(int, sys.argv[2:])
        uvloop.run(Callers(port, Hearer).keep(count, churn))
