"""Forward auth: the operator's own service says who a request is of, shown only the fields that the settings list.

Its answers are believed for a while. They are kept under a hash of what was shown, so that no proof of a caller's
stays in memory. What it is asked, it is asked once, however many requests wait for it.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Collection
from typing import Generic, NamedTuple, TypeVar

import msgspec

from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller
from fal_proxy.headers import Headers
from fal_proxy.identity import DEFAULT_PLAN, Presented, is_plain_name
from fal_proxy.identity.anonymous import COOKIE, HOST_COOKIE
from fal_proxy.identity.flights import Flights
from fal_proxy.request import Request
from fal_proxy.settings import ForwardSource
from fal_proxy.upstream.own_calls import OwnCallError, OwnCalls

ASK_SECONDS = 5.0
MAX_BYTES = 64 * 1024
CONNECTIONS = 100
MAX_ENTRIES = 10_000
NO_SECONDS = 1.0
RETRY_SECONDS = 1
_OWN_COOKIES = (COOKIE.encode(), HOST_COOKIE.encode())

_log = logging.getLogger("fal_proxy.identity")
T = TypeVar("T")


class _Answer(msgspec.Struct, frozen=True):
    id: str
    plan: str | None = None


class _Unusable(Exception):
    """An answer that is neither a yes nor a no."""


class Yes(NamedTuple):
    """Who the service says it is."""

    id: str
    plan: str


class ForwardAuth:
    """Recognise whoever the operator's service recognises."""

    def __init__(
        self, settings: ForwardSource, calls: OwnCalls, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take the settings and the client to ask with, which is closed with this."""
        self._url = settings.url
        self._names = frozenset(name.lower().encode("latin-1") for name in settings.headers)
        self._calls = calls
        # Apart, so that a flood of made-up cookies cannot push out what is known of real ones.
        self._known = Remembered[Yes](MAX_ENTRIES, settings.cache_seconds, clock)
        self._unknown = Remembered[None](MAX_ENTRIES, NO_SECONDS, clock)
        self._flights: Flights[Yes | None] = Flights()

    @classmethod
    def of(cls, settings: ForwardSource) -> ForwardAuth:
        """Return the source that `[identity.forward]` describes, with a client of its own."""
        return cls(settings, OwnCalls(seconds=ASK_SECONDS, max_bytes=MAX_BYTES, connections=CONNECTIONS))

    async def identify(self, presented: Presented) -> Caller | None:
        """Return the caller that the service names, None for its no. Raises Refusal `identity_unavailable`."""
        if presented.credential is not None and b"authorization" not in self._names:
            return None  # a credential that the service is not shown, it cannot have accepted
        shown = self._shown(presented.request)
        if not shown:
            return None
        key = _hash_of(shown)
        yes = self._known.get(key)
        if yes is None and key not in self._unknown:
            yes = await self._flights.join(key, lambda: self._ask(key, shown))
        if yes is None:
            return None
        return Caller(f"forward::{yes.id}", "forward", yes.plan, ambient=True)

    def carried(self, request: Request) -> Collection[str]:
        """Return nothing: what this source knows by, it is asked about."""
        return ()

    async def close(self) -> None:
        """End what is under way and close connections."""
        await self._flights.close()
        await self._calls.close()

    def _shown(self, request: Request) -> Headers:
        """Return the listed fields of the request that say anything, without our own cookies."""
        shown: Headers = []
        for name, value in request.headers:
            if name in self._names:
                told = _without_own_cookies(value) if name == b"cookie" else value
                if told.strip():
                    shown.append((name, told))
        lines = sum(name == b"authorization" for name, _ in shown)
        return shown if lines < 2 else []  # two credentials contradict each other

    async def _ask(self, key: bytes, shown: Headers) -> Yes | None:
        try:
            answer = await self._calls.get(self._url, shown)
            if answer.status in (401, 403):
                self._unknown.put(key, None)
                return None
            if answer.status != 200:
                raise _Unusable(f"it answered {answer.status}")
            yes = _read(answer.body)
        except (OwnCallError, _Unusable) as error:
            _log.error("identity.forward: %s", error)
            raise Refusal(
                "identity_unavailable",
                "the service that knows who is calling gives no usable answer right now",
                headers=((b"retry-after", b"%d" % RETRY_SECONDS),),
            ) from error
        self._known.put(key, yes)
        return yes


class Remembered(Generic[T]):
    """A bounded map whose entries all live equally long, so that the oldest is always the first to go."""

    def __init__(self, max_entries: int, seconds: float, clock: Callable[[], float]) -> None:
        self._max_entries = max_entries
        self._seconds = seconds
        self._clock = clock
        self._entries: dict[bytes, tuple[float, T]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        self._forget_expired()
        return key in self._entries

    def get(self, key: bytes) -> T | None:
        """Return what is remembered, None if nothing is."""
        self._forget_expired()
        entry = self._entries.get(key)
        return None if entry is None else entry[1]

    def put(self, key: bytes, value: T) -> None:
        """Remember, for as long as everything else is."""
        self._entries.pop(key, None)
        self._entries[key] = (self._clock() + self._seconds, value)
        if len(self._entries) > self._max_entries:
            del self._entries[next(iter(self._entries))]

    def _forget_expired(self) -> None:
        now = self._clock()
        while self._entries and self._entries[first := next(iter(self._entries))][0] <= now:
            del self._entries[first]


def _read(body: bytes) -> Yes:
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _Unusable('its 200 holds no {"id": "…", "plan": "…"}') from error
    plan = DEFAULT_PLAN if answer.plan is None else answer.plan
    if not is_plain_name(answer.id) or not is_plain_name(plan):
        raise _Unusable("its id or plan is no plain text of 1 to 255 characters")
    return Yes(answer.id, plan)


def _without_own_cookies(value: bytes) -> bytes:
    pairs = value.split(b";")
    kept = [pair for pair in pairs if pair.partition(b"=")[0].strip() not in _OWN_COOKIES]
    return value if len(kept) == len(pairs) else b";".join(kept).strip()


def _hash_of(shown: Headers) -> bytes:
    """Hash names and values with their lengths, so that no two sets of fields look alike."""
    digest = hashlib.sha256()
    for part in (part for pair in shown for part in pair):
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.digest()
