"""The words of the domain as values: who calls, what they want, what was decided, what came of it.

No behaviour beyond questions; only the Exchange changes while its request lasts. What every request makes anew is a
msgspec struct, because one costs a tenth of a frozen dataclass.
"""

from __future__ import annotations

import enum
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from hashlib import blake2s
from typing import Any, NamedTuple

import msgspec

from fal_proxy.errors import Refusal


class Traits(NamedTuple):
    """What follows from a kind, whatever the endpoint."""

    paid: bool  # fal bills it, so an unknown outcome must never look repeatable
    json_body: bool  # read (up to JSON_WHOLE_BYTES) before anything is dialled
    answer_whole: bool  # the head goes down only when the answer was read to its end
    survives_departure: bool  # once sent, read to the end even if the caller has left


class Kind(enum.Enum):
    """What a request is. Limits, policy, accounting and telemetry all speak of kinds."""

    RUN = "run"
    STREAM = "stream"
    SUBMIT = "submit"
    STATUS = "status"
    STATUS_STREAM = "status_stream"
    RESULT = "result"
    CANCEL = "cancel"
    REALTIME = "realtime"
    TOKEN = "token"
    WMA = "wma"
    UPLOAD_INITIATE = "upload_initiate"
    UPLOAD_TOKEN = "upload_token"
    UPLOAD_PART = "upload_part"
    FILE = "file"
    WEBHOOK = "webhook"
    EVENTS = "events"

    traits: Traits  # what follows from this kind

    __hash__ = object.__hash__  # members are singletons, and Enum's own is a Python call in every lookup


_TRAITS = {
    Kind.RUN: Traits(paid=True, json_body=True, answer_whole=False, survives_departure=False),
    Kind.STREAM: Traits(paid=True, json_body=True, answer_whole=False, survives_departure=False),
    Kind.SUBMIT: Traits(paid=True, json_body=True, answer_whole=True, survives_departure=True),
    Kind.STATUS: Traits(paid=False, json_body=False, answer_whole=False, survives_departure=False),
    Kind.STATUS_STREAM: Traits(paid=False, json_body=False, answer_whole=False, survives_departure=False),
    Kind.RESULT: Traits(paid=False, json_body=False, answer_whole=False, survives_departure=False),
    Kind.CANCEL: Traits(paid=False, json_body=False, answer_whole=False, survives_departure=False),
    Kind.REALTIME: Traits(paid=True, json_body=False, answer_whole=False, survives_departure=False),
    Kind.TOKEN: Traits(paid=True, json_body=True, answer_whole=True, survives_departure=True),
    Kind.WMA: Traits(paid=True, json_body=True, answer_whole=True, survives_departure=True),
    Kind.UPLOAD_INITIATE: Traits(paid=False, json_body=True, answer_whole=True, survives_departure=True),
    Kind.UPLOAD_TOKEN: Traits(paid=False, json_body=True, answer_whole=True, survives_departure=False),
    Kind.UPLOAD_PART: Traits(paid=False, json_body=False, answer_whole=True, survives_departure=False),
    Kind.FILE: Traits(paid=False, json_body=False, answer_whole=False, survives_departure=False),
    Kind.WEBHOOK: Traits(paid=False, json_body=True, answer_whole=True, survives_departure=False),
    Kind.EVENTS: Traits(paid=False, json_body=False, answer_whole=False, survives_departure=False),
}

for _kind, _traits in _TRAITS.items():
    _kind.traits = _traits  # an attribute: every request asks for it several times


class Target(msgspec.Struct, frozen=True, gc=False):
    """Where a request goes, rebuilt from parts that were each understood.

    `host`, `path` and `query` are the exact bytes that will be sent; `endpoint_id` is for matching only.
    """

    host: bytes
    path: bytes
    query: bytes | None
    kind: Kind
    endpoint_id: str = ""
    request_id: str = ""
    webhook: bytes | None = None

    @property
    def path_and_query(self) -> bytes:
        """Return the origin-form request target (RFC 9112 §3.2.1)."""
        return self.path if self.query is None else self.path + b"?" + self.query


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling. `id` is `source:issuer:subject`; two sources can never mean the same caller."""

    id: str
    source: str
    plan: str
    ambient: bool  # the browser attaches the proof by itself, so the page behind it must be checked
    by_network: bool = False
    network: str = ""  # id of the network behind an anonymous caller, which has limits of its own
    proves: frozenset[str] = frozenset()  # every identity that the request carries; any of them reaches what it owns
    owners: tuple[str, ...] = ()  # of what this request submits; nobody: whoever knows the request id
    set_cookie: bytes | None = field(default=None, compare=False)

    @property
    def shown(self) -> str:
        """Return the form of the id that people, logs and metrics may see."""
        return shown_of(self.id)


@lru_cache(maxsize=4096)
def shown_of(caller_id: str) -> str:
    """Return the form of a caller's or a network's id that people, logs and metrics may see."""
    return blake2s(caller_id.encode(), digest_size=6).hexdigest()


class Payer(NamedTuple):
    """Who pays for a reservation, and for what, as lines and metrics may say it; kept with it, for whoever settles it."""

    plan: str = ""
    caller: str = ""  # as shown
    source: str = ""
    endpoint_id: str = ""


_ids = random.Random()  # noqa: S311 -- an id is no secret, and asking the system for it costs more than all the rest of it


def _new_id() -> str:
    return f"{_ids.getrandbits(48):012x}"


ADMITTED = "admitted"  # the decision about an exchange that nothing refused
PREFLIGHT = "preflight"  # shown in place of a kind: the browser's question before the request itself
NO_KIND = "none"  # shown in place of a kind: refused before the target was understood
SETTLED = "settled"  # shown in place of a kind: no request, but what the settler learnt of a job that nobody polls


class Receipt(enum.Enum):
    """What became of a webhook."""

    FILED = "filed"
    DUPLICATE = "duplicate"  # its request id has an event already; nothing changed
    NO_CAPABILITY = "no_capability"  # its address is none of ours
    EXPIRED = "expired"  # its address was one
    MALFORMED = "malformed"  # not the four fields and the body of a webhook, or of two request ids
    UNTIMELY = "untimely"  # signed too long ago, or in the future
    TOO_LARGE = "too_large"
    UNKNOWN_REQUEST = "unknown_request"  # no job that the address was given for, or not yet
    FORGED = "forged"  # no key of fal's made the signature
    UNJUDGED = "unjudged"  # too many were refused from there to look at another signature
    UNAVAILABLE = "unavailable"  # fal's keys, or what keeps events, could not be asked


class Attempt(enum.Enum):
    """What became of an attempt to deliver an event to the app's own server."""

    DELIVERED = "delivered"
    FAILED = "failed"  # there will be another
    GIVEN_UP = "given_up"


