"""ws.fal.run: HTTP over a WebSocket. A message is a request body, its answer a start frame, body frames and an end frame.

Strictly one after the other; what comes early waits. What the answers hold is inference.py's.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from . import inference
from .addresses import Address
from .answers import Answer
from .exchange import Exchange, Json, Message
from .sockets import Socket
from .world import World

_TEXT = ("application/json", "text/")


async def serve(world: World, socket: Socket, address: Address) -> None:
    """Answer every message until the client leaves."""
    time = asyncio.get_running_loop().time
    while True:
        message = await socket.receive()
        started = time()
        answer = await socket.while_open(_ask(world, socket.exchange, address, message))
        headers = dict(answer.headers)
        if "x-fal-billable-units" in headers:
            socket.exchange.entry.bill(headers["x-fal-billable-units"])
        frame: dict[str, Json] = {
            "request_id": headers.get("x-fal-request-id") or world.new_id(),
            "status": answer.status,
        }
        await socket.send_json({"type": "start", **frame, "headers": headers})
        textual = headers.get("content-type", "").startswith(_TEXT)
        first: float | None = None
        async with aclosing(_pieces(answer)) as pieces:
            async for piece in pieces:
                first = time() if first is None else first
                await socket.send(_frame(piece, textual=textual))
        waited = (time() if first is None else first) - started
        await socket.send_json({"type": "end", **frame, "time_to_first_byte_seconds": waited})


async def _ask(world: World, handshake: Exchange, address: Address, message: str | bytes) -> Answer:
    body = message if isinstance(message, bytes) else message.encode()

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    target = b"/" + handshake.host.encode("latin-1") + handshake.entry.target
    path, _, query = target.partition(b"?")
    headers = handshake.entry.headers
    scope = {"type": "http", "method": "POST", "raw_path": path, "query_string": query, "headers": headers}
    exchange = Exchange(scope, receive)
    serve_call = inference.stream if address.kind == "stream" else inference.run
    return await serve_call(world, exchange, address)


async def _pieces(answer: Answer) -> AsyncGenerator[bytes, None]:
    if isinstance(answer.body, bytes):
        if answer.body:
            yield answer.body
        return
    async with aclosing(answer.body) as body:
        async for piece in body:
            yield piece


def _frame(piece: bytes, *, textual: bool) -> str | bytes:
    """Choose the frame for a piece of a body: text where it is text, as far as this piece can tell."""
    if not textual:
        return piece
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return piece
