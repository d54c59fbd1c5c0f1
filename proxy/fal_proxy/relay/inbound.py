"""The caller's side of one exchange, as ASGI shows it: its body, and the moment it leaves."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, NamedTuple

from fal_proxy.errors import ClientGone, Refusal
from fal_proxy.headers import Headers

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Received = Callable[[], bytes | None]  # returns the whole body if it has come
Answer = Callable[[int, Headers, bytes], bool]  # writes a whole answer now, or does nothing and says so
Push = Callable[[bytes], bool]  # writes a piece of the answer's body now; says whether the next one may come as fast
OnDeparture = Callable[[Callable[[], None]], None]  # registers what to call when the caller leaves


class OurServer(NamedTuple):
    """What our own server can do beyond ASGI."""

    on_departure: OnDeparture | None = None
    push: Push | None = None
    received: Received | None = None
    answer: Answer | None = None

    @classmethod
    def of(cls, own: Mapping[str, Any], receive: Receive, send: Send) -> OurServer:
        """Return what a scope's extension says that it can do.

        Past `receive` and `send` nothing goes that somebody has put others in the place of: what stands in front of
        us sees every message.
        """
        get = own.get
        sends, receives = get("send") == send, get("receive") == receive
        return cls(
            get("on_departure"),
            get("push") if sends else None,
            get("received") if receives else None,
            get("answer") if sends else None,
        )


NOT_OURS = OurServer()

# How far the watcher reads ahead of a slow upstream, so that a departure behind these bytes is still seen.
LOOKAHEAD_BYTES = 256 * 1024


class Inbound:
    """Read the request body and notice the caller's departure.

    `read_first` is called once and reads inline. From `watch` to `close` a caller that leaves is seen at once, whatever
    happens upstream: the server tells, or a task keeps `receive()` pending, where the server does not or more comes.
    """

    def __init__(
        self,
        receive: Receive,
        max_bytes: int,
        announced: int | None,
        on_departure: OnDeparture | None = None,
        limit: str = "server.max_body_bytes",
        received: Received | None = None,
    ) -> None:
        """Take the announced length (None: chunked), and `on_departure` where the server can tell of a departure
        behind bytes that nobody receives yet. `limit` is the setting that `max_bytes` comes from.
        """
        self._received = received
        self._receive = receive
        self._announced = announced
        self._on_departure = on_departure
        self._max_bytes = max_bytes
        self._limit = limit
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._total = 0
        self._changed: asyncio.Event | None = None
        self._room: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        self._refusal: Refusal | None = None
        self.complete = False  # the whole body has been received
        self.gone = False
        self.on_gone: Callable[[], None] | None = None

    async def read_first(self, limit_bytes: int) -> bytes:
        """Return the body up to about `limit_bytes`; `complete` says whether that is all of it.

        Raises ClientGone, and Refusal: `body_too_large` beyond the cap, `bad_request` for another length than announced.
        """
        parts: list[bytes] = []
        if self._received is not None and (whole := self._received()) is not None:
            parts.append(whole)
            self._count(len(whole))
            self.complete = True
        while not self.complete and self._total <= limit_bytes:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                raise ClientGone
            if body := message.get("body", b""):
                parts.append(body)
            self._count(len(body))
            self.complete = not message.get("more_body", False)
        if self.complete and self._announced not in (None, self._total):
            raise Refusal("bad_request", "the body is not as long as its Content-Length says")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def watch(self) -> None:
        """Start watching; end it with `close`."""
        if self._on_departure is not None:
            self._on_departure(self._left)
            if self.complete:
                return  # nothing is left to receive
        self._changed, self._room = asyncio.Event(), asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._watch(self._changed, self._room))

    async def read(self) -> bytes:
        """Return the next body bytes, b"" at the end. Raises ClientGone, Refusal `body_too_large`."""
        assert self._changed is not None and self._room is not None, "watch() comes first"  # noqa: PT018, S101
        while True:
            if self.gone:
                raise ClientGone
            if self._chunks:
                data = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
                self._chunks.clear()
                self._buffered = 0
                self._room.set()
                return data
            if self._refusal is not None:
                raise self._refusal
            if self.complete:
                return b""
            await self._changed.wait()
            self._changed.clear()

    def close(self) -> None:
        """Stop watching."""
        self.on_gone = None
        if self._task is not None:
            self._task.cancel()

    async def _watch(self, changed: asyncio.Event, room: asyncio.Event) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._left()
                return
            if self.complete or self._refusal is not None:
                continue
            body = message.get("body", b"")
            try:
                self._count(len(body))
            except Refusal as refusal:
                self._refusal = refusal
            else:
                if body:
                    self._chunks.append(body)
                    self._buffered += len(body)
                self.complete = not message.get("more_body", False)
            changed.set()
            while self._buffered > LOOKAHEAD_BYTES:
                room.clear()
                await room.wait()

    def _left(self) -> None:
        if not self.gone:
            self.gone = True
            if self._changed is not None:
                self._changed.set()
            if self.on_gone is not None:
                self.on_gone()

    def _count(self, size: int) -> None:
        self._total += size
        if self._total > self._max_bytes:
            raise Refusal("body_too_large", f"the body exceeds {self._max_bytes} bytes ({self._limit})")
