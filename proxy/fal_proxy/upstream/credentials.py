"""The fal key on its way into one header field. Knows its form, refuses to be seen."""

from __future__ import annotations

import re

from fal_proxy.environment import Secret

_FAL_KEY = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}:[0-9a-fA-F]{16,}")


def authorization(key: Secret) -> tuple[bytes, bytes]:
    """Return the field that goes last into an upstream request."""
    return (b"authorization", b"Key " + key.reveal().encode("latin-1"))


def is_sendable(key: Secret) -> bool:
    """Say whether the key is a header value at all: visible ASCII with a colon inside."""
    value = key.reveal()
    return all(0x21 <= ord(char) <= 0x7E for char in value) and 0 < value.find(":") < len(value) - 1


def looks_like_fal_key(value: str) -> bool:
    """Say whether a credential that a caller presented has the shape of fal's own keys."""
    return _FAL_KEY.fullmatch(value) is not None
