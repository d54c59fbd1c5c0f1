"""Which header fields pass, in both directions, and what we add. Pure functions over raw pairs.

Everything is an allow-list: a field nobody has thought about does not pass. Names arrive lower-cased, as ASGI
promises and as the engine makes them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from email.utils import formatdate
from functools import lru_cache

Headers = list[tuple[bytes, bytes]]

# What a caller may say to fal about its request (fal's common parameters, trace context, content negotiation).
UP = frozenset(
    [
        b"accept",
        b"content-type",
        b"user-agent",
        b"x-fal-request-timeout",
        b"x-fal-request-start-timeout",
        b"x-fal-queue-priority",
        b"x-fal-object-lifecycle",
        b"x-fal-object-lifecycle-preference",
        b"x-app-fal-disable-fallback",
        b"traceparent",
        b"tracestate",
    ]
)

# What travels up with the bytes of a file, and with the CDN's own kind of upload; no fal key is among it.
UP_UPLOAD = frozenset([b"accept", b"content-type", b"user-agent"])
UP_CDN_UPLOAD = UP_UPLOAD | {b"x-fal-object-lifecycle", b"x-fal-object-lifecycle-preference"}
# And with the reading of one, whose answer may be kept by caches as the CDN says.
UP_FILE = frozenset([b"accept", b"accept-encoding", b"user-agent", b"range", b"if-none-match"])
CACHING = frozenset([b"cache-control", b"vary", b"expires", b"age"])

# What remains of that before a socket: the handshake has no body and no answer to negotiate.
UP_SOCKET = frozenset([b"user-agent", b"traceparent", b"tracestate"])

# What a plan may open on top of UP (`allow_headers`): they change what fal stores, retries or routes.
OPTIONAL_UP = frozenset(
    [
        b"x-fal-store-io",
        b"x-fal-runner-hint",
        b"x-fal-no-retry",
        b"x-fal-retry-config",
        b"x-fal-tags",
    ]
)

# More than one line of these would let us judge one value and fal another.
SINGLE_UP = frozenset([b"content-type", b"content-length", b"authorization", b"host", b"x-fal-target-url", b"origin"])

DOWN = frozenset(
    [
        b"content-type",
        b"content-length",
        b"content-encoding",
        b"content-disposition",
        b"date",
        b"retry-after",
        b"etag",
        b"last-modified",
        b"accept-ranges",
        b"content-range",
    ]
)
# An app calling other apps may answer with a token that writes to our CDN account.
NEVER_DOWN = frozenset([b"x-fal-cdn-token"])

EXPOSED = (
    b"x-fal-request-id, x-fal-request-timeout-type, x-fal-error-type, x-fal-needs-retry, x-fal-retryable, "
    b"x-fal-billable-units, x-fal-served-from, x-fal-runner-hints, retry-after, ratelimit, ratelimit-policy"
)

# Every answer: no cache may mix two targets that share our one URL, no browser may run what upstream wrote.
ALWAYS_DOWN: Headers = [
    (b"cache-control", b"no-store"),
    (b"vary", b"x-fal-target-url, origin"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox; default-src 'none'"),
]

# A file has a URL of its own, so that only the page's origin makes two answers of it.
ALWAYS_DOWN_FILE: Headers = [(b"vary", b"origin"), *ALWAYS_DOWN[2:]]

_CONNECTION = frozenset([b"connection", b"proxy-connection"])
_NOTHING: frozenset[bytes] = frozenset()
_OF_THE_CONNECTION = frozenset([b"keep-alive", b"close"])  # what nearly all of these fields say, and names nothing else

# Every script type of MIME Sniffing §4.6 holds one of the four; a page in parts may hold any document.
_ACTIVE = ("html", "svg", "xsl", "javascript", "ecmascript", "jscript", "livescript", "text/css", "x-mixed-replace")

_PREFLIGHT_NAMES_MAX_BYTES = 4096
_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


UNITS_FIELD = b"x-fal-billable-units"
_UNITS = re.compile(rb"[0-9]{1,12}(\.[0-9]{1,8})?")


def values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """Return the value of every line called `name`."""
    return [value for key, value in headers if key == name]


def nominated(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Return the names that the sender's Connection fields declare hop-by-hop (RFC 9110 §7.6.1)."""
    lines = [value for key, value in headers if key in _CONNECTION]
    return frozenset([token.strip().lower() for value in lines for token in value.split(b",")]) if lines else _NOTHING


