"""fal's platform API, `api.fal.ai`: questions of our own about prices and bills. No caller of ours reaches it.

Knows how it is addressed and how it says no; what the answers mean is for the modules beside this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote, urlencode

import msgspec

from fal_proxy.environment import Secret
from fal_proxy.errors import FalProxyError
from fal_proxy.upstream.credentials import authorization
from fal_proxy.upstream.dial import Route
from fal_proxy.upstream.own_calls import OwnAnswer, OwnCallError, OwnCalls

HOST = b"api.fal.ai"
MAX_CURSOR_CHARS = 4096
# The closed list of fal's OpenAPI; anything else that calls itself a type is not repeated.
_TYPES = frozenset(
    ["authorization_error", "validation_error", "not_found", "rate_limited", "server_error", "not_implemented"]
)


class PlatformError(FalProxyError):
    """No usable answer; the text says why and holds nothing that was sent or received."""

    def __init__(self, detail: str, status: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status  # of an answer that says no


class PlatformApi:
    """One client of the platform API, for one purpose."""

    def __init__(self, route: Route, calls: OwnCalls) -> None:
        """Take the way to fal and the client to ask with, which is closed with this."""
        self._route = route
        self._calls = calls

    @staticmethod
    def address(route: Route) -> str:
        """Return what every question begins with."""
        return route.address(HOST, b"").decode()

    async def get(self, path: str, query: Sequence[tuple[str, str]], key: Secret) -> bytes:
        """Return the body of a 200. Raises PlatformError."""
        asked = path + "?" + urlencode(query, quote_via=quote, safe="/,:")
        try:
            answer = await self._calls.get(
                self._route.address(HOST, asked.encode("ascii")).decode("ascii"), [authorization(key)]
            )
        except OwnCallError as error:
            raise PlatformError(str(error)) from error
        if answer.status != 200:
            raise PlatformError(said(answer), answer.status)
        return answer.body

    async def close(self) -> None:
        """Close every connection."""
        await self._calls.close()


def said(answer: OwnAnswer) -> str:
    """Return what an answer other than 200 says, in words that we know."""
    try:
        body = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, RecursionError):
        return f"it answered {answer.status}"
    error = body.get("error") if isinstance(body, dict) else None
    type_ = error.get("type") if isinstance(error, dict) else None
    known = isinstance(type_, str) and type_ in _TYPES
    return f"it answered {answer.status} {type_}" if known else f"it answered {answer.status}"
