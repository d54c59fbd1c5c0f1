"""The users of an app that the proxy is mounted in: a function of that app names them. Knows no session and no cookie."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import msgspec

from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller
from fal_proxy.identity import DEFAULT_PLAN, Presented, is_plain_name
from fal_proxy.request import Request

APP = "app"  # the name of this source, in ids and findings

_log = logging.getLogger("fal_proxy.identity")


class User(msgspec.Struct, frozen=True):
    """Somebody whom the app knows, by an id that is theirs alone and stays."""

    id: str
    plan: str = DEFAULT_PLAN
    # The browser attaches the proof by itself (a session cookie), so the page behind a request is judged. Set it to False
    # only for what a page's script must attach, such as a token in a field of the request.
    ambient: bool = True


Identify = Callable[[Mapping[str, Any]], User | Awaitable[User | None] | None]


class AppUsers:
    """Recognise whoever the app recognises. The app is asked about every request, and must not block the loop."""

    def __init__(self, identify: Identify) -> None:
        """Take a function from an ASGI scope to a User; None: nobody whom the app knows."""
        self._identify = identify

    async def identify(self, presented: Presented) -> Caller | None:
        """Return the app's user. Raises Refusal `identity_unavailable` when the app fails or names nobody plainly."""
        try:
            found = self._identify(presented.request.scope)
            user: object = await found if inspect.isawaitable(found) else found
        except Exception as error:
            _log.exception("the app's `identify` failed")
            raise _unavailable() from error
        if user is None:
            return None
        if not (isinstance(user, User) and is_plain_name(user.id) and is_plain_name(user.plan)):
            _log.error("the app's `identify` must return a User with plain names of 1 to 255 characters, or None")
            raise _unavailable()
        return Caller(f"{APP}::{user.id}", APP, user.plan, ambient=user.ambient is not False)

    def carried(self, request: Request) -> Collection[str]:
        """Return nothing: what the app knows by, it is asked about."""
        return ()

    async def close(self) -> None:
        """Hold nothing open."""


def _unavailable() -> Refusal:
    return Refusal("identity_unavailable", "the app cannot say who is calling", headers=((b"retry-after", b"1"),))
