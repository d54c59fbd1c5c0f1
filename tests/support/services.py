"""Services of the operator's on loopback: small ASGI apps on our real server, which note what they are asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from fal_proxy.relay.inbound import Receive, Send
from fal_proxy.server import Listener, bind, serving


class Asked(NamedTuple):
    """One question: its path with query, and its fields."""

    path: str
    headers: list[tuple[bytes, bytes]]

    def values(self, name: bytes) -> list[bytes]:
        """Return the value of every line called `name`."""
        return [value for key, value in self.headers if key == name]


class Reply(NamedTuple):
    """One answer."""

    status: int = 200
    body: bytes = b"{}"
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Service:
    """An app that answers with what `answer` returns, but only while its gate is open."""

    def __init__(self, answer: Callable[[Asked], Reply]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._arrival = asyncio.Event()

    async def arrived(self, count: int) -> None:
        """Wait until so many questions have come."""
        while len(self.asked) < count:
            self._arrival.clear()
            await self._arrival.wait()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            for answer in ("lifespan.startup.complete", "lifespan.shutdown.complete"):
                await receive()
                await send({"type": answer})
            return
        query = scope["query_string"].decode()
        self.asked.append(Asked(scope["path"] + (f"?{query}" if query else ""), list(scope["headers"])))
        self._arrival.set()
        reply = self.answer(self.asked[-1])
        await self.gate.wait()
        length = (b"content-length", b"%d" % len(reply.body))
        await send({"type": "http.response.start", "status": reply.status, "headers": [length, *reply.headers]})
        await send({"type": "http.response.body", "body": reply.body})


@contextlib.asynccontextmanager
async def served(service: Service) -> AsyncIterator[str]:
    """Serve on a free port of loopback; yields the URL."""
    async with serving(Listener(service, bind("127.0.0.1", 0))) as url:
        try:
            yield url
        finally:
            service.gate.set()


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now
