"""Settings: what can be decided about a deployment, as frozen structs.

Precedence is flag, environment, file, default. The structs below are the one list of settings; the loader, `check`
and the documentation test derive from them. Secrets come from the environment only and cannot be printed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from fal_proxy.loading import Finding, build, overlay, read_file

DEFAULT_CONFIG = "fal-proxy.toml"
KIB = 1024
MIB = 1024 * KIB

# What the environment holds beside the settings themselves.
ENV_SECRET = "FAL_PROXY_SECRET"  # noqa: S105 -- the name of the variable, not a secret
ENV_SECRET_FILE = "FAL_PROXY_SECRET_FILE"  # noqa: S105 -- as above
ENV_UPSTREAM = "FAL_PROXY_UPSTREAM"
ENV_CONFIG = "FAL_PROXY_CONFIG"
_ENV_RESERVED = frozenset([ENV_SECRET, ENV_SECRET_FILE, ENV_UPSTREAM, ENV_CONFIG])
MIN_SECRET_BYTES = 16
_HOST_NAME = re.compile(r"[a-z0-9._\-]+|[0-9a-f:.]+")  # the second: IPv6, without its brackets


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


def says(description: str) -> msgspec.Meta:
    """Return the sentence about a setting that help and documentation show."""
    return msgspec.Meta(description=description)


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Server(_Section, frozen=True):
    """`[server]`: where we listen and who may address us."""

    host: Annotated[str, says("address to listen on")] = "127.0.0.1"
    port: Annotated[int, says("port to listen on; 0 picks a free one")] = 8080
    public_url: Annotated[
        str, says("`https://proxy.example.com`: what browsers see; decides the cookie and which origin is ours")
    ] = ""
    hosts: Annotated[tuple[str, ...], says("accepted Host names; empty with `public_url`: its host; `*`: any")] = ()
    trusted_proxies: Annotated[tuple[str, ...], says("addresses or networks whose `X-Forwarded-For` is believed")] = ()
    max_body_bytes: Annotated[int, says("largest JSON body")] = 10 * MIB


class Upstream(_Section, frozen=True):
    """`[upstream]`: how long fal may take."""

    connect_seconds: Annotated[float, says("until a connection stands")] = 5
    head_seconds: Annotated[float, says("until the head of an answer; run and stream: 3600")] = 60
    body_idle_seconds: Annotated[float, says("between two pieces of a body")] = 900


class Cors(_Section, frozen=True):
    """`[cors]`: exact origins of pages beside our own."""

    origins: Annotated[tuple[str, ...], says("exact origins of pages beside our own")] = ()


class KeySource(_Section, frozen=True):
    """`[identity.key]`: user keys, hashed, in a file of their own."""

    file: Annotated[str, says("user keys, hashed; relative to the settings file")] = "users.toml"


class AnonymousSource(_Section, frozen=True):
    """`[identity.anonymous]`: whoever shows no credential."""

    plan: Annotated[str, says("the plan of anonymous callers")] = "default"


class Identity(_Section, frozen=True):
    """`[identity]`: who may call; nobody, until sources are listed."""

    sources: Annotated[tuple[Literal["key", "anonymous"], ...], says("who may call, in order: `key`, `anonymous`")] = ()
    key: KeySource = KeySource()
    anonymous: AnonymousSource = AnonymousSource()


class Plan(_Section, frozen=True):
    """`[plans.NAME]`: what a caller may do."""

    endpoints: Annotated[tuple[str, ...], says("globs of what may be run, streamed and submitted")] = ()
    methods: Annotated[tuple[Literal["POST", "GET", "PUT", "DELETE", "PATCH"], ...], says("methods on `fal.run`")] = (
        "POST",
    )
    allow_headers: Annotated[
        tuple[str, ...],
        says(
            "further request fields, of: `x-fal-store-io` `x-fal-runner-hint` `x-fal-no-retry` `x-fal-retry-config` `x-fal-tags`"
        ),
    ] = ()


class InputRule(_Section, frozen=True):
    """`[[inputs]]`: what may be asked of the endpoints that match; fields are top-level fields of the JSON input."""

    endpoint: Annotated[str, says("glob of the endpoints that this rule concerns; all that match apply, in order")] = ""
    reject: Annotated[tuple[str, ...], says("fields that a caller may not send (422)")] = ()
    default: Annotated[dict[str, Any], says("values inserted when absent, before `clamp`")] = {}
    clamp: Annotated[dict[str, tuple[int | float, int | float]], says("`[min, max]` of numbers; others are 422")] = {}
    force: Annotated[dict[str, Any], says("values set whatever the caller sent")] = {}
    drop: Annotated[tuple[str, ...], says("fields removed")] = ()


class Storage(_Section, frozen=True):
    """`[storage]`: uploads that the browser sends to fal's CDN with a signed URL."""

    mode: Annotated[Literal["direct", "off"], says("`direct`: the browser uploads with a signed URL; `off`")] = "direct"


class Settings(_Section, frozen=True):
    """Everything one deployment decides. Build it with `Settings.load`, or by hand for an app of your own."""

    mount: Annotated[str, says("the path that the proxy lives at")] = "/api/fal/proxy"
    server: Server = Server()
    upstream: Upstream = Upstream()
    cors: Cors = Cors()
    identity: Identity = Identity()
    plans: dict[str, Plan] = msgspec.field(default_factory=dict)
    inputs: tuple[InputRule, ...] = ()
    storage: Storage = Storage()

    @classmethod
    def load(
        cls, config: str | Path | None = None, environ: Mapping[str, str] | None = None
    ) -> tuple[Settings, list[Finding]]:
        """Read file and environment; return the settings and all findings (errors leave defaults in place).

        Without `config`, `FAL_PROXY_CONFIG` or `./fal-proxy.toml` is read; only the last may be missing.
        """
        environ = os.environ if environ is None else environ
        findings: list[Finding] = []
        named = bool(config or environ.get(ENV_CONFIG))
        raw = read_file(config_path(config, environ), may_be_missing=not named, findings=findings)
        overlay(cls, raw, environ, _ENV_RESERVED, findings)
        return build(cls, raw, "", findings), findings


def config_path(config: str | Path | None, environ: Mapping[str, str]) -> Path:
    """Return the file that `Settings.load` reads; paths inside it are relative to its folder."""
    return Path(config or environ.get(ENV_CONFIG) or DEFAULT_CONFIG)


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


def origin_of(url: str) -> str | None:
    """Return `scheme://host[:port]` in the form browsers send, or None when `url` is no plain http(s) base."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    plain = not (parts.query or parts.fragment or parts.username is not None or parts.password is not None)
    if parts.scheme not in ("http", "https") or not plain or parts.path not in ("", "/"):
        return None
    if not parts.hostname or not _HOST_NAME.fullmatch(parts.hostname):
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = 443 if parts.scheme == "https" else 80
    return f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, default) else "")
