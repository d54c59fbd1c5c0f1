"""Everything that can go wrong, as one tree, and the one rendering of what callers see.

    FalProxyError
    ├── Refusal                 what a caller is told; its type is a row of ERROR_TYPES
    ├── UpstreamError           what the engine reports; `written` says whether a request byte had left
    │   ├── ConnectError        no connection: refused, unresolvable, forbidden address, TLS, too slow
    │   ├── ConnectTimeout
    │   ├── UpstreamTimeout     connected, then silent: no head, no body progress, not reading
    │   ├── UpstreamCut         the connection ended before the answer did
    │   └── UpstreamInvalid     the answer breaks HTTP, or breaks a promise that we rely on
    ├── StoreUnavailable        what counts and remembers cannot answer; nothing that costs money is let through
    ├── ClientGone              the caller left; nobody is there to be told
    └── Misconfigured           cannot start; carries every finding

Nothing here knows ASGI, and no text here may hold a credential.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class ErrorType(NamedTuple):
    """One row of the contract's error table: the HTTP status and when it is meant."""

    status: int
    meaning: str


ERROR_TYPES: dict[str, ErrorType] = {
    "invalid_target": ErrorType(400, "the target is not one that the grammar knows"),
    "bad_request": ErrorType(400, "the request itself is malformed or contradicts itself"),
    "unidentified": ErrorType(401, "no credential, or one that no identity source accepts"),
    "budget_exhausted": ErrorType(402, "a budget is used up; the text says whose, and until when"),
    "origin_denied": ErrorType(403, "the page that sent this is not ours and is not listed in cors.origins"),
    "endpoint_denied": ErrorType(403, "the caller's plan does not open this endpoint"),
    "webhook_denied": ErrorType(403, "`fal_webhook` names no host of `webhooks.allowed_hosts`, or not plainly"),
    "blocked": ErrorType(403, "the operator has blocked this caller, or stopped everything that costs money"),
    "mode_off": ErrorType(403, "this deployment does not offer the feature"),
    "unknown_request": ErrorType(404, "no such request id, or somebody else's"),
    "not_found": ErrorType(404, "no such route"),
    "method_not_allowed": ErrorType(405, "the target exists, the method does not fit it"),
    "request_timeout": ErrorType(408, "the request's head or body came too slowly; the connection is closed"),
    "capability_expired": ErrorType(410, "the time of an upload URL, an upload token or a webhook is over"),
    "length_required": ErrorType(411, "an upload needs a Content-Length"),
    "body_too_large": ErrorType(413, "the body exceeds server.max_body_bytes, or an upload storage.max_upload_bytes"),
    "misdirected_host": ErrorType(421, "the Host name is not one of ours"),
    "input_denied": ErrorType(422, "the input breaks a rule of this deployment; the text names the field"),
    "rate_limited": ErrorType(429, "too many requests; repeat after `retry-after`"),
    "concurrency_limited": ErrorType(429, "too many jobs at a time; repeat when one has ended"),
    "header_too_large": ErrorType(
        431, "the head exceeds 32 KiB or 100 fields, or trailers do; the connection is closed"
    ),
    "upstream_outcome_unknown": ErrorType(500, "a paid request was sent and its outcome is unknown; do not repeat it"),
    "internal_error": ErrorType(500, "a fault of ours"),
    "upstream_unreachable": ErrorType(502, "fal could not be reached, or left before answering"),
    "upstream_invalid": ErrorType(502, "fal answered with something that cannot be passed on"),
    "store_unavailable": ErrorType(503, "what counts and remembers cannot answer; repeat after `retry-after`"),
    "no_usable_key": ErrorType(503, "fal accepts none of this proxy's keys right now; repeat after `retry-after`"),
    "identity_unavailable": ErrorType(503, "who is calling cannot be found out right now; repeat after `retry-after`"),
    "draining": ErrorType(503, "this proxy is about to end; repeat after `retry-after`"),
    "upstream_timeout": ErrorType(504, "fal did not answer in time"),
}


# What closes a WebSocket that is open already; before it is, the status itself answers.
CLOSE_CODES = {401: 4401, 402: 4402, 403: 4403, 413: 1009, 429: 4429, 503: 1013}
_CLOSE_CODE_OF_FAULTS = 1011


class FalProxyError(Exception):
    """The root: catch this to catch everything the package raises on purpose."""


class Refusal(FalProxyError):
    """An answer of our own; `detail` is one sentence for the developer who reads it."""

    def __init__(self, error_type: str, detail: str, *, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(detail)
        self.error_type = error_type
        self.status = ERROR_TYPES[error_type].status
        self.detail = detail
        self.headers = headers


class UpstreamError(FalProxyError):
    """A failed upstream call; `written` is true once any byte of the request may have left."""

    error_type = "upstream_unreachable"

    def __init__(self, detail: str, *, written: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.written = written


class ConnectError(UpstreamError):
    """No usable connection came to be; nothing was written."""


class ConnectTimeout(UpstreamError):
    """No connection within `upstream.connect_seconds`; nothing was written."""

    error_type = "upstream_timeout"


class UpstreamTimeout(UpstreamError):
    """Upstream kept the connection and stopped making progress."""

    error_type = "upstream_timeout"


class UpstreamCut(UpstreamError):
    """The connection ended before the answer was whole."""


class UpstreamInvalid(UpstreamError):
    """The answer cannot be trusted or passed on."""

    error_type = "upstream_invalid"


class StoreUnavailable(FalProxyError):
    """The store cannot answer, or cannot write down what it would answer."""


class ClientGone(FalProxyError):
    """The caller closed its connection."""


class Misconfigured(FalProxyError):
    """Cannot start; `findings` are one-line reasons, most important first."""

    def __init__(self, findings: list[str]) -> None:
        super().__init__("; ".join(findings))
        self.findings = findings


def close_code(error_type: str) -> int:
    """Return the code that closes a WebSocket for this reason."""
    if error_type == "draining":
        return 1012
    return CLOSE_CODES.get(ERROR_TYPES[error_type].status, _CLOSE_CODE_OF_FAULTS)


def render(error_type: str, detail: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the header field and the JSON body that mark an error as ours.

    `message` repeats `detail` because the JavaScript client shows the one and the Python client the other.
    """
    body = msgspec.json.encode({"detail": detail, "message": detail, "error_type": error_type})
    return [(b"x-fal-error-type", error_type.encode())], body
