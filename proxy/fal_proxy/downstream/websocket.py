"""One caller's WebSocket, from the handshake that was read already to the end of the connection.

The app judges the handshake as ASGI has it, and takes the socket itself from `scope["extensions"]["fal_proxy"]`: frames
pass as they came, so nothing is received or sent as ASGI messages once it is open. Nothing is parsed before the 101. A
message of many fragments, a flood of pings, a caller that reads nothing and bytes that are no WebSocket end the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected, get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from fal_proxy.asgi import EXTENSION
from fal_proxy.downstream.faults import NO_HANDSHAKE, tell
from fal_proxy.downstream.flow import HIGH_WATER_BYTES, Lookout
from fal_proxy.downstream.handshake import Fields, accepted, denied, scope_of, switching
from fal_proxy.downstream.peers import Place
from fal_proxy.sockets.end import End
from fal_proxy.sockets.frames import NO_FRAME, PING, Breach, FrameReader, Message

MAX_FRAGMENTS = 1024  # of one message
MAX_PINGS = 100  # in a second
PING_SECONDS = 20.0  # between two of ours; so long they have to answer
CLOSE_SECONDS = 10.0  # for a caller to take what stands before a close frame, and to answer it
UNWANTED_BYTES = 1024 * 1024  # of messages meanwhile, beside one of the largest
LINGER_SECONDS = 10.0  # for a caller to take what is left and end their side
LINGER_BYTES = 32 * 1024 * 1024  # what may still come meanwhile; it is not looked at
_log = logging.getLogger("fal_proxy")


class SocketProtocol(End, asyncio.Protocol):
    """One WebSocket of a caller. It takes over `place` and gives it back."""

    __slots__ = (
        "__weakref__",
        "_app_state",
        "_asked",
        "_config",
        "_denial",
        "_finishing",
        "_leaving",
        "_lookout",
        "_loop",
        "_pings",
        "_pings_since",
        "_place",
        "_server",
        "_switch",
        "_target",
        "_timer",
        "_unwanted_bytes",
        "_writable",
        "transport",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        *,
        place: Place | None,
        target: bytes,
    ) -> None:
        reader = FrameReader(masked=True, max_bytes=config.ws_max_size, max_fragments=MAX_FRAGMENTS)
        super().__init__(reader, masks=False)
        self._config = config
        self._server = server_state
        self._app_state = app_state
        self._place = place
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._leaving: list[Callable[[], None]] = []
        self._switch: Fields | None = None  # what the 101 says; None once it is answered
        self._denial: tuple[int, Fields] | None = None
        self._asked: bytes | None = None  # in a ping that was not answered yet
        self._timer: asyncio.TimerHandle | None = None  # to the next ping, or to the end
        self._writable: asyncio.Future[None] | None = None
        self._pings, self._pings_since = 0, 0.0
        self._unwanted_bytes = 0
        self._finishing = False

    def begin(self, transport: asyncio.Transport, headers: Fields) -> None:
        """Go on with a connection whose handshake was read: start the app, or say that this is no handshake."""
        self.transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._write = transport.write
        self._lookout = Lookout(transport, self._loop)
        self._server.connections.add(self)  # type: ignore[arg-type] # a set of uvicorn's own kinds
        self._switch = switching(headers)
        extension = {"raw_target": self._target, "on_departure": self._leaving.append, "socket": self}
        scope = scope_of(
            self._target,
            headers,
            {EXTENSION: extension},
            asgi={"version": self._config.asgi_version, "spec_version": "2.4"},
            scheme="wss" if is_ssl(transport) else "ws",
            server=get_local_addr(transport),
            client=get_remote_addr(transport),
            root_path=self._config.root_path,
            state=self._app_state.copy(),
        )
        if self._switch is None:
            self._write(NO_HANDSHAKE.answer(tell(self._app_state, NO_HANDSHAKE, scope)))
            self._finish()
            return
        task = self._loop.create_task(self.run_asgi(scope))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """Keep what arrived, and read as much as is wanted."""
        if not self._finishing:
            self.on_bytes(data)
            return
        self._unwanted_bytes += len(data)
        if self._unwanted_bytes > LINGER_BYTES:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End: without a close frame before it, it is an abnormal one."""
        self.close_sent = self._finishing = True
        self._lookout.stop()
        if self._timer is not None:
            self._timer.cancel()
        if self._place is not None:
            self._place.release()
        self._server.connections.discard(self)
        self._reader.stop()
        self._no_more = True
        if self._listener is not None:
            self._held = False
            self._read()
        self.resume_writing()
        for leave in self._leaving:
            leave()
        self._leaving.clear()

    def pause_writing(self) -> None:
        """Learn that the caller is slower than we write."""
        self._set_pace(True)

    def resume_writing(self) -> None:
        """Learn that the caller has caught up."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._set_pace(False)

    # ASGI

    async def run_asgi(self, scope: dict[str, Any]) -> None:
        """Run the app, and end the connection if it has not."""
        try:
            await self._config.loaded_app(scope, self._receive, self._send)
        except ClientDisconnected:
            pass
        except Exception:  # noqa: BLE001 -- whatever it is, the connection ends
            _log.exception("fault of the app")
        finally:
            if not self.close_sent:
                if self._switch is not None:
                    self._write(denied(500, [], b""))
                self._finish()

    async def _receive(self) -> dict[str, Any]:
        return {"type": "websocket.connect"}  # the rest comes by way of the extension

    async def _send(self, message: dict[str, Any]) -> None:
        if self.transport.is_closing():
            raise ClientDisconnected
        kind = message["type"]
        if kind == "websocket.accept" and self._switch is not None:
            self._write(accepted(self._switch, message["headers"]))
            self._switch = None
            self._after(PING_SECONDS, self._ask)
        elif kind == "websocket.http.response.start" and self._switch is not None:
            self._denial = message["status"], message["headers"]
        elif kind == "websocket.http.response.body" and self._denial is not None:
            self._write(denied(*self._denial, message["body"]))
            self._denial = self._switch = None
            self._finish()
        elif kind == "websocket.close" and self._switch is None:
            await self.close(message["code"], message["reason"])
        else:
            raise RuntimeError(f"{kind} has no place here")

    # relay.websocket.CallerSide

    async def close(self, code: int, reason: str) -> None:
        """Send a close frame, none for NO_FRAME. Somebody who reads nothing is not waited for."""
        self.listen(None)
        if code != NO_FRAME and not self.close_sent:
            if self.write_paused:
                self._writable = self._loop.create_future()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_SECONDS):
                        await self._writable
            if not self.write_paused and not self.close_sent:
                self._close(code, reason)
                self._after(CLOSE_SECONDS, self._finish)
                return
        self._finish()

    def shutdown(self) -> None:
        """Leave the end of the process to the app, which says so on every socket."""
        if self.close_sent:
            self.transport.close()

    # sockets.end.End

    def _pause(self) -> None:
        if not self.transport.is_closing():
            self._lookout.start()
            self.transport.pause_reading()

    def _resume(self) -> None:
        self._lookout.stop()
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def _on_ping(self, data: bytes) -> None:
        now = self._loop.time()
        if now - self._pings_since >= 1:
            self._pings, self._pings_since = 0, now
        self._pings += 1
        if self._pings > MAX_PINGS:
            self._reader.stop()
            self._break(Breach(1008, "so many pings"))
        else:
            super()._on_ping(data)

    def _on_pong(self, data: bytes) -> None:
        if data == self._asked:
            self._asked = None

    def _on_unwanted(self, message: Message) -> None:
        if self.close_sent:
            self._unwanted_bytes += len(message.frame)
            if self._unwanted_bytes > self._config.ws_max_size + UNWANTED_BYTES:
                self.transport.abort()

    def _on_close(self) -> None:
        self._finish()

    def _on_breach(self) -> None:
        self._finish()

    def _ask(self) -> None:
        """Ask whether the caller is there; who has not answered the last time is not, be it that they read nothing."""
        if self._asked is not None and not self._held:  # an answer may lie behind what nobody reads now
            self.transport.abort()
            return
        self._asked = os.urandom(4)
        self._control(PING, self._asked)
        self._after(PING_SECONDS, self._ask)

    def _finish(self) -> None:
        """Close behind what was sent, and read on for a while: unread bytes would reset it, and the close frame be lost."""
        self.close_sent = True
        if not self._finishing and not self.transport.is_closing():
            self._finishing = True
            self._reader.stop()
            self.transport.write_eof()
            self._after(LINGER_SECONDS, self.transport.abort)
            self.release()

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, call)


def take_over(
    make: Callable[..., SocketProtocol], transport: asyncio.Transport, target: bytes, headers: Fields
) -> SocketProtocol:
    """Return the protocol that goes on with a connection whose handshake was read already."""
    successor = make(target=target)
    transport.set_protocol(successor)
    successor.begin(transport, headers)
    return successor
