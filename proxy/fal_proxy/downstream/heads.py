"""May this head be a request at all? Said before the app learns of it; decides nothing about what is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

import httptools

from fal_proxy.downstream.faults import FRAMING, NOT_HTTP, TOO_LARGE, Fault
from fal_proxy.downstream.framing import FRAMING_FIELDS, MAX_FIELDS, body_bytes
from fal_proxy.headers import values

if TYPE_CHECKING:
    from uvicorn._types import HTTPScope

Fields = list[tuple[bytes, bytes]]
_NOTED = FRAMING_FIELDS | {b"expect"}


def judge_head(version: str, parser: httptools.HttpRequestParser, headers: Fields, *, sockets: bool) -> Fault | None:
    """Return what is wrong with a head that was read; `sockets`: this listener has WebSockets."""
    if version not in ("1.0", "1.1"):
        return NOT_HTTP
    if len(headers) > MAX_FIELDS:
        return TOO_LARGE
    if parser.should_upgrade():
        # Behind an Upgrade no body is read, so that one with a body would become another request.
        plain = version == "1.1" and parser.get_method() == b"GET"
        bodiless = not any(values(headers, name) for name in FRAMING_FIELDS)
        return None if sockets and plain and bodiless and asks_for_websocket(headers) else NOT_HTTP
    return None


def asks_for_websocket(headers: Fields) -> bool:
    """Say whether the head asks to go on as a WebSocket, and as nothing else (RFC 6455 §4.1)."""
    return [value.lower() for value in values(headers, b"upgrade")] == [b"websocket"]


def judge_framing(version: str, headers: Fields) -> tuple[int | None, bool, Fault | None]:
    """Return how long the body is (None: chunked), whether it waits for a 100, and what is wrong with its framing."""
    noted = [pair for pair in headers if pair[0] in _NOTED]
    framing = [pair for pair in noted if pair[0] in FRAMING_FIELDS]
    expects = len(noted) > len(framing) and any(n == b"expect" and v.lower() == b"100-continue" for n, v in noted)
    try:
        return body_bytes(framing, version), expects, None
    except ValueError:
        return 0, expects, FRAMING


def describe(scope: HTTPScope, method: bytes, target: bytes, version: str) -> None:
    """Write a request line down in the scope, as ASGI wants to have it."""
    scope["method"] = method.decode("ascii")
    scope["http_version"] = version
    raw_path, _, scope["query_string"] = target.partition(b"#")[0].partition(b"?")
    path = raw_path.decode("latin-1")
    scope["path"] = unquote(path) if "%" in path else path
    scope["raw_path"] = raw_path
