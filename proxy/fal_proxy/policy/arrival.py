"""What a request says of itself before anybody asks who sent it: its body's length, its target, whether it is a preflight."""

from __future__ import annotations

from fal_proxy.errors import Refusal
from fal_proxy.request import Addressed, Request

TARGET_HEADER = b"x-fal-target-url"
_MAX_LENGTH_DIGITS = 18


def is_preflight(request: Request) -> bool:
    """Say whether this is a CORS preflight (Fetch §3.2.2)."""
    return request.method == "OPTIONS" and request.one(b"access-control-request-method") is not None


def address(request: Request, mount: bytes) -> Addressed:
    """Return the target as written: in the header on the bare mount, or in the path below it; never both."""
    lines = request.lines(TARGET_HEADER)
    below = request.path[len(mount) :]
    if below in (b"", b"/"):
        if len(lines) != 1:
            raise Refusal("invalid_target", "send exactly one x-fal-target-url, or put /<host>/<path> behind the mount")
        if request.query is not None:
            raise Refusal("invalid_target", "the bare mount takes no query: it belongs into x-fal-target-url")
        return Addressed(lines[0], header_form=True)
    if lines:
        raise Refusal("invalid_target", "a target in the path and one in x-fal-target-url contradict each other")
    query = b"" if request.query is None else b"?" + request.query
    return Addressed(b"https:/" + below + query, header_form=False)


def announced_bytes(request: Request) -> int | None:
    """Return the body's announced length: 0 without a body, None for a chunked one.

    Raises Refusal `bad_request` for a coding or a length that two parsers could read in two ways.
    """
    length = request.one(b"content-length")
    coding = request.one(b"transfer-encoding")
    if coding is not None:
        if length is not None or coding.strip().lower() != b"chunked":
            raise Refusal("bad_request", "Transfer-Encoding must be chunked alone")
        return None
    if length is None:
        return 0
    if not length.isdigit() or len(length) > _MAX_LENGTH_DIGITS:
        raise Refusal("bad_request", "Content-Length is no plain number")
    return int(length)
