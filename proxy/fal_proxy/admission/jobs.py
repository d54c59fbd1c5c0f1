"""What fal's queue answers say about a job: its id when it is submitted, and when it is COMPLETED."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

_NAMESPACES = ("workflows", "comfy")
_ADDRESSED = "/queue.fal.run/"  # behind another proxy, the queue is a path of that one
_MAX_LINE_BYTES = 1024 * 1024


class Submitted(NamedTuple):
    """A job that fal accepted: its id, and the app under which fal itself speaks of it."""

    request_id: str
    app: str


def app_of(endpoint_id: str) -> str:
    """Return owner/alias of an endpoint, with its namespace."""
    segments = endpoint_id.split("/")
    return "/".join(segments[: 3 if segments[0] in _NAMESPACES else 2])


def read_submitted(body: bytes, endpoint_id: str) -> Submitted | None:
    """Return what a submit's answer names, None when it names nothing."""
    answer = _decode(body)
    request_id = answer.get("request_id")
    if not isinstance(request_id, str) or not 0 < len(request_id) <= 128:
        return None
    response_url = answer.get("response_url")
    path = urlsplit(response_url).path if isinstance(response_url, str) else ""
    app = app_of(path.rpartition(_ADDRESSED)[2].strip("/"))
    return Submitted(request_id, app or app_of(endpoint_id))


def is_completed(status_body: bytes) -> bool:
    """Say whether a status object tells of completion."""
    return _decode(status_body).get("status") == "COMPLETED"


class StatusEvents:
    """Watch a status stream go by for the event that tells of completion."""

    def __init__(self) -> None:
        self._line = b""

    def feed(self, data: bytes) -> bool:
        """Return whether a COMPLETED event ended within what has been fed."""
        # CR, LF and CRLF end a line (WHATWG HTML §9.2.5); the empty one within a CRLF says nothing.
        *lines, self._line = (self._line + data.replace(b"\r", b"\n")).split(b"\n")
        if len(self._line) > _MAX_LINE_BYTES:
            self._line = b"?"  # the rest of it begins no line
        return any(b"COMPLETED" in line and line.startswith(b"data:") and is_completed(line[5:]) for line in lines)


def _decode(body: bytes) -> dict[str, Any]:
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}
