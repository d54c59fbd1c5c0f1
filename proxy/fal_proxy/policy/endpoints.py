"""Endpoint globs: which endpoints a plan opens. `*` is one segment, `**` any number, `x/**` also matches `x`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

App = tuple[str | None, ...]  # the leading segments of an endpoint id; None: any segment

# Escapes of characters that a path may also write plainly: `a%2Bb` and `a+b` name one endpoint.
_SECOND_SPELLING = re.compile(r"%(?:2[14-9AB]|3[AD]|40)", re.IGNORECASE)
_GLOB = re.compile(r"[A-Za-z0-9\-._~!$&'()*+=:@%]+(?:/[A-Za-z0-9\-._~!$&'()*+=:@%]+)*")
_NAMESPACES = ("workflows", "comfy")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")


class Globs:
    """Match endpoint ids against a plan's list; compiled once, at start."""

    def __init__(self, globs: Sequence[str]) -> None:
        """Compile `globs`; raise ValueError with one sentence for a malformed one."""
        self._pattern = re.compile("|".join(f"(?:{_translate(glob)})" for glob in globs) or r"(?!)")
        self._segments = [_upper_escapes(glob).split("/") for glob in globs]

    def match(self, endpoint_id: str) -> bool:
        """Say whether any glob covers the endpoint."""
        return self._pattern.fullmatch(endpoint_id) is not None

    def cover(self, app: App) -> bool:
        """Say whether one glob covers the app with everything below it, for some reading of its `None`s."""
        opened = [segments[:-1] for segments in self._segments if segments[-1] == "**"]
        parents = [app[:length] for length in range(len(app) + 1)]
        return any(_fits(glob, parent, below=False) for glob in opened for parent in parents)

    def reach(self, app: App) -> bool:
        """Say whether any glob covers the app, or anything below it."""
        return any(_fits(glob, app, below=True) for glob in self._segments)


@lru_cache(maxsize=512)
def spelled_plainly(endpoint: str) -> str:
    """Return the one spelling of an endpoint id or glob that restrictions and prices compare.

    A plan opens exactly what it says. What limits or bills an endpoint must hold however a caller spells it, so there
    letters are folded to lower case and needless escapes undone.
    """
    return _upper_escapes(_SECOND_SPELLING.sub(lambda match: chr(int(match.group()[1:], 16)), endpoint).lower())


def plainly(app: App) -> App:
    """Return the app with each segment spelled plainly."""
    return tuple(segment and spelled_plainly(segment) for segment in app)


def _upper_escapes(text: str) -> str:
    return _ESCAPE.sub(lambda match: match.group().upper(), text)


def _translate(glob: str) -> str:
    if not _GLOB.fullmatch(glob):
        raise ValueError(f"{glob!r} is no endpoint glob such as fal-ai/flux/**")
    segments = _upper_escapes(glob).split("/")
    if set(segments) == {"**"}:
        return r"[^/]+(?:/[^/]+)*"
    pattern, joint = "", ""
    for segment in segments:
        if segment == "**":
            # Before the first plain segment the slash follows, after it the slash leads: any number includes none.
            pattern += "(?:/[^/]+)*" if joint else "(?:[^/]+/)*"
        elif "**" in segment:
            raise ValueError(f"{glob!r}: ** must be a whole segment")
        else:
            one = "[^/]+" if segment == "*" else re.escape(segment).replace(r"\*", "[^/]*")
            pattern, joint = pattern + joint + one, "/"
    return pattern


def _fits(glob: Sequence[str], app: App, *, below: bool) -> bool:
    """Say whether the glob matches the app; with `below`, whether it matches that or anything below it."""
    if not app:
        return below or all(segment == "**" for segment in glob)
    if not glob:
        return False
    if glob[0] == "**":
        return _fits(glob[1:], app, below=below) or _fits(glob, app[1:], below=below)
    if app[0] is None:
        one = below or glob[0] not in _NAMESPACES  # no owner is called so
    else:
        pattern = "[^/]+" if glob[0] == "*" else re.escape(glob[0]).replace(r"\*", "[^/]*")
        one = re.fullmatch(pattern, app[0]) is not None
    return one and _fits(glob[1:], app[1:], below=below)
