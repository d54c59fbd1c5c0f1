"""Endpoint globs: which endpoints a plan opens. `*` is one segment, `**` any number, `x/**` also matches `x`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fal_proxy.errors import Refusal
from fal_proxy.exchange import Kind, Target

# Kinds that spend money name an endpoint and need a glob; reads follow the request they belong to.
_GLOBBED = frozenset([Kind.RUN, Kind.STREAM, Kind.SUBMIT])
# Escapes of characters that a path may also write plainly: `a%2Bb` and `a+b` name one endpoint.
_SECOND_SPELLING = re.compile(r"%(?:2[14-9AB]|3[AD]|40)", re.IGNORECASE)
_GLOB = re.compile(r"[A-Za-z0-9\-._~!$&'()*+=:@%]+(?:/[A-Za-z0-9\-._~!$&'()*+=:@%]+)*")


class Globs:
    """Match endpoint ids against a plan's list; compiled once, at start."""

    def __init__(self, globs: Sequence[str]) -> None:
        """Compile `globs`; raise ValueError with one sentence for a malformed one."""
        self._pattern = re.compile("|".join(f"(?:{_translate(glob)})" for glob in globs) or r"(?!)")

    def match(self, endpoint_id: str) -> bool:
        """Say whether any glob covers the endpoint."""
        return self._pattern.fullmatch(endpoint_id) is not None


def spelled_plainly(endpoint: str) -> str:
    """Return the one spelling of an endpoint id or glob that restrictions and prices compare.

    A plan opens exactly what it says. What limits or bills an endpoint must hold however a caller spells it, so there
    letters are folded to lower case and needless escapes undone.
    """
    return _SECOND_SPELLING.sub(lambda match: chr(int(match.group()[1:], 16)), endpoint).lower()


def _translate(glob: str) -> str:
    if not _GLOB.fullmatch(glob):
        raise ValueError(f"{glob!r} is no endpoint glob such as fal-ai/flux/**")
    pattern = ""
    for position, segment in enumerate(glob.split("/")):
        if segment == "**":
            pattern += r"(?:/[^/]+)*" if position else r"[^/]+(?:/[^/]+)*"
        elif "**" in segment:
            raise ValueError(f"{glob!r}: ** must be a whole segment")
        else:
            one = "[^/]+" if segment == "*" else re.escape(segment).replace(r"\*", "[^/]*")
            pattern += ("/" if position else "") + one
    return pattern


def permit(target: Target, plan: str, globs: Globs, *, storage_mode: str) -> None:
    """Raise Refusal unless the plan opens the target: endpoint_denied, mode_off or webhook_denied."""
    kind = target.kind
    if kind in _GLOBBED and not globs.match(target.endpoint_id):
        raise Refusal("endpoint_denied", f"plan {plan!r} does not open {target.endpoint_id}")
    if kind is Kind.TOKEN:
        raise Refusal("mode_off", "this proxy hands out no fal tokens")
    if kind is Kind.UPLOAD_TOKEN:
        raise Refusal("mode_off", "this proxy hands out no storage tokens")
    if kind is Kind.UPLOAD_INITIATE and storage_mode == "off":
        raise Refusal("mode_off", "uploads are off (storage.mode)")
    if target.webhook is not None:
        raise Refusal("webhook_denied", "client-chosen webhooks are not accepted by this proxy")
