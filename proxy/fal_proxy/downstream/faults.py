"""What is said to a caller whose request cannot be read: before there is a request, hence without the app."""

from __future__ import annotations

import http
from collections.abc import Mapping
from typing import Any, NamedTuple

from fal_proxy.asgi import EXTENSION
from fal_proxy.downstream.framing import MAX_FIELDS, MAX_HEAD_BYTES
from fal_proxy.errors import ERROR_TYPES, Refusal, render
from fal_proxy.headers import ALWAYS_DOWN, Headers, http_date


def tell(state: Mapping[str, Any], fault: Fault, scope: Any, *, begun: bool = False, answered: bool = True) -> Headers:
    """Let an app that asked for it in its lifespan's `state` know of a refusal; return the CORS fields of the answer."""
    told = state.get(EXTENSION)
    if told is None:
        return []
    fields: Headers = told(Refusal(fault.error_type, fault.detail), scope, begun=begun, answered=answered)
    return fields


class Fault(NamedTuple):
    """Why a request cannot be read."""

    error_type: str
    detail: str
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def answer(self, cors: Headers) -> bytes:
        """Return the whole answer, in the form of all our errors; it announces the end of the connection."""
        status = ERROR_TYPES[self.error_type].status
        own, body = render(self.error_type, self.detail)
        fields = [
            *own,
            *self.headers,
            *cors,
            *ALWAYS_DOWN,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"date", http_date()),
            (b"connection", b"close"),
        ]
        lines = [b"HTTP/1.1 %d %b" % (status, http.HTTPStatus(status).phrase.encode())]
        lines += [name + b": " + value for name, value in fields]
        return b"\r\n".join([*lines, b"", body])


NOT_HTTP = Fault(
    "bad_request", "this is not a request that the proxy can read (HTTP/1.1; of upgrades a plain GET to WebSocket)"
)
NO_HANDSHAKE = Fault("bad_request", "this is no handshake of a WebSocket (RFC 6455, version 13)")
FRAMING = Fault("bad_request", "it is not clear where this request ends: one Content-Length, or chunked alone")
TOO_LARGE = Fault("header_too_large", f"a head may have {MAX_HEAD_BYTES} bytes and {MAX_FIELDS} fields, trailers too")
TOO_SLOW = Fault("request_timeout", "the request took too long to arrive")
LEAVING = Fault("draining", "this proxy is about to end; repeat the request", ((b"retry-after", b"1"),))
