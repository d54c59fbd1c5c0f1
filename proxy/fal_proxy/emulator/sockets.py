"""One WebSocket as the emulator's sessions use it: messages in and out, counted, and spoilt where a fault says so.

Knows no fal: who may open one and what is said on it is decided elsewhere.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import TypeVar

from websockets.frames import Frame, Opcode

from .answers import Answer, encode
from .exchange import Exchange, Json, Receive, Send
from .faults import Fault
from .journal import Session

T = TypeVar("T")

SESSIONS_FULL = "Concurrent session limit reached."
_ABNORMAL = 1006
_NO_FRAME = b"\xff" * 64  # reserved bits, a reserved opcode, a mask that a server must not set


class SocketClosedError(Exception):
    """The connection is over, whoever ended it."""


class Socket:
    """One handshake and, once accepted, its messages. Every method but `refuse` raises SocketClosedError at the end."""

    def __init__(
        self, exchange: Exchange, receive: Receive, send: Send, fault: Fault | None, clock: Callable[[], float]
    ) -> None:
        self.exchange = exchange
        self._receive = receive
        self._send = send
        self._fault = fault
        self._clock = clock

    @property
    def session(self) -> Session:
        """The journal's record of the open socket."""
        if self.exchange.entry.session is None:
            raise RuntimeError("the socket was not accepted")
        return self.exchange.entry.session

    async def refuse(self, answer: Answer) -> None:
        """Answer the handshake with an HTTP response instead of an upgrade."""
        entry = self.exchange.entry
        entry.status = answer.status
        body = answer.body if isinstance(answer.body, bytes) else b""
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
        await self._pass({"type": "websocket.http.response.start", "status": answer.status, "headers": headers})
        await self._pass({"type": "websocket.http.response.body", "body": body})
        entry.answer_complete = True

    async def reset(self) -> None:
        """Answer the handshake with a TCP reset."""
        try:
            await self._strike("reset")
        finally:
            await self._receive()  # the disconnect: a server complains of a handshake left open before it

    async def accept(self) -> None:
        """Open the socket."""
        await self._pass({"type": "websocket.accept"})
        self.exchange.entry.status = 101
        self.exchange.entry.session = Session(self._clock())
        if self._fault is not None and self._fault.kind == "close":
            self._note("close")
            code = int(self._fault.argument or 1013)
            await self.close(code, SESSIONS_FULL if code == 1013 else "")
            raise SocketClosedError
        if self._due("stall"):
            await self._strike("stall")

    async def receive(self) -> str | bytes:
        """Return the next message."""
        event = await self._receive()
        if event["type"] == "websocket.disconnect":
            self._closed(event.get("code") or 1005, event.get("reason") or "", by_client=True)
            raise SocketClosedError
        message: str | bytes | None = event.get("text")
        if message is None:
            message = bytes(event["bytes"])
        self.session.record(message)
        return message

    async def send(self, message: str | bytes) -> None:
        """Send one message, or what the fault makes of it."""
        if self._fault is not None and self._due(self._fault.kind):
            await self._spoil(self._fault, message)
            return
        await self._out(message)
        if self._due("stall"):
            await self._strike("stall")

    async def send_json(self, value: Json) -> None:
        """Send JSON as text, compact as Starlette's send_json writes it."""
        await self.send(encode(value).decode())

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame."""
        await self._pass({"type": "websocket.close", "code": code, "reason": reason})
        self._closed(code, reason, by_client=False)

    async def while_open(self, work: Coroutine[None, None, T]) -> T:
        """Do what takes time and reads no messages; it ends with the connection."""
        doing = asyncio.create_task(work)
        leaving = asyncio.create_task(self.exchange.connection.hung_up()) if self.exchange.connection else doing
        try:
            await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise SocketClosedError
            return doing.result()
        finally:
            doing.cancel()
            leaving.cancel()
            await asyncio.gather(doing, leaving, return_exceptions=True)

    async def ended(self) -> None:
        """Take note of how a session ended that is known to be over."""
        while self.exchange.entry.session is not None and self.session.closed_at is None:
            try:
                await self.receive()
            except SocketClosedError:
                return

    def _due(self, kind: str) -> bool:
        fault = self._fault
        if fault is None or fault.kind != kind or kind in ("close", "delay"):
            return False
        if kind == "oversized":
            return self.session.sent == 0
        return self.session.sent == int(fault.argument or 0)

    async def _spoil(self, fault: Fault, message: str | bytes) -> None:
        if fault.kind == "oversized":
            self._note("oversized")
            await self._out(bytes(int(fault.argument or 0)))
        elif fault.kind == "garbage":
            await self._strike("garbage", _NO_FRAME)
        elif fault.kind == "truncate":
            text = isinstance(message, str)
            content = message.encode() if isinstance(message, str) else message
            frame = Frame(Opcode.TEXT if text else Opcode.BINARY, content).serialize(mask=False)
            await self._strike("truncate", frame[: len(frame) // 2])
        else:
            await self._strike(fault.kind)

    async def _strike(self, kind: str, raw: bytes = b"") -> None:
        """Do to the connection what no WebSocket library does, wait until it is over, and raise SocketClosedError."""
        connection = self.exchange.connection
        if connection is None:
            raise RuntimeError(f"the fault {kind} needs uvicorn started with ws=EmulatorSocket")
        self._note(kind)
        if raw:
            await connection.spoil(raw)
        if kind == "stall":
            await connection.ignore()
        elif kind == "garbage":
            while True:
                await self.receive()
        else:
            self.exchange.cut = True
            await (connection.reset() if kind == "reset" else connection.cut())
            if self.exchange.entry.session is not None:
                self._closed(_ABNORMAL, "", by_client=False)
        raise SocketClosedError

    async def _out(self, message: str | bytes) -> None:
        await self._pass({"type": "websocket.send", "text" if isinstance(message, str) else "bytes": message})
        self.session.count(message)

    async def _pass(self, event: dict[str, Json]) -> None:
        try:
            await self._send(event)
        except OSError as error:  # what ASGI servers raise when the client has gone
            raise SocketClosedError from error

    def _note(self, kind: str) -> None:
        self.exchange.entry.notes.append(f"fault: {kind}")

    def _closed(self, code: int, reason: str, *, by_client: bool) -> None:
        session = self.session
        if session.closed_at is not None:
            return
        session.closed_at = self._clock()
        session.close_code, session.close_reason, session.closed_by_client = code, reason, by_client
        self.exchange.entry.answer_complete = code != _ABNORMAL
        self.exchange.entry.disconnected = by_client and code == _ABNORMAL


def read_json(text: str | bytes) -> Json:
    """Read a message as JSON, None when it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
