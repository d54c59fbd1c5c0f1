"""What fal's hosts tell browsers: inference hosts as fal's apps do, file hosts openly. Decides nothing else."""

from .answers import Answer, Headers
from .exchange import Exchange

_METHODS = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
_FILE_METHODS = "GET, HEAD, PUT, POST, OPTIONS"
_FILE_EXPOSED = "etag, content-length, content-range, accept-ranges"


def preflight(exchange: Exchange, *, files: bool) -> Answer:
    """Answer a preflight: everything is allowed."""
    wanted = exchange.headers.get("access-control-request-headers", "content-type")
    origin = "*" if files else exchange.headers.get("origin", "*")
    headers: Headers = [
        ("access-control-allow-origin", origin),
        ("access-control-allow-methods", _FILE_METHODS if files else _METHODS),
        ("access-control-allow-headers", wanted),
        ("access-control-max-age", "600"),
    ]
    if not files:
        # Runners use Starlette's middleware with credentials and any origin: it echoes the origin in a preflight.
        headers += [("access-control-allow-credentials", "true"), ("vary", "Origin")]
    return Answer(200, headers)


def headers_for(exchange: Exchange, *, files: bool) -> Headers:
    """Return the headers an ordinary answer carries; inference hosts expose nothing, so browsers see no x-fal-*."""
    if files:
        return [("access-control-allow-origin", "*"), ("access-control-expose-headers", _FILE_EXPOSED)]
    if "origin" not in exchange.headers:
        return []
    return [("access-control-allow-origin", "*"), ("access-control-allow-credentials", "true")]
