"""The handshake of a WebSocket: which session it asks for, who may have it, what a fault makes of it, what it cost.

A token is looked at here and never again: an open socket outlives it. The sessions themselves are elsewhere.
"""

import asyncio
from collections.abc import Sequence

from . import answers, realtime
from .access import refusal
from .addresses import Address, read_run, read_socket
from .answers import Answer
from .exchange import Exchange, Receive, Send
from .faults import Fault, draw
from .framed import serve as serve_framed
from .sockets import Socket, SocketClosedError
from .text_apps import find_app
from .world import World

RUN_HOSTS = frozenset({"fal.run", "falrun.com"})
WS_HOST = "ws.fal.run"

_UNAUTHORIZED = {"status": "error", "error": "Unauthorized"}


class Handshakes:
    """The WebSocket side of one emulator."""

    def __init__(self, world: World, faults: Sequence[Fault], *, late_refusals: bool) -> None:
        self._world = world
        self._faults = faults  # the emulator's own list, which may change
        self._late_refusals = late_refusals

    async def serve(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        """Serve one WebSocket from its handshake to its end."""
        address = _read(exchange)
        names = [f"{exchange.host}{exchange.path}", *([address.endpoint] if address else [])]
        strike = draw(self._faults, names, self._world.rng, "socket")
        socket = Socket(exchange, receive, send, strike.fault, self._world.clock)
        await receive()  # websocket.connect
        try:
            await asyncio.sleep(strike.delay_seconds / self._world.speed)
            await self._open(socket, address, strike.fault)
        except SocketClosedError:
            await socket.ended()
        finally:
            exchange.entry.done.set()

    async def _open(self, socket: Socket, address: Address | None, fault: Fault | None) -> None:
        exchange = socket.exchange
        if fault is not None and fault.kind == "reset" and fault.argument is None:
            await socket.reset()
        app = address.app if address else ""
        broken = fault and answers.of_fault(fault.kind, fault.argument, app, self._world.new_id())
        if broken:
            await socket.refuse(broken)
            return
        if address is None:
            await socket.refuse(answers.detail(404, "Not Found"))
            return
        refused = self._refusal(exchange, address)
        if refused is None:
            await self._serve(socket, address)
        elif self._late_refusals:
            await socket.accept()
            await socket.send_json(_UNAUTHORIZED)
            await socket.close()
        else:
            await socket.refuse(refused)

    def _refusal(self, exchange: Exchange, address: Address) -> Answer | None:
        verdict = self._world.access.key(exchange)
        if verdict == "missing":
            verdict = self._world.access.token(exchange, address)
        return refusal(verdict, f'Cannot access application "{address.app}"')

    async def _serve(self, socket: Socket, address: Address) -> None:
        if socket.exchange.host == WS_HOST:
            await socket.accept()
            await serve_framed(self._world, socket, address)
            return
        app = find_app(address)
        if app is None and (address.kind != "realtime" or address.endpoint.endswith("/realtime")):
            await socket.refuse(Answer(403))  # what an app's server says where the app has no socket
            return
        try:
            wanted = _max_buffering(socket.exchange)
        except ValueError as error:
            await socket.refuse(answers.detail(422, str(error)))
            return
        await socket.accept()
        opened_at = socket.session.opened_at
        try:
            if app is None:
                await realtime.serve(self._world, socket, address, wanted)
            else:
                await app(self._world, socket)
        finally:
            # By the second, from the upgrade to the end, whatever went over it.
            socket.exchange.entry.bill(self._world.seconds_since(opened_at))


def _read(exchange: Exchange) -> Address | None:
    if exchange.host in RUN_HOSTS:
        return read_socket(exchange.path)
    return read_run(exchange.path) if exchange.host == WS_HOST else None


def _max_buffering(exchange: Exchange) -> int | None:
    """Read the client's bound; the clients themselves refuse to send another, so what fal does then is not known."""
    text = exchange.query.get("max_buffering")
    if text is None:
        return None
    least, most = realtime.BUFFERING
    if not text.isascii() or not text.isdecimal() or not least <= int(text) <= most:
        raise ValueError(f"max_buffering must be between {least} and {most} (inclusive)")
    return int(text)
