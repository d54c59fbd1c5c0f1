"""Who is calling: the first source that recognises a request names the caller. Decides nothing about what they may."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller, Request
from fal_proxy.upstream.credentials import looks_like_fal_key

_CHALLENGE = ((b"www-authenticate", b"Bearer"),)


class Presented(NamedTuple):
    """What a request offers as proof."""

    request: Request
    credential: str | None  # of `Authorization: Bearer x` or `Key x`, which mean the same


class Source(Protocol):
    """One way to recognise callers."""

    def identify(self, presented: Presented) -> Caller | None:
        """Return the caller, or None when this source does not know the request."""


class Identities:
    """The configured sources, in their order."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def identify(self, request: Request) -> Caller:
        """Return the caller. Raises Refusal `unidentified`; a presented credential never falls through to anonymous."""
        presented = Presented(request, credential_of(request))
        for source in self._sources:
            if caller := source.identify(presented):
                return caller
        raise _unidentified(presented.credential)


def credential_of(request: Request) -> str | None:
    """Return the presented credential, "" for a malformed one, None when there is none (other schemes are ignored)."""
    lines = [value for name, value in request.headers if name == b"authorization"]
    if not lines:
        return None
    if len(lines) > 1:
        return ""
    scheme, _, credential = lines[0].replace(b"\t", b" ").partition(b" ")
    if scheme.lower() not in (b"bearer", b"key"):
        return None
    return credential.strip().decode("latin-1")


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
