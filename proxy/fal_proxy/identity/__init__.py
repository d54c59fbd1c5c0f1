"""Who is calling: the first source that recognises a request names the caller. Decides nothing about what they may."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Protocol, TypeGuard

import msgspec

from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller
from fal_proxy.request import Request
from fal_proxy.upstream.credentials import looks_like_fal_key

DEFAULT_PLAN = "default"
MAX_NAME_CHARS = 255
MAX_REMEMBERED = 4096
_UNREAD = "not a credential, but that none was looked for"
_CHALLENGE = ((b"www-authenticate", b"Bearer"),)


class Presented(msgspec.Struct, frozen=True):
    """What a request offers as proof."""

    request: Request
    credential: str | None  # of `Authorization: Bearer x` or `Key x`, which mean the same; "": one that is neither


class Source(Protocol):
    """One way to recognise callers."""

    async def identify(self, presented: Presented) -> Caller | None:
        """Return the caller, or None when this source does not know the request."""

    def carried(self, request: Request) -> Collection[str]:
        """Return the identities that a request carries beside the one that it is known by."""

    async def close(self) -> None:
        """Close what the source holds open."""


class Identities:
    """The configured sources, in their order."""

    def __init__(self, sources: Sequence[Source], *, any_scheme: bool = False) -> None:
        """Take `any_scheme` when a source judges Authorization as a whole, so that every scheme is a credential."""
        self._sources = sources
        self._any_scheme = any_scheme
        # Sources that make their callers once get what belongs to them made once, too.
        self._alone: dict[str, tuple[Caller, Caller]] = {}

    async def identify(self, request: Request) -> Caller:
        """Return the caller. Raises Refusal `unidentified`: a credential that no source accepts never falls through.

        Raises Refusal `identity_unavailable` when a source cannot tell right now.
        """
        credential: str | None = request.notes.get(self, _UNREAD)
        if credential is _UNREAD:
            credential = credential_of(request, any_scheme=self._any_scheme)
            request.note(self, credential)
        presented = Presented(request, credential)
        for source in self._sources:
            if caller := await source.identify(presented):
                return caller if caller.proves else self._with_carried(caller, request)
        raise _unidentified(presented.credential)

    def _with_carried(self, caller: Caller, request: Request) -> Caller:
        """Add what else the request proves: a job started before logging in stays reachable."""
        carried = [name for source in self._sources for name in source.carried(request)]
        if carried:
            return replace(caller, proves=frozenset([caller.id, *carried]), owners=(caller.id,))
        known = self._alone.get(caller.id)
        if known is None or known[0] is not caller:
            if len(self._alone) >= MAX_REMEMBERED:
                self._alone.clear()
            known = caller, replace(caller, proves=frozenset([caller.id]), owners=(caller.id,))
            self._alone[caller.id] = known
        return known[1]


def credential_of(request: Request, *, any_scheme: bool = False) -> str | None:
    """Return the presented credential, "" for one that cannot be ours, None when there is none.

    Other schemes than Bearer and Key are ignored, unless `any_scheme`.
    """
    lines = request.lines(b"authorization")
    if not lines:
        return None
    if len(lines) > 1:
        return ""
    scheme, _, credential = lines[0].replace(b"\t", b" ").partition(b" ")
    if scheme.lower() not in (b"bearer", b"key"):
        return "" if any_scheme and lines[0].strip() else None
    return credential.strip().decode("latin-1")


def is_plain_name(value: object) -> TypeGuard[str]:
    """Say whether a value of someone else's can name a caller or a plan: 1 to 255 printable characters."""
    # Lone surrogates, which JSON can spell and UTF-8 cannot, are not printable.
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and value.isprintable()


def _unidentified(credential: str | None) -> Refusal:
    if credential is None:
        detail = "no credential: send `Authorization: Bearer <your user key>`"
    elif looks_like_fal_key(credential):
        detail = (
            "this looks like a fal key, and fal keys do not belong in a client: the proxy holds the only one. "
            "Unset FAL_KEY, or set `credentials` to a user key of this proxy"
        )
    else:
        detail = "this credential is not known here, or no longer"
    return Refusal("unidentified", detail, headers=_CHALLENGE)
