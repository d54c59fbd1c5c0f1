"""The last requests, as they left the browser and as they reached fal, with every secret hidden before it is shown.

Nothing of this is in the proxy: it watches from in front of it, and reads the journal of a fal in the same process.
"""

from __future__ import annotations

import itertools
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fal_proxy.relay.inbound import Message, Receive, Send
from fal_proxy.request import Request

HIDDEN = "•" * 8
KEPT = 32  # requests, and as many polls
_KEPT_BODY_BYTES = 64 * 1024
_SHOWN_BODY_CHARS = 400
_SHOWN_QUERY = frozenset(["logs", "storage_type", "max_buffering"])  # whose values hold no secret
_LONG_DATA = re.compile(r"(data:[a-z0-9/+.-]{1,40};base64,)[A-Za-z0-9+/=]{40,}")


class Arrived(Protocol):
    """What the trace reads of an entry in fal's journal."""

    method: str
    host: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    body_bytes: int
    status: int | None


@dataclass(eq=False)
class Seen:
    """One request for fal as it reached us; `body` is its first _KEPT_BODY_BYTES, `host` is empty for an upload's URL."""

    number: int
    at: float
    request: Request
    host: str
    target: bytes
    before: Arrived | None  # the last that had reached fal by then
    body: bytearray = field(default_factory=bytearray)
    body_bytes: int = 0
    status: int | None = None  # of the answer that the browser gets, None while there is none
    arrived: Arrived | None = None

    @property
    def polling(self) -> bool:
        """Say whether this only asks how a job stands."""
        return self.host == "queue.fal.run" and self.request.method == "GET"


class Trace:
    """Watches requests go by and shows the last ones."""

    def __init__(self, mounts: Sequence[str], journal: Sequence[Arrived], secrets: Callable[[], Iterable[str]]) -> None:
        self._mounts = tuple(mount.encode() + b"/" for mount in mounts)
        self._journal = journal
        self._secrets = secrets
        self._numbers = itertools.count(1)
        self._requests: deque[Seen] = deque(maxlen=KEPT)
        self._polls: deque[Seen] = deque(maxlen=KEPT)

    def watch(self, request: Request, receive: Receive, send: Send) -> tuple[Receive, Send]:
        """Remember a request if it is one for fal; return `receive` and `send` for whoever answers it."""
        aim = self._aim(request)
        if aim is None:
            return receive, send
        before = self._journal[-1] if self._journal else None
        seen = Seen(next(self._numbers), time.time(), request, *aim, before)
        (self._polls if seen.polling else self._requests).append(seen)

        async def receiving() -> Message:
            message = await receive()
            body: bytes = message.get("body") or b""
            seen.body_bytes += len(body)
            seen.body += body[: max(0, _KEPT_BODY_BYTES - len(seen.body))]
            return message

        async def sending(message: Message) -> None:
            if seen.status is None:
                seen.arrived = self._match(seen)
                seen.status = message.get("status", 101)  # a socket's acceptance has none
            await send(message)

        return receiving, sending

    def shown(self) -> list[dict[str, Any]]:
        """Return the last requests, newest first."""
        everything = sorted([*self._requests, *self._polls], key=lambda seen: -seen.number)
        return [self._shown(seen) for seen in everything]

    def _aim(self, request: Request) -> tuple[str, bytes] | None:
        """Return the host and the target that a request is for, None if it is not for fal."""
        mount = next((mount for mount in self._mounts if (request.path + b"/").startswith(mount)), None)
        if mount is None or request.method == "OPTIONS":
            return None
        named = [value for name, value in request.headers if name == b"x-fal-target-url"]
        rest = named[0].removeprefix(b"https://") if named else request.path[len(mount) :]
        host, _, path = rest.partition(b"/")
        if host == b"uploads":
            return "", b""
        if b"." not in host or host.startswith(b"client."):
            return None
        target = b"/" + path
        if not named and request.query is not None:
            target += b"?" + request.query
        return host.decode("latin-1").lower(), target

    def _match(self, seen: Seen) -> Arrived | None:
        """Return what became of a request at fal: later, the same method, address and bytes, and nobody else's."""
        taken = {id(other.arrived) for other in (*self._requests, *self._polls)}
        address = _without_ticket(seen.target)
        same: list[Arrived] = []
        for entry in reversed(self._journal):
            if entry is seen.before:
                break
            addressed = (entry.host, _without_ticket(entry.target)) == (seen.host, address)
            # Where an upload goes is sealed in its URL; its bytes tell.
            alike = addressed if seen.host else entry.body_bytes == seen.body_bytes
            if alike and entry.method == seen.request.method and id(entry) not in taken:
                same.append(entry)
        exact = [entry for entry in same if entry.body == seen.body]
        # A token request is built anew, so that its bytes are not the caller's.
        chosen = exact or (same if seen.host else [])
        return chosen[-1] if chosen else None

    def _shown(self, seen: Seen) -> dict[str, Any]:
        request = seen.request
        arrived = self._match(seen) if seen.status is None else seen.arrived
        target = request.path if request.query is None else request.path + b"?" + request.query
        fal = None
        if arrived is not None:
            fal = self._side(arrived.method, arrived.target, arrived.headers, arrived.body, arrived.body_bytes)
            fal |= {"host": arrived.host, "status": arrived.status}
        browser = self._side(request.method, target, request.headers, bytes(seen.body), seen.body_bytes)
        name = seen.host + _target(seen.target) if seen.host else "the bytes of a file"
        return {
            "number": seen.number,
            "name": self._hidden(name),
            "at": seen.at,
            "polling": seen.polling,
            "status": seen.status,
            "browser": browser,
            "fal": fal,
        }

    def _side(
        self, method: str, target: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes, size: int
    ) -> dict[str, Any]:
        fields = [[name.decode("latin-1"), self._hidden(_field(name, value))] for name, value in headers]
        kind = next((value for name, value in headers if name == b"content-type"), b"").decode("latin-1")
        return {
            "method": method,
            "target": self._hidden(_target(target)),
            "headers": fields,
            "body": self._hidden(_body(kind, body, size)),
        }

    def _hidden(self, text: str) -> str:
        """Hide what no rule of form has hidden: a secret that stands where none belongs."""
        for secret in self._secrets():
            text = text.replace(secret, HIDDEN)
        return text


