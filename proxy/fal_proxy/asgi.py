"""What ASGI says, in the words of the domain: a scope is a Request in raw bytes. Decides nothing about it."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, NamedTuple

from fal_proxy.errors import Refusal
from fal_proxy.relay.inbound import Message, Send
from fal_proxy.request import Index, Request

# What our own server adds to the scope, and finds in the state of our lifespan; other servers lack it and we do without.
# Who stands in front of us and gives us a `send` or a `receive` of their own sees every message (`OurServer.of`).
EXTENSION = "fal_proxy"

Scope = MutableMapping[str, Any]


class _Read(NamedTuple):
    """What follows from a head alone."""

    method: str
    path: bytes
    query: bytes | None
    fields: Index


def asks_first(request: Request) -> bool:
    """Say whether this looks like a CORS preflight, which the gateway judges, whatever it asks about."""
    return request.method == "OPTIONS" and any(name == b"access-control-request-method" for name, _ in request.headers)


def read_request(scope: Scope) -> Request:
    """Return the request in raw bytes: from the request line where our server keeps it, else from ASGI's parts."""
    client = scope.get("client")
    peer = client[0] if client else ""
    own = scope.get("extensions", {}).get(EXTENSION, {})
    notes: dict[object, Any] | None = own.get("notes")
    if notes is None:
        notes = {}
    read: _Read | None = notes.get(_Read)
    if read is None:
        read = notes[_Read] = _read(scope, own.get("raw_target"))
    scheme = {"ws": "http", "wss": "https"}.get(scope["scheme"]) or str(scope["scheme"])
    return Request(read.method, read.path, read.query, read.fields.headers, peer, scheme, scope, notes, read.fields)


def _read(scope: Scope, target: bytes | None) -> _Read:
    if target is None:
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        query = scope["query_string"] or None  # ASGI cannot say whether an empty query had its `?`
    else:
        path, mark, rest = target.partition(b"?")
        query = rest if mark else None
    headers = list(scope["headers"])
    return _Read(scope.get("method", "GET"), path, query, Index(headers, dict(headers)))


def refused_by_server(request: Request) -> Refusal | None:
    """Return what our own server has answered already, because the rest of the request could not be read."""
    refused: Refusal | None = request.scope.get("extensions", {}).get(EXTENSION, {}).get("refused")
    return refused


def closing_instead(send: Send) -> Send:
    """Return `send` for a server that cannot refuse a handshake with an answer of ours: it says 403."""

    async def closing(message: Message) -> None:
        if message["type"] == "websocket.http.response.start":
            await send({"type": "websocket.close", "code": 1008})
        elif message["type"] != "websocket.http.response.body":
            await send(message)

    return closing
