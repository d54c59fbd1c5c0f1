"""WebSockets: callers who say a number a second, an upstream that says it back, and nothing may be missing on the way.

Half of those who leave close as they should, the others hang up. As a script this module is one of the two processes:
`upstream`, or `callers PORT COUNT CHURN`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from typing import cast

import uvloop
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import Protocol, State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from soak.sse import Callers
from support.observed import raise_descriptor_limit, target

MESSAGE_SECONDS = 1.0
_QUIET = logging.getLogger("soak.sockets")
_QUIET.setLevel(logging.WARNING)


class Echo(asyncio.Protocol):
    """Upstream's end of one socket."""

    def __init__(self) -> None:
        self._socket = ServerProtocol(logger=_QUIET)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Accept the handshake, then say back what is said."""
        self._socket.receive_data(data)
        for event in self._socket.events_received():
            if isinstance(event, Request):
                self._socket.send_response(self._socket.accept(event))
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._socket.send_text(event.data)
        _flush(self._socket, self._transport)


class Talker(asyncio.Protocol):
    """One caller; it checks that the numbers come back without a gap."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers
        self._socket = ClientProtocol(
            parse_uri("ws://127.0.0.1" + target("/fal.run/fal-ai/soak/realtime")), logger=_QUIET
        )
        self.said = self._heard = 0
        self._harmed = False
        self._timer: asyncio.TimerHandle | None = None
        self.leaving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for a socket."""
        self._transport = cast("asyncio.Transport", transport)
        self._socket.send_request(self._socket.connect())
        _flush(self._socket, self._transport)

    def data_received(self, data: bytes) -> None:
        """Count what is said back."""
        self._socket.receive_data(data)
        now = time.monotonic_ns()
        for event in self._socket.events_received():
            if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                number, said = map(int, bytes(event.data).split(b" "))
                if number != self._heard:
                    self._fault(f"message {number} in place of {self._heard}")
                self._heard = number + 1
                self._callers.slowest_ns = max(self._callers.slowest_ns, now - said)
                self._callers.events += 1
        if self._socket.handshake_exc is not None:
            self._fault(f"refused: {self._socket.handshake_exc}")
        elif not self.said and self._socket.state is State.OPEN:
            self.say()
        _flush(self._socket, self._transport)

    def leave(self) -> None:
        """Close as one should, or hang up."""
        self.leaving = True
        if self._callers.opened % 2 and self._socket.state is State.OPEN:
            self._socket.send_close(1000)
            _flush(self._socket, self._transport)
        else:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Say so when the socket was cut."""
        if self._timer is not None:
            self._timer.cancel()
        self._callers.lost(self)

    def say(self) -> None:
        """Say the next number, now and every second."""
        if self._socket.state is State.OPEN:
            self._socket.send_text(b"%d %d" % (self.said, time.monotonic_ns()))
            self.said += 1
            _flush(self._socket, self._transport)
            self._timer = asyncio.get_running_loop().call_later(MESSAGE_SECONDS, self.say)

    def _fault(self, text: str) -> None:
        if not self._harmed:
            self._harmed = True
            self._callers.fault(text)


def _flush(protocol: Protocol, transport: asyncio.Transport) -> None:
    for data in protocol.data_to_send():
        if data:
            transport.write(data)
        else:
            transport.close()


async def echo() -> None:
    """Be upstream until killed; the first line of stdout is the port."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
    server = await asyncio.get_running_loop().create_server(Echo, sock=sock)
    sys.stdout.write(f"{sock.getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    raise_descriptor_limit()
    if sys.argv[1] == "upstream":
        uvloop.run(echo())
    else:
        port, count, churn = map(int, sys.argv[2:])
        uvloop.run(Callers(port, Talker).keep(count, churn))
