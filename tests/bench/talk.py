"""The upstream of what lasts: streams of events, sockets that echo, uploads that are swallowed.

`python -m bench.talk` listens and says on which port. What a request gets depends on its path and fields alone.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import sys
import time
from typing import cast

import uvloop
from websockets.speedups import apply_mask

from support.memory import INITIATE

EVENTS_PER_SECOND = 5
ACCEPT = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
UPLOAD_URL = b'{"upload_url":"https://v3b.fal.media/files/b/1/film.mp4?signature=s"}'
_EVENT = b'data: {"t":%d,"status":"IN_PROGRESS","logs":[{"message":"step 12 of 28","level":"INFO"}],"metrics":{}}\n\n'


class Talk(asyncio.Protocol):
    """One connection; it becomes a stream, a socket or a sink by its head, and stays a sink for further requests."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._left = 0
        self._answer = b""
        self._timer: asyncio.TimerHandle | None = None
        self._echoes = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the stream, if it is one."""
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Swallow, echo, or read a head."""
        if self._left:
            self._swallow(len(data))
            return
        self._buffer += data
        if self._echoes:
            self._echo()
            return
        end = self._buffer.find(b"\r\n\r\n")
        if end >= 0:
            head, rest = bytes(self._buffer[:end]), len(self._buffer) - end - 4
            self._buffer.clear()
            self._begin(head, rest)

    def _begin(self, head: bytes, rest: int) -> None:
        fields = dict(line.partition(b": ")[::2] for line in head.split(b"\r\n")[1:])
        fields = {name.lower(): value for name, value in fields.items()}
        key = fields.get(b"sec-websocket-key")
        path = head.split(b" ", 2)[1]
        if key is not None:
            accept = base64.b64encode(hashlib.sha1(key + ACCEPT).digest())
            self._transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
            self._echoes = True
        elif path.endswith(b"/stream"):
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            # Callers come one after the other, so that their events are spread as they came.
            self._due = asyncio.get_running_loop().time()
            self._tell()
        else:
            length = int(fields.get(b"content-length", b"0"))
            body = UPLOAD_URL if path.endswith(INITIATE.encode()) else b"%d" % length
            self._answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
                len(body),
                body,
            )
            self._left = length
            self._swallow(rest)

    def _swallow(self, size: int) -> None:
        self._left -= size
        if not self._left:
            self._transport.write(self._answer)

    def _tell(self) -> None:
        event = _EVENT % time.monotonic_ns()
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self._due += 1 / EVENTS_PER_SECOND
        self._timer = asyncio.get_running_loop().call_at(self._due, self._tell)

    def _echo(self) -> None:
        """Say back every whole message of 126 to 65,535 bytes, and answer what controls the connection."""
        buffer, said = self._buffer, []
        while len(buffer) >= 6:
            size, at = buffer[1] & 0x7F, 6
            if size == 126:
                if len(buffer) < 8:
                    break
                size, at = int.from_bytes(buffer[2:4], "big"), 8
            if len(buffer) < at + size:
                break
            payload = apply_mask(bytes(buffer[at : at + size]), bytes(buffer[at - 4 : at]))
            opcode = buffer[0] & 0x0F
            length = b"\x7e%b" % size.to_bytes(2, "big") if size > 125 else bytes([size])
            if opcode != 0xA:  # a pong needs no answer, a ping gets one
                said.append(bytes([0x8A if opcode == 9 else buffer[0]]) + length + payload)
            del buffer[: at + size]
        if said:
            self._transport.write(b"".join(said))


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(Talk, "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve())
