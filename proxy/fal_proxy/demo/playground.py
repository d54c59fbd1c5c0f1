"""What `fal-proxy dev` plays with: who may do what, and the deployments behind the page's two ways to realtime.

Knows no page and no emulator; the fal behind it is a URL.
"""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fal_proxy.app import App, create_app
from fal_proxy.environment import Secret
from fal_proxy.identity import key as user_keys
from fal_proxy.settings import (
    ENV_SECRET,
    ENV_UPSTREAM,
    Identity,
    KeySource,
    Plan,
    Realtime,
    Server,
    Settings,
    Storage,
)
from fal_proxy.stores.opening import open_store

HOSTS = ("localhost", "127.0.0.1", "[::1]")
TOKENS_MOUNT = "/api/fal/tokens"  # realtime is relayed or left to fal by a whole deployment, so this is a second one
_USER = "ada"
_USD_PER_SECOND = 0.001
# Tight enough for its bars to move with every picture, wide enough for an afternoon of them.
_ANYBODY = Plan(
    endpoints=("**",),
    methods=("POST", "GET", "PUT", "DELETE", "PATCH"),
    submit="60/minute",
    concurrent=4,
    realtime_sessions=2,
    budget="2.00/hour",
)
# For whoever writes an app against `dev`: they are given the key of the page's second user.
_STUDIO = msgspec.structs.replace(
    _ANYBODY, submit="600/minute", concurrent=32, realtime_sessions=16, budget="100.00/day"
)
_PRICES = {"default": 0.01, "fal-ai/flux/schnell": 0.003, "fal-ai/flux/**": 0.025}


@dataclass(frozen=True, slots=True)
class Playground:
    """Two deployments that share one store and one fal key; close both apps."""

    settings: Settings
    proxy: App
    tokens: App
    fal_url: str
    fal_key: Secret
    user_key: str


def open_playground(folder: Path, fal_url: str) -> Playground:
    """Make the deployments; `folder` keeps the user keys for as long as they live. Raises Misconfigured, OSError."""
    user_key = user_keys.add(folder / "users.toml", _USER, "studio")
    fal_key = Secret(f"{uuid.uuid4()}:{secrets.token_hex(16)}")
    settings = Settings(
        server=Server(hosts=HOSTS),
        identity=Identity(sources=("key", "anonymous"), key=KeySource(file=str(folder / "users.toml"))),
        plans={"default": _ANYBODY, "studio": _STUDIO},
        prices=_PRICES,
        realtime=Realtime(usd_per_second=_USD_PER_SECOND),
        storage=Storage(mode="relay", serve_files=True),
    )
    tokens = msgspec.structs.replace(
        settings,
        mount=TOKENS_MOUNT,
        plans={name: msgspec.structs.replace(plan, realtime_token=True) for name, plan in settings.plans.items()},
        realtime=Realtime(mode="token", usd_per_second=_USD_PER_SECOND),
    )
    environ = {ENV_SECRET: secrets.token_hex(32), ENV_UPSTREAM: fal_url}
    store = open_store(settings.state.url, folder, local_on_failure=False)
    return Playground(
        settings,
        create_app(settings, environ=environ, key=fal_key, store=store),
        create_app(tokens, environ=environ, key=fal_key, store=store),
        fal_url,
        fal_key,
        user_key,
    )
