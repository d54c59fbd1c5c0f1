"""Settings: what can be decided about a deployment, as frozen structs.

Precedence is flag, environment, file, default. The structs below are the one list of settings; the loader, `check`
and the documentation test derive from them. Secrets are no settings: `environment` reads them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from fal_proxy.identity_settings import AnonymousSource as AnonymousSource
from fal_proxy.identity_settings import ForwardSource as ForwardSource
from fal_proxy.identity_settings import HeaderSource as HeaderSource
from fal_proxy.identity_settings import Identity as Identity
from fal_proxy.identity_settings import JwtSource as JwtSource
from fal_proxy.identity_settings import KeySource as KeySource
from fal_proxy.loading import Finding, Section, build, overlay, read_file
from fal_proxy.loading import says as says

DEFAULT_CONFIG = "fal-proxy.toml"
KIB = 1024
MIB = 1024 * KIB

# What the environment holds beside the settings themselves.
ENV_SECRET = "FAL_PROXY_SECRET"  # noqa: S105 -- the name of the variable, not a secret
ENV_HEADER_SECRET = "FAL_PROXY_HEADER_SECRET"  # noqa: S105 -- as above
ENV_UPSTREAM = "FAL_PROXY_UPSTREAM"
ENV_ADMIN_TOKEN = "FAL_PROXY_ADMIN_TOKEN"  # noqa: S105 -- as above
ENV_WEBHOOK_SECRET = "FAL_PROXY_WEBHOOK_SECRET"  # noqa: S105 -- as above
ENV_CONFIG = "FAL_PROXY_CONFIG"
ENV_STATE = "FAL_PROXY_STATE"  # another spelling of state.url
ENV_SECRETS = (ENV_SECRET, ENV_HEADER_SECRET, ENV_ADMIN_TOKEN, ENV_WEBHOOK_SECRET)
FILE = "_FILE"  # a secret may stand in the file that this variable of its name names
_ENV_RESERVED = frozenset([ENV_UPSTREAM, ENV_CONFIG, ENV_STATE, *ENV_SECRETS, *(name + FILE for name in ENV_SECRETS)])
_HOST_NAME = re.compile(r"[a-z0-9._\-]+|[0-9a-f:.]+")  # the second: IPv6, without its brackets


class Server(Section, frozen=True):
    """`[server]`: where we listen and who may address us."""

    host: Annotated[str, says("address to listen on")] = "127.0.0.1"
    port: Annotated[int, says("port to listen on; 0 picks a free one")] = 8080
    public_url: Annotated[
        str, says("`https://proxy.example.com`: what browsers see; decides the cookie and which origin is ours")
    ] = ""
    hosts: Annotated[tuple[str, ...], says("accepted Host names; empty with `public_url`: its host; `*`: any")] = ()
    trusted_proxies: Annotated[tuple[str, ...], says("addresses or networks whose `X-Forwarded-For` is believed")] = ()
    max_body_bytes: Annotated[int, says("largest JSON body")] = 10 * MIB
    drain_seconds: Annotated[float, says("at the end, for streams to end by themselves")] = 30
    drain_notice_seconds: Annotated[
        float, says("before it: all is served, and `/readyz` says that the end is near")
    ] = 0


class Upstream(Section, frozen=True):
    """`[upstream]`: how long fal may take."""

    connect_seconds: Annotated[float, says("until a connection stands")] = 5
    head_seconds: Annotated[float, says("until the head of an answer; run and stream: 3600")] = 60
    body_idle_seconds: Annotated[float, says("between two pieces of a body")] = 900


class Cors(Section, frozen=True):
    """`[cors]`: exact origins of pages beside our own."""

    origins: Annotated[tuple[str, ...], says("exact origins of pages beside our own")] = ()


class Plan(Section, frozen=True):
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
    submit: Annotated[str, says("rates of run, stream and submit together; the grammar of `limits`")] = (
        "20/minute; 200/day"
    )
    read: Annotated[str, says("rates of status, status stream, result and cancel together")] = "2400/minute"
    upload: Annotated[str, says("rates of upload initiations")] = "60/hour"
    concurrent: Annotated[int, says("runs, streams and jobs at a time")] = 4
    realtime_sessions: Annotated[int, says("realtime sockets at a time; opening one counts as a submit")] = 1
    realtime_token: Annotated[bool, says("with `realtime.mode` token: these callers get fal's tokens")] = False
    budget: Annotated[str, says("what one caller may spend, in USD: `1.00/day`; hour, day, week, month, total")] = ""
    total_budget: Annotated[str, says("what all callers of the plan may spend together")] = ""


class InputRule(Section, frozen=True):
    """`[[inputs]]`: what may be asked of the endpoints that match; fields are top-level fields of the JSON input."""

    endpoint: Annotated[str, says("glob of the endpoints that this rule concerns; all that match apply, in order")] = ""
    reject: Annotated[tuple[str, ...], says("fields that a caller may not send (422)")] = ()
    default: Annotated[dict[str, Any], says("values inserted when absent, before `clamp`")] = msgspec.field(
        default_factory=dict
    )
    clamp: Annotated[dict[str, tuple[int | float, int | float]], says("`[min, max]` of numbers; others are 422")] = (
        msgspec.field(default_factory=dict)
    )
    force: Annotated[dict[str, Any], says("values set whatever the caller sent")] = msgspec.field(default_factory=dict)
    drop: Annotated[tuple[str, ...], says("fields removed")] = ()


class Storage(Section, frozen=True):
    """`[storage]`: uploads, and files of fal's CDN."""

    mode: Annotated[
        Literal["direct", "relay", "off"],
        says("`direct`: the browser uploads with fal's signed URL; `relay`: through the proxy, bounded; `off`"),
    ] = "direct"
    hosts: Annotated[tuple[str, ...], says("file hosts of fal's that uploads and files may be relayed to and from")] = (
        "v3.fal.media",
        "v3b.fal.media",
        "fal.media",
    )
    max_upload_bytes: Annotated[int, says("largest file that is relayed")] = 1024 * MIB
    content_types: Annotated[tuple[str, ...], says("what may be uploaded; parameters are not compared")] = (
        "image/*",
        "video/*",
        "audio/*",
        "text/*",
        "model/*",
        "application/octet-stream",
        "application/json",
        "application/pdf",
        "application/zip",
        "application/x-zip-compressed",
    )
    serve_files: Annotated[bool, says("relay reads of these hosts in the path form, never as a page")] = False


