"""What only the environment may hold: our secrets, in a type that cannot be printed, and where they are read from.

Every secret may stand in a variable or, better, in the file that the variable with `_FILE` names. The environment is
captured once; nothing else looks into `os.environ`. The fal keys' form is `upstream.credentials`'s to know.
"""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fal_proxy.loading import Finding
from fal_proxy.settings import (
    ENV_ADMIN_TOKEN,
    ENV_HEADER_SECRET,
    ENV_SECRET,
    ENV_SECRETS,
    ENV_STATE,
    ENV_WEBHOOK_SECRET,
    FILE,
)

MIN_SECRET_BYTES = 16
ENV_FAL_ADMIN_KEY = "FAL_ADMIN_KEY"  # reads bills; nothing is ever relayed with it
WEBHOOK_PREFIX = "whsec_"
# What may hold a secret, and is taken out of its environment by `serve`; the URL of Redis may hold a password.
OTEL_SECRETS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")  # OpenTelemetry's: `name=value,…`
_OF_FAL = ("FAL_KEY", "FAL_KEY_SECRET", ENV_FAL_ADMIN_KEY)
SECRET_VARIABLES = (*ENV_SECRETS, *_OF_FAL, ENV_STATE, "FAL_PROXY_STATE__URL", *OTEL_SECRETS)


class Secret:
    """A value that cannot be printed, logged, compared by accident or pickled; `reveal()` is the only way out."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret itself; call this only where it is used."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> Any:
        raise TypeError("a Secret does not leave its process")


def captured() -> dict[str, str]:
    """Return the environment as it is now; call it once, at the start."""
    return dict(os.environ)


def signing_secrets(environ: Mapping[str, str], findings: list[Finding]) -> tuple[Secret, ...]:
    """Return the signing secrets, oldest first (the last one signs), from the variable or the file it names."""
    text = _text(environ, ENV_SECRET, findings)
    secrets = _several(text)
    if any(len(secret.reveal().encode()) < MIN_SECRET_BYTES for secret in secrets):
        findings.append(Finding("error", ENV_SECRET, f"each secret needs at least {MIN_SECRET_BYTES} bytes"))
    return secrets


def webhook_secrets(environ: Mapping[str, str], findings: list[Finding]) -> tuple[Secret, ...]:
    """Return what deliveries to the app's own server are signed with, oldest first; each is a `whsec_` of its own."""
    secrets = _several(_text(environ, ENV_WEBHOOK_SECRET, findings))
    if any(not 24 <= len(webhook_key(secret)) <= 64 for secret in secrets):
        message = f"each secret is {WEBHOOK_PREFIX} and 24 to 64 random bytes in base64"
        findings.append(Finding("error", ENV_WEBHOOK_SECRET, message))
    return secrets


def webhook_key(secret: Secret) -> bytes:
    """Return the bytes that a `whsec_` stands for; none for what is malformed."""
    prefix, text = secret.reveal()[: len(WEBHOOK_PREFIX)], secret.reveal()[len(WEBHOOK_PREFIX) :]
    try:
        return base64.b64decode(text, validate=True) if prefix == WEBHOOK_PREFIX else b""
    except ValueError:
        return b""


def header_secret(environ: Mapping[str, str], findings: list[Finding]) -> Secret | None:
    """Return what `identity.header.secret_header` must hold; None without one."""
    value = _text(environ, ENV_HEADER_SECRET, findings)
    return Secret(value) if value else None


def admin_token(environ: Mapping[str, str], findings: list[Finding]) -> Secret | None:
    """Return what opens the admin listener; None without one."""
    value = _text(environ, ENV_ADMIN_TOKEN, findings)
    return Secret(value) if value else None


def fal_admin_key(environ: Mapping[str, str], findings: list[Finding]) -> Secret | None:
    """Return the key that may read fal's bills; None without one."""
    value = _text(environ, ENV_FAL_ADMIN_KEY, findings)
    return Secret(value) if value else None


def shared_secrets(environ: Mapping[str, str]) -> list[Secret]:
    """Return all of these that are set, wherever they are used."""
    ignored: list[Finding] = []
    single = [header_secret(environ, ignored), admin_token(environ, ignored), fal_admin_key(environ, ignored)]
    # Without their prefix, so that half a secret is masked too.
    webhook = [Secret(each.reveal().removeprefix(WEBHOOK_PREFIX)) for each in webhook_secrets(environ, ignored)]
    exported = [pair.partition("=")[2].strip() for name in OTEL_SECRETS for pair in environ.get(name, "").split(",")]
    collector = [Secret(text) for value in exported for text in {value, unquote(value)} if text]
    mine = [*signing_secrets(environ, ignored), *webhook, *collector]
    return [*mine, *(secret for secret in single if secret is not None)]


def secret_in_url(url: str) -> list[Secret]:
    """Return the password of a URL, as it is written and as it is meant."""
    try:
        password = urlsplit(url).password
    except ValueError:
        password = None
    return [Secret(password), Secret(unquote(password))] if password else []


def judge_file(path: Path, variable: str, findings: list[Finding]) -> None:
    """Note a file of secrets that others on this machine can read."""
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        findings.append(Finding("warning", variable, "others on this machine can read the file: chmod 600"))


def fingerprint(path: Path | str) -> tuple[int, int, int] | None:
    """Return what changes whenever a file does; None for what is no file, or not there."""
    try:
        state = os.stat(path)  # noqa: PTH116 -- asked for every request, and Path.stat() takes twice as long
    except OSError:
        return None
    return (state.st_mtime_ns, state.st_size, state.st_ino) if stat.S_ISREG(state.st_mode) else None


def _several(text: str) -> tuple[Secret, ...]:
    return tuple(Secret(part.strip()) for part in text.replace("\n", ",").split(",") if part.strip())


def _text(environ: Mapping[str, str], name: str, findings: list[Finding]) -> str:
    """Return what the variable or its file holds, without surrounding space."""
    text, file = environ.get(name, "").strip(), environ.get(name + FILE, "")
    if not file:
        return text
    if text:
        findings.append(Finding("error", name + FILE, f"and {name} are both set: which one is meant?"))
        return text
    try:
        text = Path(file).read_text("utf-8").strip()
        judge_file(Path(file), name + FILE, findings)
    except OSError as error:
        findings.append(Finding("error", name + FILE, f"cannot be read: {error.strerror or error}"))
    except UnicodeDecodeError:  # its text would show a piece of the file
        findings.append(Finding("error", name + FILE, "cannot be read: it is no UTF-8"))
    return text
