"""Heads that came before, byte for byte, as what they were read.

A poll, and every call of one page to one endpoint, begins with the very same bytes time and again. What follows from
these bytes alone needs to be found out once: what the parser says of them, and, in `notes`, what an app decides by them.
Who calls does not follow from them: a key may be revoked between two requests.

Callers' credentials are among these bytes, so they are kept for a minute or two, not for the life of the process.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fal_proxy.asgi import Scope

KEPT_SECONDS = 60.0  # at least, and at most twice as long, after they came last
MOST_HEADS = 512  # of each age; 6 to 7 kB each, with their notes, and 12 at most
MOST_BYTES = 4096  # of one of them
MOST_FIELDS = 40  # in it; browsers send two dozen
OF_THE_CONNECTION = frozenset(["server", "client", "scheme", "state"])  # what a scope holds beside what a head says


class KnownHead:
    """One head that was read and judged, of a request whose body has a known length."""

    __slots__ = ("body_bytes", "notes", "persistent", "scope", "target")

    def __init__(self, scope: Scope, target: bytes, body_bytes: int, *, persistent: bool) -> None:
        """Take the scope as far as it follows from the head, and whether the connection may go on afterwards."""
        self.scope = {name: value for name, value in scope.items() if name not in OF_THE_CONNECTION}
        self.target = target
        self.body_bytes = body_bytes
        self.persistent = persistent
        self.notes: dict[object, Any] = {}


class KnownHeads:
    """The heads of one server's requests, in two ages: what comes again becomes young again, the old ones end together."""

    def __init__(self) -> None:
        self._young: dict[bytes, KnownHead] = {}
        self._old: dict[bytes, KnownHead] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Count them."""
        return len(self._young) + len(self._old)

    def find(self, head: bytes) -> KnownHead | None:
        """Return what is known of a head."""
        known = self._young.get(head)
        if known is None and (known := self._old.pop(head, None)) is not None:
            self.keep(head, known)
        return known

    def keep(self, head: bytes, known: KnownHead) -> None:
        """Remember a head, unless it is large."""
        if len(head) > MOST_BYTES or head.count(b"\n") > MOST_FIELDS:
            return
        if len(self._young) >= MOST_HEADS:
            self.age()
        self._young[head] = known
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(KEPT_SECONDS, self._pass)

    def age(self) -> None:
        """Let the young ones become old, and forget those that were."""
        self._old, self._young = self._young, {}

    def _pass(self) -> None:
        self.age()
        self._timer = asyncio.get_running_loop().call_later(KEPT_SECONDS, self._pass) if self._old else None
