"""The body of a token request, which asks for one app: what `@fal-ai/client`, the documentation and others send."""

from __future__ import annotations

import re

import msgspec

from fal_proxy.errors import Refusal

MAX_BYTES = 16 * 1024
_APP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9._-]+){0,7}")
_FIELDS = frozenset(["allowed_apps", "app", "token_expiration", "duration"])


def asked_app(body: bytes) -> str:
    """Return the one app that a token is asked for: an alias, owner/alias or a path. Raises Refusal `input_denied`."""
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
    if not isinstance(app, str) or not _APP.fullmatch(app) or ".." in app:
        raise _denied("the app must be named as in fal's URLs")
    for name in ("token_expiration", "duration"):
        seconds = given.get(name, 1)
        if not isinstance(seconds, int) or isinstance(seconds, bool) or seconds < 1:
            raise _denied(f"{name} must be a number of seconds")
    return app


def _denied(why: str) -> Refusal:
    return Refusal("input_denied", f"this is no token request: {why}")
