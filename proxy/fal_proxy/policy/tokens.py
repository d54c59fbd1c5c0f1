"""The body of a token request, which asks for one app: what `@fal-ai/client`, the documentation and others send.

Where fal itself is to answer it, what goes up is built anew from the two things that were understood: app and lifetime.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

from fal_proxy.errors import Refusal
from fal_proxy.policy.endpoints import App

MAX_BYTES = 16 * 1024
_APP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9._-]+){0,7}")
_OWNER_IN_NAME = re.compile(r"[0-9]+-.*")  # `12345-alias`, which clients of old read as 12345/alias
_FIELDS = frozenset(["allowed_apps", "app", "token_expiration", "duration"])
_NAMESPACES = ("workflows", "comfy")


class Asked(NamedTuple):
    """What a token is asked for; no lifetime: whatever is usual."""

    app: str
    seconds: int | None


def asked_app(body: bytes) -> str:
    """Return the one app that a token is asked for: an alias, owner/alias or a path. Raises Refusal `input_denied`."""
    return read_asked(body).app


def read_asked(body: bytes) -> Asked:
    """Return what a token is asked for: one app, and the shortest of the lifetimes. Raises Refusal `input_denied`."""
    try:
        given = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, ValueError):
        raise _denied("it must be a JSON object") from None
    if not isinstance(given, dict):
        raise _denied("it must be a JSON object")
    if unknown := sorted(given.keys() - _FIELDS):
        raise _denied(f"unknown fields; it may have {', '.join(sorted(_FIELDS))}, and has {len(unknown)} others")
    apps = given.get("allowed_apps", [given["app"]] if "app" in given else None)
    if not isinstance(apps, list) or len(apps) != 1 or ("app" in given and apps != [given["app"]]):
        raise _denied("it must name exactly one app")
    app = apps[0]
    if not isinstance(app, str) or not _APP.fullmatch(app) or ".." in app or "." in app.split("/"):
        raise _denied("the app must be named as in fal's URLs")
    lifetimes = []
    for name in ("token_expiration", "duration"):
        seconds = given.get(name, 1)
        if not isinstance(seconds, int) or isinstance(seconds, bool) or seconds < 1:
            raise _denied(f"{name} must be a number of seconds")
        if name in given:
            lifetimes.append(seconds)
    return Asked(app, min(lifetimes, default=None))


def opened_by(app: str) -> tuple[App, ...]:
    """Return what a fal token for `app` may open: the whole alias, whichever path it was asked for.

    A bare alias, which is all that the clients ask for, names no owner; who has such a token may try any. Raises Refusal
    `input_denied` for a name that could be read in two ways.
    """
    segments = app.split("/")
    if _OWNER_IN_NAME.fullmatch(segments[0]):
        raise _denied("the app must be named alone or as owner/alias")
    if len(segments) == 1:
        return (None, app), *((space, None, app) for space in _NAMESPACES)
    length = 3 if segments[0] in _NAMESPACES else 2
    if len(segments) < length:
        raise _denied("the app must be named alone or as owner/alias")
    return (tuple(segments[:length]),)


def rebuilt(path: bytes, app: str, seconds: int) -> bytes:
    """Return the body that asks for just this; the newer of fal's two routes calls the lifetime otherwise."""
    lifetime = "duration" if path.endswith(b"/realtime") else "token_expiration"
    return msgspec.json.encode({"allowed_apps": [app], lifetime: seconds})


def _denied(why: str) -> Refusal:
    return Refusal("input_denied", f"this is no token request: {why}")
