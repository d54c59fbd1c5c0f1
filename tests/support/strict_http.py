"""HTTP/1.1 requests read the strictest way that RFC 9112 allows: a second opinion that shares nothing with our parser."""

from __future__ import annotations

import re
from typing import NamedTuple

_LINE = re.compile(rb"([A-Z]+) ([!-~]+) HTTP/1\.[01]")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[!-~\x80-\xff]+(?:[ \t]+[!-~\x80-\xff]+)*)?)[ \t]*")
_CHUNK = re.compile(rb"(0*[0-9A-Fa-f]{1,16})(?:[ \t]*;[\t -~\x80-\xff]*)?\r\n")


class StrictRequest(NamedTuple):
    """One complete request."""

    method: bytes
    target: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes

    def values(self, name: bytes) -> list[bytes]:
        """Return a field's values."""
        return [value for key, value in self.fields if key == name]


def parse(stream: bytes) -> tuple[list[StrictRequest], bytes]:
    """Return the complete requests at the beginning of `stream`, and the bytes from where it is not one any more."""
    requests: list[StrictRequest] = []
    while stream:
        found = _one(stream)
        if found is None:
            break
        request, stream = found
        requests.append(request)
    return requests, stream


def _one(stream: bytes) -> tuple[StrictRequest, bytes] | None:
    if stream.startswith(b"\r\n"):
        stream = stream[2:]
    head, end, rest = stream.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    line = _LINE.fullmatch(first)
    matches = [_FIELD.fullmatch(field) for field in lines]
    if not end or line is None or not all(matches):
        return None
    fields = [(match[1].lower(), match[2]) for match in matches if match is not None]
    framing = [(name, value) for name, value in fields if name in (b"content-length", b"transfer-encoding")]
    if not framing:
        return StrictRequest(line[1], line[2], fields, b""), rest
    (name, value), *others = framing
    if others:
        return None
    if name == b"transfer-encoding":
        body = _chunks(rest) if value.lower() == b"chunked" else None
    elif re.fullmatch(rb"[0-9]{1,18}", value) and len(rest) >= int(value):
        body = rest[: int(value)], rest[int(value) :]
    else:
        body = None
    return None if body is None else (StrictRequest(line[1], line[2], fields, body[0]), body[1])


def _chunks(rest: bytes) -> tuple[bytes, bytes] | None:
    body = b""
    while (match := _CHUNK.match(rest)) is not None:
        size, rest = int(match[1], 16), rest[match.end() :]
        if size == 0:
            while not rest.startswith(b"\r\n"):
                trailer, end, rest = rest.partition(b"\r\n")
                if not end or not _FIELD.fullmatch(trailer):
                    return None
            return body, rest[2:]
        if rest[size : size + 2] != b"\r\n":
            return None
        body, rest = body + rest[:size], rest[size + 2 :]
    return None
