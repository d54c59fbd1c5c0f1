"""What a path on fal.run and queue.fal.run means: the operation, the endpoint id, the request id.

Knows the spellings that clients really use; does not know whether the endpoint or the request exists.
"""

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

Kind = Literal["run", "stream", "realtime", "socket", "submit", "status", "status_stream", "result", "cancel"]

_NAMESPACES = ("workflows", "comfy")  # these ids have one segment more, see parseEndpointId of the JS client
_OPERATIONS: dict[tuple[str, ...], Kind] = {
    (): "result",
    ("response",): "result",
    ("status",): "status",
    ("status", "stream"): "status_stream",
    ("cancel",): "cancel",
}


@dataclass(frozen=True)
class Address:
    """One operation; `endpoint` is what was addressed, without a final /stream or /realtime."""

    kind: Kind
    endpoint: str
    request_id: str = ""

    @property
    def app(self) -> str:
        """The endpoint without its path: owner/alias, with a namespace before it."""
        return app_of(self.endpoint)


def app_of(endpoint: str) -> str:
    """Drop the path of an endpoint id, as fal does in every URL of a queued request."""
    segments = endpoint.split("/")
    return "/".join(segments[: 3 if segments[0] in _NAMESPACES else 2])


def path_of(endpoint: str) -> str:
    """Return the route inside the app that an endpoint id names, '/' when none."""
    return endpoint.removeprefix(app_of(endpoint)) or "/"


def read_run(path: str) -> Address | None:
    """Read a path on fal.run; None when it names no app."""
    segments = _segments(path)
    if segments[-1:] == ["stream"]:
        return _address("stream", segments[:-1])
    return _address("run", segments)


def read_socket(path: str) -> Address | None:
    """Read the path of a WebSocket on fal.run: a realtime route, or a path of the app's own; None when it names no app."""
    segments = _segments(path)
    if segments[-1:] == ["realtime"]:
        return _address("realtime", segments[:-1])
    return _address("socket", segments)


def read_queue(path: str) -> Address | None:
    """Read a path on queue.fal.run; None when it names no operation.

    A queued request is found by its id alone: the JS and Python clients drop the endpoint's path, fal's docs show the
    full one, and fal's own SDK adds a trailing slash.
    """
    segments = _segments(path)
    if "requests" not in segments:
        return _address("submit", segments)
    at = segments.index("requests")
    operation = _OPERATIONS.get(tuple(segments[at + 2 :]))
    if operation is None or len(segments) <= at + 1:
        return None
    return _address(operation, segments[:at], segments[at + 1])


def glob(pattern: str) -> re.Pattern[str]:
    """Compile a glob over slash-separated names: * is one segment, ** any number, x/** also matches x."""
    pieces = re.split(r"(/\*\*/|/\*\*$|^\*\*/|\*\*|\*)", pattern)
    parts = [_GLOBS.get(piece) or re.escape(piece) for piece in pieces]
    return re.compile("".join(parts), re.DOTALL)


_GLOBS = {"/**/": "/(?:.*/)?", "/**": "(?:/.*)?", "**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}


def _segments(path: str) -> list[str]:
    return [unquote(segment) for segment in path.removeprefix("/").removesuffix("/").split("/")]


def _address(kind: Kind, segments: list[str], request_id: str = "") -> Address | None:
    least = 3 if segments[:1] and segments[0] in _NAMESPACES else 2
    if len(segments) < least or not all(segments):
        return None
    return Address(kind, "/".join(segments), request_id)
