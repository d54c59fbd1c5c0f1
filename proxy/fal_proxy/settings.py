"""Settings: TOML and environment into frozen structs. Every mistake is named by its path, and all are found at once.

Precedence is flag, environment, file, default. The structs below are the one list of settings; the loader, `check`
and the documentation test derive from them. Secrets come from the environment only and cannot be printed.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec

DEFAULT_CONFIG = "fal-proxy.toml"
KIB = 1024
MIB = 1024 * KIB

# What the environment holds beside the settings themselves.
ENV_SECRET = "FAL_PROXY_SECRET"  # noqa: S105 -- the name of the variable, not a secret
ENV_SECRET_FILE = "FAL_PROXY_SECRET_FILE"  # noqa: S105 -- as above
ENV_UPSTREAM = "FAL_PROXY_UPSTREAM"
ENV_ADMIN_TOKEN = "FAL_PROXY_ADMIN_TOKEN"  # noqa: S105 -- as above
ENV_CONFIG = "FAL_PROXY_CONFIG"
_ENV_PREFIX = "FAL_PROXY_"
_ENV_RESERVED = frozenset([ENV_SECRET, ENV_SECRET_FILE, ENV_UPSTREAM, ENV_CONFIG, ENV_ADMIN_TOKEN])
MIN_SECRET_BYTES = 16


class Finding(NamedTuple):
    """One thing that is wrong or worth knowing about a configuration; `path` is the setting or variable at fault."""

    level: Literal["error", "warning"]
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.level}: {self.path}: {self.message}"


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


class Storage(_Section, frozen=True):
    """`[storage]`: uploads that the browser sends to fal's CDN with a signed URL."""

    mode: Annotated[Literal["direct", "off"], says("`direct`: the browser uploads with a signed URL; `off`")] = "direct"


class Admin(_Section, frozen=True):
    """`[admin]`: the listener for whoever operates this."""

    host: Annotated[str, says("address of the listener for metrics; off loopback it needs `FAL_PROXY_ADMIN_TOKEN`")] = (
        "127.0.0.1"
    )
    port: Annotated[int, says("its port; 0: off")] = 9090


class Settings(_Section, frozen=True):
    """Everything one deployment decides. Build it with `Settings.load`, or by hand for an app of your own."""

    mount: Annotated[str, says("the path that the proxy lives at")] = "/api/fal/proxy"
    server: Server = Server()
    upstream: Upstream = Upstream()
    cors: Cors = Cors()
    identity: Identity = Identity()
    plans: dict[str, Plan] = msgspec.field(default_factory=dict)
    storage: Storage = Storage()
    admin: Admin = Admin()

    @classmethod
    def load(
        cls, config: str | Path | None = None, environ: Mapping[str, str] | None = None
    ) -> tuple[Settings, list[Finding]]:
        """Read file and environment; return the settings and all findings (errors leave defaults in place).

        Without `config`, `FAL_PROXY_CONFIG` or `./fal-proxy.toml` is read; only the last may be missing.
        """
        environ = os.environ if environ is None else environ
        findings: list[Finding] = []
        raw = _read_file(config, environ, findings)
        _overlay(raw, environ, findings)
        return _build(cls, raw, "", findings), findings


def config_path(config: str | Path | None, environ: Mapping[str, str]) -> Path:
    """Return the file that `Settings.load` reads; paths inside it are relative to its folder."""
    return Path(config or environ.get(ENV_CONFIG) or DEFAULT_CONFIG)


def _read_file(config: str | Path | None, environ: Mapping[str, str], findings: list[Finding]) -> dict[str, Any]:
    path = config_path(config, environ)
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if config or environ.get(ENV_CONFIG):
            findings.append(Finding("error", str(path), "no such file"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        findings.append(Finding("error", str(path), f"cannot be read: {error}"))
    return {}


def _overlay(raw: dict[str, Any], environ: Mapping[str, str], findings: list[Finding]) -> None:
    """Lay `FAL_PROXY_SECTION__KEY` variables over the file's tables."""
    for name in sorted(environ):
        if not name.startswith(_ENV_PREFIX) or name in _ENV_RESERVED:
            continue
        keys = name[len(_ENV_PREFIX) :].lower().split("__")
        leaf = _leaf_type(Settings, keys)
        if leaf is None:
            findings.append(Finding("error", name, "no such setting"))
            continue
        value: Any = environ[name]
        if leaf is not str:
            try:
                value = msgspec.json.decode(value)
            except (msgspec.DecodeError, RecursionError):
                # A bare word is what people write for one of a few names; the type check below judges it.
                pass
        table = raw
        for key in keys[:-1]:
            inner = table.setdefault(key, {})
            if not isinstance(inner, dict):
                inner = table[key] = {}
            table = inner
        table[keys[-1]] = value


def _leaf_type(kind: Any, keys: list[str]) -> Any:
    """Return the type of the setting that `keys` name, or None."""
    for key in keys:
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            kind = get_type_hints(kind).get(key)
        else:
            return None
    return kind


def _build(kind: Any, raw: Any, path: str, findings: list[Finding]) -> Any:
    """Convert one table, field by field, so that one mistake does not hide the next."""
    if not isinstance(raw, dict):
        findings.append(Finding("error", path, "must be a table"))
        return kind()
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in raw.items():
        where = f"{path}.{key}" if path else key
        hint = hints.get(key)
        if hint is None:
            findings.append(Finding("error", where, "no such setting"))
        elif isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            values[key] = _build(hint, value, where, findings)
        elif get_origin(hint) is dict:
            table = value if isinstance(value, dict) else {}
            if table is not value:
                findings.append(Finding("error", where, "must be a table"))
            values[key] = {
                name: _build(get_args(hint)[1], item, f"{where}.{name}", findings) for name, item in table.items()
            }
        else:
            try:
                values[key] = msgspec.convert(value, hint, strict=True)
            except (msgspec.ValidationError, RecursionError) as error:
                findings.append(Finding("error", where, str(error)))
    return kind(**values)


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
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain or parts.path not in ("", "/"):
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = 443 if parts.scheme == "https" else 80
    return f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, default) else "")
