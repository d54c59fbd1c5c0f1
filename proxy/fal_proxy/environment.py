"""What only the environment may hold: the fal key and the secrets we share, in a type that cannot be printed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fal_proxy.loading import Finding
from fal_proxy.settings import ENV_HEADER_SECRET, ENV_SECRET, ENV_SECRET_FILE

MIN_SECRET_BYTES = 16


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


def fal_key(environ: Mapping[str, str]) -> Secret | None:
    """Return the fal key from FAL_KEY, or from FAL_KEY_ID and FAL_KEY_SECRET; None without one."""
    if key := environ.get("FAL_KEY", "").strip():
        return Secret(key)
    name, secret = environ.get("FAL_KEY_ID", "").strip(), environ.get("FAL_KEY_SECRET", "").strip()
    return Secret(f"{name}:{secret}") if name and secret else None


def signing_secrets(environ: Mapping[str, str], findings: list[Finding]) -> tuple[Secret, ...]:
    """Return the signing secrets, oldest first (the last one signs), from the variable or the file it names."""
    text = environ.get(ENV_SECRET, "")
    if not text and (name := environ.get(ENV_SECRET_FILE)):
        try:
            text = Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            findings.append(Finding("error", ENV_SECRET_FILE, f"cannot be read: {error}"))
    secrets = tuple(Secret(part.strip()) for part in text.replace("\n", ",").split(",") if part.strip())
    if any(len(secret.reveal().encode()) < MIN_SECRET_BYTES for secret in secrets):
        findings.append(Finding("error", ENV_SECRET, f"each secret needs at least {MIN_SECRET_BYTES} bytes"))
    return secrets


def header_secret(environ: Mapping[str, str]) -> Secret | None:
    """Return what `identity.header.secret_header` must hold; None without one."""
    value = environ.get(ENV_HEADER_SECRET, "").strip()
    return Secret(value) if value else None
