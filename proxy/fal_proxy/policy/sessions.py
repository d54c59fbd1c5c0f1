"""The bodies of wma.fal.run, where world models are opened and kept alive: exactly the known fields, built anew."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from fal_proxy.errors import Refusal
from fal_proxy.policy.target import endpoint_of

MAX_BYTES = 256 * 1024
_SDP_CHARS = 128 * 1024
_APP_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*){1,7}")
_SESSION_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class Ice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /ice`: which servers lead through firewalls."""

    app_id: str


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /session`: a WebRTC offer that fal answers."""

    app_id: str
    sdp: str
    type: Literal["offer"]


class Heartbeat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /session/heartbeat`: the session goes on."""

    session_id: str


_FORMS: dict[bytes, type[Ice | Offer | Heartbeat]] = {
    b"/ice": Ice,
    b"/session": Offer,
    b"/session/heartbeat": Heartbeat,
}


def read_session_request(path: bytes, body: bytes) -> Ice | Offer | Heartbeat:
    """Return what the body of this path says. Raises Refusal `input_denied`."""
    form = _FORMS[path]
    try:
        given = msgspec.json.decode(body, type=form)
    except (msgspec.DecodeError, RecursionError, ValueError):
        raise _denied(f"it must be a JSON object of {', '.join(form.__struct_fields__)} and nothing else") from None
    if isinstance(given, Heartbeat):
        if not is_session_id(given.session_id):
            raise _denied("session_id is none of fal's")
    elif not _APP_ID.fullmatch(given.app_id) or ".." in given.app_id or not _names_app(given.app_id):
        raise _denied("app_id must be an endpoint id, owner/alias at least")
    if isinstance(given, Offer) and not 0 < len(given.sdp) <= _SDP_CHARS:
        raise _denied(f"sdp must have 1 to {_SDP_CHARS} characters")
    return given


def is_session_id(text: str) -> bool:
    """Say whether this can name a session."""
    return _SESSION_ID.fullmatch(text) is not None


def _names_app(app_id: str) -> bool:
    try:
        return bool(endpoint_of(app_id))
    except Refusal:
        return False


def _denied(why: str) -> Refusal:
    return Refusal("input_denied", f"this is no request of a session: {why}")
