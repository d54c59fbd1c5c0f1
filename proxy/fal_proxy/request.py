"""A request as it arrived, in raw bytes, and what may be remembered of its head. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from fal_proxy.errors import Refusal
from fal_proxy.headers import Headers


class Addressed(msgspec.Struct, frozen=True, gc=False):
    """How a request names its target: the raw bytes, and which of the two spellings carried them."""

    raw: bytes
    header_form: bool


MOST_NOTES = 32  # about one head


class Index(NamedTuple):
    """A list of fields, and the last value of each name in it."""

    headers: Headers
    last: dict[bytes, bytes]


class Request(msgspec.Struct):
    """One request as it arrived, in raw bytes; header names are lower-cased."""

    method: str
    path: bytes
    query: bytes | None  # None: no `?` at all
    headers: Headers  # replaced, never changed: requests with the same head share them
    peer: str  # the socket's other end, "" for a local socket
    scheme: str  # of the socket
    scope: Mapping[str, Any] = msgspec.field(default_factory=dict)  # ASGI's, for the app that we are mounted in
    # What was found out about the very same head before, under its finder's own names; our own server keeps them.
    notes: dict[object, Any] = msgspec.field(default_factory=dict)
    _index: Index | None = None

    @property
    def index(self) -> Index:
        """The fields by name; of what `headers` are now, whoever replaced them."""
        index = self._index
        if index is None or index.headers is not self.headers:
            index = self._index = Index(self.headers, dict(self.headers))
        return index

    def note(self, name: object, found: object) -> None:
        """Remember what follows from this head alone, and from what the name holds."""
        if len(self.notes) >= MOST_NOTES:
            self.notes.clear()  # of one head with many callers
        self.notes[name] = found

    def forget(self) -> None:
        """Let go of the head: what follows may last for hours, and asks it nothing more."""
        self.headers, self.notes, self._index = [], {}, None

    def lines(self, name: bytes) -> list[bytes]:
        """Return the value of every line of this name."""
        last = self.index.last
        value = last.get(name)
        if value is None:
            return []
        if len(last) == len(self.headers):
            return [value]
        return [value for key, value in self.headers if key == name]

    def one(self, name: bytes) -> bytes | None:
        """Return the field's only value, None without one. Raises Refusal `bad_request` for several lines."""
        last = self.index.last
        value = last.get(name)
        if value is not None and len(last) < len(self.headers) and len(self.lines(name)) > 1:
            raise Refusal("bad_request", f"more than one {name.decode('ascii')} field")
        return value
