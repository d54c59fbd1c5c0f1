"""A request as it arrived, in raw bytes, and what may be remembered of its head. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from fal_proxy.errors import Refusal


class Addressed(msgspec.Struct, frozen=True, gc=False):
    """How a request names its target: the raw bytes, and which of the two spellings carried them."""

    raw: bytes
    header_form: bool


MOST_NOTES = 32  # about one head


class Request(msgspec.Struct):
    """One request as it arrived, in raw bytes; header names are lower-cased."""

    method: str
    path: bytes
    query: bytes | None  # None: no `?` at all
    headers: list[tuple[bytes, bytes]]
    peer: str  # the socket's other end, "" for a local socket
    scheme: str  # of the socket
    scope: Mapping[str, Any] = msgspec.field(default_factory=dict)  # ASGI's, for the app that we are mounted in
    _values: dict[bytes, bytes] = msgspec.field(default_factory=dict)  # the last of each name
    # What was found out about the very same head before, under its finder's own names; our own server keeps them.
    notes: dict[object, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self._values:
            self._values = dict(self.headers)

    def note(self, name: object, found: object) -> None:
        """Remember what follows from this head alone, and from what the name holds."""
        if len(self.notes) >= MOST_NOTES:
            self.notes.clear()  # of one head with many callers
        self.notes[name] = found

    def lines(self, name: bytes) -> list[bytes]:
        """Return the value of every line of this name."""
        value = self._values.get(name)
        if value is None:
            return []
        if len(self._values) == len(self.headers):
            return [value]
        return [value for key, value in self.headers if key == name]

    def one(self, name: bytes) -> bytes | None:
        """Return the field's only value, None without one. Raises Refusal `bad_request` for several lines."""
        value = self._values.get(name)
        if value is not None and len(self._values) < len(self.headers) and len(self.lines(name)) > 1:
            raise Refusal("bad_request", f"more than one {name.decode('ascii')} field")
        return value
