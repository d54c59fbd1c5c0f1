"""The caller's side under a server that is not ours: whole messages, one at a time, as ASGI has them."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from typing import Any

from fal_proxy.errors import ClientGone
from fal_proxy.relay.inbound import Receive, Send
from fal_proxy.sockets.end import Listener
from fal_proxy.sockets.frames import NO_CODE, NO_FRAME, SENDABLE_CODES, Closing, Message, message, shortened

CLOSE_SECONDS = 10.0  # for a caller to take what stands before a close frame
TURN_MESSAGES = 16  # that may wait already; then others have their turn


class MessageSide:
    """A caller's socket as ASGI has it. Whoever makes one ends it with `stop`."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._listener: Listener | None = None
        self._free = asyncio.Event()
        self._outgoing: deque[Message] = deque()
        self._waiting = asyncio.Event()
        self._taken = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._gone = False
        self.write_paused = False  # there is something that the server has not taken

    def listen(self, listener: Listener | None) -> None:
        """Begin to tell what comes; None: it is of no interest any more."""
        self._listener = listener
        if not self._tasks and listener is not None:
            self._tasks = [asyncio.create_task(self._take()), asyncio.create_task(self._give())]
            for task in self._tasks:
                task.add_done_callback(lambda _: self._end(Closing(NO_FRAME)))
        self.release()

    def hold(self) -> None:
        """Receive nothing more until `release`."""
        self._free.clear()

    def release(self) -> None:
        """Go on."""
        self._free.set()

    def send(self, message: Message) -> None:
        """Send a message, however slow the caller is. After the end it means nothing."""
        if not self._gone:
            self._outgoing.append(message)
            self.write_paused = True
            self._waiting.set()

    async def close(self, code: int, reason: str) -> None:
        """Send a close frame behind what was sent. Somebody who reads nothing is not waited for."""
        if code not in SENDABLE_CODES:
            code = 1000 if code == NO_CODE else 1011  # neither nothing nor an empty frame can be said in ASGI
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                while self.write_paused and not self._gone:
                    self._taken.clear()
                    await self._taken.wait()
                await self._pass({"type": "websocket.close", "code": code, "reason": shortened(reason)})
        except (ClientGone, TimeoutError):
            pass

    async def stop(self) -> None:
        """Let go of the server. Raises what went wrong with it."""
        for task in self._tasks:
            task.cancel()
        for found in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(found, Exception):
                raise found

    async def _take(self) -> None:
        """Tell what comes until it ends."""
        for count in itertools.count(1):
            await self._free.wait()
            if count % TURN_MESSAGES == 0:
                await asyncio.sleep(0)
            event = await self._receive()
            if event["type"] != "websocket.receive":
                self._end(Closing(event.get("code") or NO_CODE, event.get("reason") or ""))
                return
            text: str | None = event.get("text")
            if self._listener is not None:
                data = event["bytes"] if text is None else text.encode()
                self._listener.on_message(message(data, text=text is not None, masked=True))

    async def _give(self) -> None:
        """Send what there is to send, and say when all of it was taken."""
        while True:
            await self._waiting.wait()
            self._waiting.clear()
            while self._outgoing:
                found = self._outgoing.popleft()
                event = {"text": found.data.decode()} if found.text else {"bytes": found.data}
                try:
                    await self._pass({"type": "websocket.send", **event})
                except ClientGone:
                    self._end(Closing(NO_FRAME))
                    return
            self.write_paused = False
            self._taken.set()
            if self._listener is not None:
                self._listener.on_writable()

    def _end(self, closing: Closing) -> None:
        if not self._gone:
            self._gone = True
            self._outgoing.clear()
            self._taken.set()
            if self._listener is not None:
                self._listener.on_closing(closing)

    async def _pass(self, event: dict[str, Any]) -> None:
        try:
            await self._send(event)
        except OSError as error:  # what ASGI servers raise once the socket is over
            raise ClientGone from error