class Reload(enum.Enum):
    """What became of settings that were read anew."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    REFUSED = "refused"  # those before them stay in force


class Ending(enum.Enum):
    """How the caller's answer ended."""

    COMPLETE = "complete"  # an answer of fal's, or a preflight's, went down to its clean end
    REFUSED = "refused"  # an error of ours went down instead
    CUT = "cut"  # broken off after its head by upstream, or at any time by the end of this process
    CLIENT_GONE = "client_gone"  # the caller left first
    FAULT = "fault"  # a bug of ours

    __hash__ = object.__hash__  # as above


class Trace(NamedTuple):
    """Where an exchange stands in a trace. It has its ids from the beginning, because fal is told one of them."""

    context: Any  # the caller's span, in OpenTelemetry's form
    trace_id: int
    server_id: int  # of the span of the whole exchange
    client_id: int  # of the span of its call to fal
    began_ns: int  # since 1970
    method: str
    scheme: str
    route: str  # as a template


class Exchange(msgspec.Struct, eq=False):
    """One request below the mount and what came of it. The gateway fills it, the relay its upstream part.

    Holds no field, query or body of either side. All seconds count from `started`, except `dialled_seconds`.
    """

    clock: Callable[[], float] = time.monotonic
    id: str = msgspec.field(default_factory=_new_id)
    started: float = msgspec.field(default_factory=time.monotonic)  # by `clock`
    trace: Trace | None = None  # without tracing, or of what is not sampled

    caller: Caller | None = None
    plan: str | None = None  # its name; metrics name only those of the settings
    preflight: bool = False
    settled: bool = False  # by the settler
    payer: Payer | None = None  # of what was settled: there is no caller
    kind: Kind | None = None
    endpoint_id: str = ""
    request_id: str = ""  # fal's: of the job that is asked about, or of the answer
    decision: str = ADMITTED  # or the error type of the refusal
    reason: str = ""  # one sentence about a refusal or a cut; holds no credential

    status: int | None = None  # of the answer that went down
    bytes_up: int = 0  # of the request body, sent to upstream
    bytes_down: int = 0  # of the answer's body, sent to the caller
    host: str = ""  # of fal's, that was called; this and the next two are noted for a trace only
    asked_seconds: float | None = None  # until its call to fal began
    answered_seconds: float | None = None  # until fal's answer had ended; None: with the exchange, or not at all
    dialled_seconds: float | None = None  # how long dialling took; None: a connection was reused, or none needed
    reused: bool = False  # the connection had carried another call before
    written: bool = False  # a request byte may have reached upstream
    upstream_status: int | None = None
    first_byte_seconds: float | None = None  # until the head of upstream's answer
    whole: bool = False  # upstream's answer was read to its clean end
    named: bool = False  # upstream's answer carried x-fal-request-id: it came from a job, not from something before it
    units: str | None = None  # what fal billed, as fal wrote it
    cost_microusd: int | None = None
    ended_seconds: float | None = None
    ended_at: datetime | None = None
    ending: Ending = Ending.COMPLETE

    @property
    def elapsed_seconds(self) -> float:
        """Return the time since it began."""
        return self.clock() - self.started

    @property
    def kind_shown(self) -> str:
        """Return what logs and metrics call its kind: a Kind, PREFLIGHT, SETTLED or NO_KIND, and nothing else."""
        if self.kind is not None:
            name: str = self.kind._value_  # what `value` is, without two calls
            return name
        if self.settled:
            return SETTLED
        return PREFLIGHT if self.preflight else NO_KIND

    def about(self, target: Target) -> None:
        """Note what is asked for."""
        self.kind, self.endpoint_id, self.request_id = target.kind, target.endpoint_id, target.request_id

    def left(self, answered: Refusal | None, *, cut: bool) -> None:
        """Note that nobody waits for an answer: the server has `answered`, or `cut` the connection, or the caller left."""
        if answered is not None:
            self.status = answered.status
            self.refused(answered)
        elif cut:
            self.ending, self.reason = Ending.CUT, "the proxy ended"
        else:
            self.ending = Ending.CLIENT_GONE

    def refused(self, refusal: Refusal, ending: Ending = Ending.REFUSED) -> None:
        """Note that an error of ours answers."""
        self.decision, self.reason, self.ending = refusal.error_type, refusal.detail, ending
