"""A WebSocket client for the emulator's sockets: raw messages, fal's msgpack, tokens from fal's own endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from support.emulated import Emulated

KEY = {"authorization": "Key id:secret"}
WAIT_SECONDS = 10.0
TIMEOUT_MESSAGE = '{"type":"x-fal-error","error":"TIMEOUT","reason":"no inputs, reconnect when needed!"}'


@asynccontextmanager
async def opened(
    fal: Emulated, path: str, *, host: str = "fal.run", headers: dict[str, str] | None = None, **options: Any
) -> AsyncIterator[ClientConnection]:
    """Open a socket as wss://<host><path>, with the key unless told otherwise; closes it at the end."""
    chosen = KEY if headers is None else headers
    options = {"max_size": None, "close_timeout": WAIT_SECONDS, "proxy": None, **options}
    async with connect(fal.socket(host, path), additional_headers=chosen, **options) as socket:
        yield socket


async def refused(fal: Emulated, path: str, **options: Any) -> tuple[int, Any]:
    """Return status and JSON body (None without one) of a handshake that must fail."""
    try:
        async with opened(fal, path, **options):
            raise AssertionError(f"{path} was opened")
    except InvalidStatus as error:
        body = error.response.body
        return error.response.status_code, json.loads(body) if body else None


async def ask(socket: ClientConnection, value: Any) -> Any:
    """Send one msgpack input and return the next message, decoded."""
    await socket.send(msgspec.msgpack.encode(value))
    return await hear(socket)


async def hear(socket: ClientConnection) -> Any:
    """Return the next message: msgpack or JSON, decoded."""
    async with asyncio.timeout(WAIT_SECONDS):
        message = await socket.recv()
    return json.loads(message) if isinstance(message, str) else msgspec.msgpack.decode(message)


async def to_the_end(socket: ClientConnection) -> tuple[list[str | bytes], int, str]:
    """Return what still comes, then code and reason of the end; 1006 without a close frame."""
    messages: list[str | bytes] = []
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                messages.append(await socket.recv())
    except ConnectionClosed as end:
        return messages, end.rcvd.code if end.rcvd else 1006, end.rcvd.reason if end.rcvd else ""


async def token(fal: Emulated, allowed_apps: Iterable[str], path: str = "/tokens/", **fields: Any) -> str:
    """Ask for a token as the clients do."""
    async with httpx2.AsyncClient(headers=KEY) as client:
        body = {"allowed_apps": list(allowed_apps), **fields}
        answer = await client.post(fal.at("rest.fal.ai", path), json=body)
    assert answer.status_code == 201, answer.text
    minted = answer.json()
    return str(minted["token"] if isinstance(minted, dict) else minted)
