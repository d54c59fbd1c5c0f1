"""The handshake of a caller's WebSocket: judged by `websockets`, shown to the app as ASGI's scope, answered as the app says."""

from __future__ import annotations

import http
import logging
import urllib.parse
from typing import Any

from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.server import ServerProtocol

from fal_proxy.headers import http_date

Fields = list[tuple[bytes, bytes]]
_QUIET = logging.getLogger("fal_proxy.websocket.caller")
_QUIET.setLevel(logging.CRITICAL)  # it would log fields, and with them a ticket
_NOT_OURS = frozenset([b"date", b"sec-websocket-extensions", b"sec-websocket-protocol"])


def switching(headers: Fields) -> Fields | None:
    """Return the fields of the 101 that fits a handshake, None for what is none."""
    fields = Headers([(name.decode("ascii"), value.decode("latin-1")) for name, value in headers])
    protocol = ServerProtocol(logger=_QUIET)
    response = protocol.accept(Request("/", fields))
    protocol.parser.close()  # which it holds and is held by: garbage waits for its collector
    if response.status_code != 101:
        return None
    found = [(name.encode("ascii"), value.encode("ascii")) for name, value in response.headers.raw_items()]
    return [pair for pair in found if pair[0].lower() not in _NOT_OURS]


def scope_of(target: bytes, headers: Fields, extensions: dict[str, Any], **server: Any) -> dict[str, Any]:
    """Return what ASGI says of a handshake; `server` is what only the server knows."""
    raw_path, _, query = target.partition(b"#")[0].partition(b"?")
    return {
        "type": "websocket",
        "http_version": "1.1",
        "path": urllib.parse.unquote(raw_path.decode("latin-1")),
        "raw_path": raw_path,
        "query_string": query,
        "headers": headers,
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}, **extensions},
        **server,
    }


def accepted(switch: Fields, headers: Fields) -> bytes:
    """Return the 101 with the app's fields behind our own."""
    return _head(101, [*switch, *headers])


def denied(status: int, headers: Fields, body: bytes) -> bytes:
    """Return an answer in place of a 101; the connection ends behind it."""
    named = {name for name, _ in headers}
    own = [(b"date", http_date()), (b"connection", b"close"), (b"content-length", b"%d" % len(body))]
    return _head(status, [*headers, *(pair for pair in own if pair[0] not in named)]) + body


def _head(status: int, headers: Fields) -> bytes:
    try:
        phrase = http.HTTPStatus(status).phrase.encode()
    except ValueError:  # fal's own invention
        phrase = b""
    lines = [b"HTTP/1.1 %d %b" % (status, phrase), *(name + b": " + value for name, value in headers)]
    return b"\r\n".join([*lines, b"", b""])
