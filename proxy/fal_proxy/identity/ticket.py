"""Tickets: what a page shows to open one realtime socket, because a browser can set no field on a handshake.

A ticket is signed by us and names the caller, the app, the page's origin and its end; it holds nothing secret and is
worth nothing elsewhere. It may open one socket (the gate remembers which were used). Knows no limits and no sockets.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Sequence

import msgspec
from itsdangerous import BadData, URLSafeSerializer

from fal_proxy.environment import Secret
from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller

_SALT = b"fal-proxy realtime ticket"
_MAX_TICKET_BYTES = 4096


class Ticket(msgspec.Struct, frozen=True):
    """What a ticket says."""

    id: str  # of the ticket
    caller: str
    source: str
    plan: str
    network: str
    owners: tuple[str, ...]
    by_network: bool
    app: str  # as fal's token request names it: an alias, owner/alias, or a whole path
    origin: str | None
    ends: float
    seconds: int  # of its whole life: so long its use is remembered, whatever the setting says by then

    def known(self) -> Caller:
        """Return the caller that it was given to; a page had to be asked for it, so nothing is attached by itself."""
        return Caller(
            self.caller,
            self.source,
            self.plan,
            ambient=False,
            by_network=self.by_network,
            network=self.network,
            proves=frozenset([self.caller, *self.owners]),
            owners=self.owners,
        )

    def opens(self, endpoint_id: str) -> bool:
        """Say whether it was asked for this endpoint."""
        app = self.app.removesuffix("/realtime")
        segments = endpoint_id.split("/")
        at = 1 if len(segments) < 3 or segments[0] not in ("workflows", "comfy") else 2
        alias, owned = segments[at], "/".join(segments[: at + 1])
        return app == alias if "/" not in app else app in (owned, endpoint_id)


class Tickets:
    """Issues tickets and reads them back."""

    def __init__(self, signing_secrets: Sequence[Secret], seconds: int, clock: Callable[[], float] = time.time) -> None:
        """Take the signing secrets oldest first; a ticket lives for `seconds`."""
        self._seconds = seconds
        self._clock = clock
        self._signer = URLSafeSerializer(
            [secret.reveal() for secret in signing_secrets],
            salt=_SALT,
            signer_kwargs={"digest_method": hashlib.sha256},
        )

    def issue(self, caller: Caller, app: str, origin: str | None) -> str:
        """Return a ticket for one socket of `app`, opened from the same page."""
        ticket = Ticket(
            secrets.token_urlsafe(12),
            caller.id,
            caller.source,
            caller.plan,
            caller.network,
            caller.owners,
            caller.by_network,
            app,
            origin,
            self._clock() + self._seconds,
            self._seconds,
        )
        return str(self._signer.dumps(msgspec.to_builtins(ticket)))

    def read(self, value: bytes) -> Ticket:
        """Return what a ticket says. Raises Refusal `unidentified` for one that is forged, or over."""
        try:
            if len(value) > _MAX_TICKET_BYTES:
                raise BadData("too long")
            ticket = msgspec.convert(self._signer.loads(value.decode("ascii")), Ticket)
        except (BadData, UnicodeDecodeError, msgspec.ValidationError):
            raise Refusal("unidentified", "fal_jwt_token is no ticket of this proxy's") from None
        if ticket.ends <= self._clock():
            raise Refusal("unidentified", "this ticket is over; ask for another one")
        return ticket
