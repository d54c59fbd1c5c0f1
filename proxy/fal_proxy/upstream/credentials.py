"""The fal keys on their way into one header field: where they come from and what form they have. Refuses to show one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from fal_proxy.environment import Secret, judge_file
from fal_proxy.loading import Finding

FORMS = ("FAL_KEY", "FAL_KEY_FILE", "FAL_KEY_ID")
_FAL_KEY = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}:[0-9a-fA-F]{16,}")
_WEIGHT = re.compile(r"[1-9][0-9]{0,5}")


class FalKey(NamedTuple):
    """A key of ours and how large its share of the work is."""

    secret: Secret
    weight: int = 1


class FalKeys(NamedTuple):
    """The keys that the environment names, and the file they stand in, if it is one."""

    keys: tuple[FalKey, ...]
    file: Path | None = None


class KeyFileError(ValueError):
    """The file of fal keys makes no sense; the text names a line, and shows nothing of it."""


def fal_keys(environ: Mapping[str, str], findings: list[Finding]) -> FalKeys:
    """Return the fal keys of FAL_KEY, of the file FAL_KEY_FILE, or of FAL_KEY_ID and FAL_KEY_SECRET; note mistakes."""
    key, file, name, secret = (
        environ.get(variable, "").strip() for variable in ("FAL_KEY", "FAL_KEY_FILE", "FAL_KEY_ID", "FAL_KEY_SECRET")
    )
    given = [form for form, text in zip(FORMS, (key, file, name or secret), strict=True) if text]
    if len(given) > 1:
        findings.append(Finding("error", given[0], f"and {' and '.join(given[1:])} are set: which one is meant?"))
    if bool(name) is not bool(secret):
        findings.append(Finding("error", "FAL_KEY_ID", "and FAL_KEY_SECRET belong together, and only one is set"))
    if not given:
        message = "no fal key: set FAL_KEY, FAL_KEY_FILE, or FAL_KEY_ID and FAL_KEY_SECRET"
        findings.append(Finding("error", "FAL_KEY", message))
    if key or (name and secret and not file):
        found = Secret(key or f"{name}:{secret}")
        if not is_sendable(found):
            findings.append(Finding("error", "FAL_KEY", "is no fal key: it must look like <id>:<secret>"))
        return FalKeys((FalKey(found),))
    return FalKeys(_judged(Path(file), findings), Path(file)) if file else FalKeys(())


def _judged(path: Path, findings: list[Finding]) -> tuple[FalKey, ...]:
    try:
        keys = read_keys(path)
        judge_file(path, "FAL_KEY_FILE", findings)
    except KeyFileError as error:
        findings.append(Finding("error", "FAL_KEY_FILE", str(error)))
    except OSError as error:
        findings.append(Finding("error", "FAL_KEY_FILE", f"cannot be read: {error.strerror or error}"))
    else:
        return keys
    return ()


def read_keys(path: Path) -> tuple[FalKey, ...]:
    """Return the keys of a file: `key [weight]` a line, `#` begins a comment. Raises KeyFileError, OSError."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise KeyFileError("is no UTF-8") from None  # the decoder's own text shows bytes of the file
    keys: dict[str, tuple[int, FalKey]] = {}
    for number, line in enumerate(lines, 1):
        words = list(_words(line))
        if not words:
            continue
        key = Secret(words[0])
        public = public_half(key)
        if len(words) > 2 or not is_sendable(key):
            raise KeyFileError(f"line {number} is not `<id>:<secret> [weight]`")
        if len(words) == 2 and not _WEIGHT.fullmatch(words[1]):
            raise KeyFileError(f"line {number}: the weight must be a whole number from 1 to 999999")
        if public in keys:
            raise KeyFileError(f"line {number} repeats the key of line {keys[public][0]}")
        keys[public] = number, FalKey(key, int(words[1]) if len(words) == 2 else 1)
    if not keys:
        raise KeyFileError("holds no key")
    return tuple(key for _, key in keys.values())


def _words(line: str) -> Iterator[str]:
    for word in line.split():
        if word.startswith("#"):
            return
        yield word


def public_half(key: Secret) -> str:
    """Return the id before the colon, which fal shows in its dashboard."""
    return key.reveal().partition(":")[0]


def secret_half(key: Secret) -> str:
    """Return what the colon precedes."""
    return key.reveal().partition(":")[2]


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
