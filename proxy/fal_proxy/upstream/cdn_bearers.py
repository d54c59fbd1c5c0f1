"""The bearers of fal's CDN: asked for with a fal key, kept until they end, given to nobody. Knows no uploads."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from fal_proxy.errors import UpstreamInvalid
from fal_proxy.headers import Headers
from fal_proxy.upstream.dial import Route
from fal_proxy.upstream.engine import Engine
from fal_proxy.upstream.keys import Key

_HOST = b"rest.fal.ai"
_PATH = b"/storage/auth/token?storage_type=fal-cdn-v3"
_ASK = b"{}"
_HEAD_SECONDS = 20.0
_ANSWER_BYTES = 64 * 1024
_MARGIN_SECONDS = 60.0  # so long before its end a bearer is replaced
_CREDENTIAL = re.compile(r"[A-Za-z]+ [!-~]+")


class _Token(msgspec.Struct):
    token: str
    token_type: str
    expires_at: datetime


@dataclass(slots=True)
class _Kept:
    """One key's bearer; `asking` lets one request at a time ask for it."""

    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    value: bytes = field(default=b"", repr=False)
    ends: float = 0.0


class CdnBearers:
    """One bearer per fal key."""

    def __init__(self, engine: Engine, route: Route, mark: Headers, clock: Callable[[], float] = time.time) -> None:
        """Take `mark`: the fields that all our own requests carry."""
        self._engine = engine
        self._route = route
        self._mark = mark
        self._clock = clock
        self._kept: dict[str, _Kept] = {}

    async def of(self, key: Key) -> bytes:
        """Return the value of Authorization for the CDN. Raises UpstreamError, with nothing written of the upload."""
        kept = self._kept.setdefault(key.id, _Kept())
        async with kept.asking:
            if kept.ends - _MARGIN_SECONDS <= self._clock():
                token = await self._ask(key)
                kept.value = f"{token.token_type} {token.token}".encode("ascii")
                kept.ends = token.expires_at.timestamp()
            return kept.value

    def forget(self, key: Key) -> None:
        """Ask anew next time: the CDN has refused the bearer."""
        self._kept.pop(key.id, None)

    async def _ask(self, key: Key) -> _Token:
        origin, target = self._route.to(_HOST, _PATH)
        call = await self._engine.open(origin)
        try:
            fields = [(b"accept", b"application/json"), (b"content-type", b"application/json"), *self._mark, key.field]
            call.start(b"POST", target, fields, length=len(_ASK), body=_ASK)
            head = await call.head(_HEAD_SECONDS)
            body = b""
            while (data := await call.read(_HEAD_SECONDS)) and len(body) <= _ANSWER_BYTES:
                body += data
        finally:
            call.release()
        key.answered(head.status, body, from_job=False, paid=False)
        if head.status != 200:
            raise UpstreamInvalid(f"fal answered the question for a storage token with {head.status}")
        try:
            token = msgspec.json.decode(body, type=_Token)
        except (msgspec.DecodeError, ValueError):
            raise UpstreamInvalid("fal's storage token makes no sense") from None
        if token.expires_at.tzinfo is None or not _CREDENTIAL.fullmatch(f"{token.token_type} {token.token}"):
            raise UpstreamInvalid("fal's storage token makes no sense")
        return token
