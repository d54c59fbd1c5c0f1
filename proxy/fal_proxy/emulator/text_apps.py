"""Apps with a socket handler of their own: they speak text frames, on any path they like. Models have realtime.py instead."""

import asyncio
from collections.abc import Awaitable, Callable

from .addresses import Address, glob
from .exchange import Json
from .faults import CLOSE_CODES
from .models.schema import Field, InvalidInputError, boolean, integer, number, problem, string, validate
from .peer import answer_sdp, ice_servers
from .sockets import Socket, read_json
from .world import World

_LONGEST_REASON_BYTES = 123  # what a control frame holds

App = Callable[[World, Socket], Awaitable[None]]


def find_app(address: Address) -> App | None:
    """Return the app with its own handler at an address, None where there is none."""
    return next((app for pattern, app in _APPS if pattern.fullmatch(address.endpoint)), None)


async def parrot(world: World, socket: Socket) -> None:
    """Send every message back as it came; {"emulator": {…}} makes it send a lot, fall asleep or close instead.

    `{"send": {"count": 3, "bytes": 10, "binary": false}}`, `{"sleep": 2.5}` (reads nothing meanwhile),
    `{"close": {"code": 4000, "reason": ""}}`.
    """
    while True:
        message = await socket.receive()
        order = read_json(message) if isinstance(message, str) else None
        order = order.get("emulator") if isinstance(order, dict) else None
        if not isinstance(order, dict):
            await socket.send(message)
            continue
        try:
            if await _obey(world, socket, order):
                return
        except InvalidInputError as refused:
            await socket.send_json({"status": "error", "error": refused.problems[0]["msg"]})


async def signalling(world: World, socket: Socket) -> None:
    """Set up a WebRTC session as decart/lucy does: ready, offer and answer, candidates, prompts. No media ever flows."""
    while True:
        message: Json = read_json(await socket.receive())
        kind = message.get("type") if isinstance(message, dict) else None
        if kind == "ready":
            await socket.send_json({"type": "ready", "ice_servers": ice_servers(world)})
        elif kind == "offer" and isinstance(message.get("sdp"), str):
            await socket.send_json({"type": "answer", "sdp": answer_sdp(world, message["sdp"])})
        elif kind not in ("icecandidate", "prompt"):
            await socket.send_json({"status": "error", "error": f"Unknown message type {kind!r}"})


async def _obey(world: World, socket: Socket, order: dict[str, Json]) -> bool:
    """Do what a message orders and tell whether that ended the session."""
    if "sleep" in order:
        given = validate((Field("sleep", number(0, 3600)),), order)
        await socket.while_open(asyncio.sleep(given["sleep"] / world.speed))
    if "send" in order:
        fields = (
            Field("count", integer(1, 100_000), default=1),
            Field("bytes", integer(0, 64 * 1024 * 1024), default=10),
            Field("binary", boolean, default=False),
        )
        given = validate(fields, order["send"])
        for place in range(given["count"]):
            content = f"{place} ".ljust(given["bytes"], ".")
            await socket.send(content.encode() if given["binary"] else content)
    if "close" in order:
        given = validate(
            (Field("code", integer(), default=1000), Field("reason", string(), default="")), order["close"]
        )
        if given["code"] not in CLOSE_CODES or len(given["reason"].encode()) > _LONGEST_REASON_BYTES:
            raise InvalidInputError([problem(("body", "close"), "No peer may send such a close frame", "close", order)])
        await socket.close(given["code"], given["reason"])
        return True
    return False


_APPS = (
    (glob("emulator/text/**"), parrot),
    (glob("decart/lucy*/**"), signalling),
)
