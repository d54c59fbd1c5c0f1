"""One HTTP exchange: the request as it is read, the client as it may leave. Knows no fal and sends nothing.

The body is read by whoever serves the request; only once it has ended does `gone` listen for the client's departure,
because an ASGI server has a single stream of messages for both.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

from .journal import Entry
from .protocol import Connection, connection_of

Json: TypeAlias = Any
Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON_LIMIT_BYTES = 32 * 1024 * 1024


class ClientGoneError(Exception):
    """The client left before its request was complete."""


class BodyTooLargeError(Exception):
    """A JSON body is larger than any client of a model sends."""


class Exchange:
    """One request, or the handshake of a WebSocket; `path` is raw (percent escapes kept), without the /<host> prefix."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._body_ended = asyncio.Event()
        self.cut = False  # we ended the connection, not the client
        self.connection: Connection | None = connection_of(scope)
        target = self.connection.target if self.connection else raw_target(scope)
        path, _, query = target.decode("latin-1").partition("?")
        host, _, rest = path.removeprefix("/").partition("/")
        self.host = host.lower()
        self.path = "/" + rest
        self.method: str = scope.get("method", "GET")  # a WebSocket begins as a GET
        self.query: dict[str, str] = dict(parse_qsl(query, keep_blank_values=True))
        headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        self.headers: dict[str, str] = {}
        for name, value in headers:
            self.headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        self.entry = Entry(self.method, self.host, target[1 + len(host) :], headers)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives; raise ClientGoneError when the client leaves half way."""
        while not self._body_ended.is_set():
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.entry.disconnected = True
                raise ClientGoneError
            chunk: bytes = message.get("body", b"")
            self.entry.record(chunk)
            if not message.get("more_body", False):
                self.entry.body_complete = True
                self._body_ended.set()
            if chunk:
                yield chunk

    async def drain(self) -> None:
        """Read and forget what is left of the body, so that the connection can serve another request."""
        async for _ in self.chunks():
            pass

    async def body(self) -> bytes:
        """Read the whole body, up to JSON_LIMIT_BYTES."""
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
            if len(body) > JSON_LIMIT_BYTES:
                raise BodyTooLargeError
        return bytes(body)

    async def json(self) -> Json:
        """Read the body as JSON, None when it is empty; raises ValueError when it is not JSON."""
        body = await self.body()
        return json.loads(body) if body.strip() else None

    async def gone(self) -> None:
        """Return when the client has left (or the answer is complete); listens only after the body has ended."""
        await self._body_ended.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


def raw_target(scope: Scope) -> bytes:
    """Rebuild the request target from an ASGI scope of a server that does not hand over the original."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope.get("query_string", b"")
    return path + b"?" + query if query else path
