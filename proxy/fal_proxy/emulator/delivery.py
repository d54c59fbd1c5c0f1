"""Puts an answer on the wire: whole, compressed, or damaged on the way by a fault. Knows no fal."""

import asyncio
import gzip
from contextlib import aclosing

from .answers import Answer, Headers
from .exchange import Exchange, Message, Send
from .faults import Fault
from .protocol import Connection

_BODILESS = (204, 304)


async def deliver(exchange: Exchange, answer: Answer, send: Send) -> None:
    """Send an answer; a streamed body is closed however this ends."""
    exchange.entry.status = answer.status
    units = next((value for name, value in answer.headers if name == "x-fal-billable-units"), None)
    if units is not None:
        exchange.entry.bill(units)
    headers = list(answer.headers)
    bare = exchange.method == "HEAD" or answer.status in _BODILESS
    if isinstance(answer.body, bytes):
        if answer.status not in _BODILESS:
            headers.append(("content-length", str(len(answer.body))))
        await send(_head(answer.status, headers))
        await send({"type": "http.response.body", "body": b"" if bare else answer.body})
    else:
        if answer.length is not None:
            headers.append(("content-length", str(answer.length)))
        async with aclosing(answer.body) as pieces:
            await send(_head(answer.status, headers))
            if not bare:
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    exchange.entry.answer_complete = True


def compressed(answer: Answer) -> Answer:
    """Compress a JSON answer no matter what the client accepts: a misbehaviour that real gateways have."""
    if not isinstance(answer.body, bytes) or ("content-type", "application/json") not in answer.headers:
        return answer
    headers = [*answer.headers, ("content-encoding", "gzip"), ("vary", "accept-encoding")]
    return Answer(answer.status, headers, gzip.compress(answer.body, 6, mtime=0))


class Damage:
    """Stands before `send` and breaks the answer: after so many body bytes it resets, cuts or falls silent."""

    def __init__(self, exchange: Exchange, fault: Fault, send: Send) -> None:
        if exchange.connection is None:
            raise RuntimeError(f"the fault {fault.kind} needs uvicorn started with http=EmulatorProtocol")
        self._exchange = exchange
        self._connection: Connection = exchange.connection
        self._fault = fault
        self._send = send
        self._left = None if fault.argument is None else int(fault.argument)
        self._pieces = 0

    async def send(self, message: Message) -> None:
        """Pass a message on as long as the fault allows, then never return."""
        if message["type"] == "http.response.start":
            if self._fault.kind == "reset" and self._left is None:
                await self._strike()
            if self._left is None:
                self._left = _half_the_length(message)
            await self._send(message)
            if self._left == 0:
                await self._strike()
            return
        body: bytes = message.get("body", b"")
        final = not message.get("more_body", False)
        passed = body[: self._allowance(len(body), final=final)]
        if passed:
            await self._send({"type": "http.response.body", "body": passed, "more_body": True})
        if self._left is not None:
            self._left -= len(passed)
        if final or len(passed) < len(body) or self._left == 0:
            await self._strike()

    def _allowance(self, length: int, *, final: bool) -> int:
        """Return how much of a piece passes; without a number, a stream breaks half way into its second piece."""
        if self._left is not None:
            return self._left
        self._pieces += 1
        return length if self._pieces == 1 and not final else length // 2

    async def _strike(self) -> None:
        self._exchange.entry.notes.append(f"fault: {self._fault.kind}")
        if self._fault.kind == "reset":
            self._exchange.cut = True
            await self._connection.reset()
        elif self._fault.kind == "truncate":
            self._exchange.cut = True
            await self._connection.cut()
        await asyncio.Event().wait()  # the exchange ends with the connection


def _half_the_length(head: Message) -> int | None:
    headers: list[tuple[bytes, bytes]] = head["headers"]
    return next((int(value) // 2 for name, value in headers if name == b"content-length"), None)


def _head(status: int, headers: Headers) -> Message:
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    return {"type": "http.response.start", "status": status, "headers": raw}