def to_upstream(headers: Headers, *, optional: Collection[bytes]) -> Headers:
    """Return the caller's fields that may travel up; connection-nominated ones are gone before anything is added."""
    passed: Headers = []
    nominates = False
    for pair in headers:
        name = pair[0]
        if name in UP or name in optional:
            if name == b"x-fal-queue-priority" and pair[1] not in (b"normal", b"low"):
                continue
            passed.append(pair)
        elif name in _CONNECTION and pair[1] not in _OF_THE_CONNECTION:
            nominates = True
    return _without(passed, nominated(headers)) if nominates else passed


def to_upstream_socket(headers: Headers) -> Headers:
    """Return the caller's fields that may travel up with a handshake; those of the handshake itself are ours."""
    return only(headers, UP_SOCKET)


def only(headers: Headers, names: Collection[bytes]) -> Headers:
    """Return the fields of these names, without those that the sender's Connection fields nominate."""
    hop_by_hop = nominated(headers)
    return [pair for pair in headers if pair[0] in names and pair[0] not in hop_by_hop]


def to_handshake(headers: Headers) -> Headers:
    """Return fal's fields that may travel down with a 101."""
    return [pair for pair in to_downstream(headers) if pair[0].startswith(b"x-fal-")]


def to_downstream(headers: Headers) -> Headers:
    """Return fal's fields that may travel down, without those that its Connection fields nominate."""
    passed: Headers = []
    nominates = False
    for pair in headers:
        name, value = pair
        if not (name in DOWN or name.startswith(b"x-fal-")) or name in NEVER_DOWN:
            nominates = nominates or (name in _CONNECTION and value not in _OF_THE_CONNECTION)
        elif name == b"content-type" and is_active(value):
            # Nothing of upstream's may run on the origin of the app that embeds us, in a tag of the app's own either.
            parameters = b"" if b"," in value else value[len(media_type(value)) :]
            passed.append((name, b"text/plain" + parameters))
        else:
            passed.append(pair)
    return _without(passed, nominated(headers)) if nominates else passed


def _without(fields: Headers, names: frozenset[bytes]) -> Headers:
    return [pair for pair in fields if pair[0] not in names]


def media_type(content_type: bytes) -> bytes:
    """Return the part before the parameters, as written."""
    return content_type.partition(b";")[0].rstrip()


@lru_cache(maxsize=128)  # upstream says the same few over and over
def is_active(content_type: bytes) -> bool:
    """Say whether a browser could run this type, as a document, a script, a worker or a style sheet, or find such in it.

    Of a list, browsers take the last (Fetch, "extract a MIME type").
    """
    essences = [media_type(part).strip().lower().decode("latin-1") for part in content_type.split(b",")]
    return any(any(word in essence for word in _ACTIVE) or essence.endswith(("/xml", "+xml")) for essence in essences)


def billable_units(lines: list[bytes]) -> str | None:
    """Return how many units fal billed by these lines of UNITS_FIELD; None unless one line holds a plain number."""
    return lines[0].decode("ascii") if len(lines) == 1 and _UNITS.fullmatch(lines[0]) else None


def http_date() -> bytes:
    """Return the current time as HTTP writes it."""
    return formatdate(usegmt=True).encode()


def cors(origin: bytes | None, *, ours: bool) -> Headers:
    """Return the CORS fields for an Origin that was found acceptable, or those of a same-origin answer."""
    if origin is None:
        return [(b"cross-origin-resource-policy", b"same-origin")]
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-credentials", b"true"),
        (b"access-control-expose-headers", EXPOSED),
        (b"cross-origin-resource-policy", b"same-origin" if ours else b"cross-origin"),
    ]


def preflight(requested: bytes) -> Headers | None:
    """Return the preflight's own fields, echoing the requested names; None when they are no list of tokens."""
    if len(requested) > _PREFLIGHT_NAMES_MAX_BYTES:
        return None
    names = [name.strip(b" \t") for name in requested.split(b",")] if requested.strip() else []
    if not all(name and _TOKEN.issuperset(name) for name in names):
        return None
    fields: Headers = [
        (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
        (b"access-control-max-age", b"600"),
    ]
    if names:
        fields.append((b"access-control-allow-headers", b", ".join(names)))
    return fields