class Realtime(Section, frozen=True):
    """`[realtime]`: sockets through the proxy."""

    mode: Annotated[
        Literal["relay", "token", "off"],
        says("`relay`: through the proxy, metered; `token`: past it, with fal's tokens, unmetered; `off`"),
    ] = "relay"
    token_seconds: Annotated[int, says("how long a ticket, or a fal token, may be used to open a socket")] = 120
    usd_per_second: Annotated[
        float | None,
        says("price of an open socket, a token's life and a world model; without it budgets close them"),
    ] = None
    max_message_bytes: Annotated[int, says("largest message of a caller")] = MIB
    messages: Annotated[str, says("rate of one socket's messages; beyond it the socket is closed with 4429")] = (
        "30/second"
    )
    session_seconds: Annotated[float, says("longest life of a socket")] = 3600
    idle_seconds: Annotated[float, says("longest silence of both sides")] = 300
    wma: Annotated[bool, says("world models: sessions on `wma.fal.run`, paid by the second, media past the proxy")] = (
        False
    )


class Webhooks(Section, frozen=True):
    """`[webhooks]`: what fal calls when a job has ended."""

    allowed_hosts: Annotated[tuple[str, ...], says("hosts that a caller's own `fal_webhook` may name")] = ()
    mode: Annotated[
        Literal["off", "hub"],
        says(
            "`hub`: fal calls the proxy, which tells the owner and the caller's own webhook; needs `server.public_url`"
        ),
    ] = "off"


class PriceFeed(Section, frozen=True):
    """`[price_feed]`: prices that fal itself names, where `prices` name none."""

    mode: Annotated[
        Literal["off", "fetch"],
        says("`fetch`: under a budget, an endpoint that `prices` do not name costs what fal's price list says"),
    ] = "off"
    refresh_seconds: Annotated[
        float, says("after so long a fetched price is asked for anew, while it still counts")
    ] = 3600
    max_age_seconds: Annotated[float, says("after so long it no longer counts: 503 until fal has been asked")] = 86400
    file: Annotated[str, says("what keeps them over a restart; relative to the settings file; empty: nothing")] = (
        "fal-prices.json"
    )


class State(Section, frozen=True):
    """`[state]`: what counts and remembers."""

    url: Annotated[
        str, says("`memory://`; `memory:///folder` survives a restart; `redis://…` is shared by processes")
    ] = "memory://"
    on_failure: Annotated[
        Literal["deny", "local"], says("without Redis: `deny`, or `local`: rates and concurrency per process, no money")
    ] = "deny"
    ownership: Annotated[
        Literal["strict", "off"], says("`strict`: a request id is reachable by its owners only, under its own app")
    ] = "strict"


class Admin(Section, frozen=True):
    """`[admin]`: the listener for whoever operates this."""

    host: Annotated[str, says("address of the listener for metrics; off loopback it needs `FAL_PROXY_ADMIN_TOKEN`")] = (
        "127.0.0.1"
    )
    port: Annotated[int, says("its port; 0: off")] = 9090


class Telemetry(Section, frozen=True):
    """`[telemetry]`: what others are told of each exchange, beside its line and the metrics."""

    tracing: Annotated[bool, says("make spans, sent as `OTEL_*` says; needs `fal-proxy[tracing]`")] = False


class Settings(Section, frozen=True):
    """Everything one deployment decides. Build it with `Settings.load`, or by hand for an app of your own."""

    mount: Annotated[str, says("the path that the proxy lives at")] = "/api/fal/proxy"
    total_budget: Annotated[str, says("what everybody may spend together: `50.00/day`")] = ""
    server: Server = Server()
    upstream: Upstream = Upstream()
    cors: Cors = Cors()
    identity: Identity = Identity()
    plans: dict[str, Plan] = msgspec.field(default_factory=dict)
    inputs: tuple[InputRule, ...] = ()
    prices: Annotated[
        dict[str, Any],
        says("USD per unit by endpoint glob, and `default`; or `{ usd, reserve_units, units_from }`"),
    ] = msgspec.field(default_factory=dict)
    price_feed: PriceFeed = PriceFeed()
    state: State = State()
    storage: Storage = Storage()
    realtime: Realtime = Realtime()
    webhooks: Webhooks = Webhooks()
    admin: Admin = Admin()
    telemetry: Telemetry = Telemetry()

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
        if (url := environ.get(ENV_STATE)) and isinstance(state := raw.setdefault("state", {}), dict):
            state["url"] = url
        return build(cls, raw, "", findings), findings


def config_path(config: str | Path | None, environ: Mapping[str, str]) -> Path:
    """Return the file that `Settings.load` reads; paths inside it are relative to its folder."""
    return Path(config or environ.get(ENV_CONFIG) or DEFAULT_CONFIG)


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