def _field(name: bytes, value: bytes) -> str:
    text = value.decode("latin-1")
    if name in (b"authorization", b"proxy-authorization"):
        scheme, _, credential = text.partition(" ")
        return f"{scheme} {'fpk_' if credential.startswith('fpk_') else ''}{HIDDEN}"
    if name == b"cookie":
        return "; ".join(f"{part.partition('=')[0].strip()}={HIDDEN}" for part in text.split(";"))
    if name in (b"x-fal-target-url", b"referer"):
        return _target(value)
    return text


def _target(target: bytes) -> str:
    """Return a path, or a URL, without what its query or an upload's capability would give away."""
    path, mark, query = target.decode("latin-1").partition("?")
    path = re.sub(r"(/uploads/)[^/]+", rf"\1{HIDDEN}", path)
    pairs = [pair.partition("=") for pair in query.split("&")] if query else []
    return path + mark + "&".join(f"{name}={value if name in _SHOWN_QUERY else HIDDEN}" for name, _, value in pairs)


def _without_ticket(target: bytes) -> bytes:
    """Return an address as both sides know it: a ticket is ours, and fal never sees it."""
    path, _, query = target.partition(b"?")
    return path + b"?" + b"&".join(pair for pair in query.split(b"&") if not pair.startswith(b"fal_jwt_token="))


def _body(kind: str, body: bytes, size: int) -> str:
    if not size:
        return ""
    if "json" not in kind and not kind.startswith("text/"):
        return f"({size} bytes of {kind or 'no type'})"
    text = _LONG_DATA.sub(r"\1…", body.decode("utf-8", "replace"))
    return text if len(text) <= _SHOWN_BODY_CHARS else text[:_SHOWN_BODY_CHARS] + "…"
