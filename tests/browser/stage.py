"""A proxy whose callers a browser identifies by itself, the emulator behind it, and a site of strangers beside it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from browser.sites import BLANK, Site, document, html, site
from fal_proxy.asgi import Scope
from fal_proxy.relay.inbound import Message, Receive, Send
from fal_proxy.settings import ForwardSource, HeaderSource, Identity, KeySource, Plan, Settings, State, Storage
from support.emulated import Emulated, emulated
from support.proxied import OPEN_PLAN, CanaryWatch, Proxy, open_settings, proxied
from support.services import Asked, Reply, Service, served

USER_HEADER = "x-forwarded-user"
SESSION = "ada"  # the value of the app's own session cookie, where there is one
OPEN_METHODS = ("POST", "GET", "PUT")  # a mere GET costs money then
AMBIENT = ("anonymous", "forward", "header")
STRANGERS_PAGE = "/strangers"  # what a name led to before it meant the proxy: DNS rebinding
# What strangers call themselves: another port is the same site to a browser, which sends cookies there.
SAME_SITE, CROSS_SITE = "127.0.0.1", "evil.localhost"


class Arrival(NamedTuple):
    """A request that reached the proxy and was answered."""

    path: str
    status: int
    with_cookie: bool
    origin: bytes | None

    @property
    def name(self) -> str:
        """The last segment of the endpoint, by which tests tell their requests apart."""
        return self.path.removesuffix("/realtime").rpartition("/")[2]


@dataclass(frozen=True)
class Stage:
    """Everything that runs, and what came to the proxy."""

    proxy: Proxy
    fal: Emulated
    site: Site
    arrivals: list[Arrival]
    identity: str

    @property
    def session(self) -> str | None:
        """The session cookie that a victim has."""
        return None if self.identity == "anonymous" else SESSION

    @property
    def own_page(self) -> str:
        """A document on the proxy's own origin."""
        return f"{self.proxy.url}/client.d.ts"

    def reached_fal(self) -> list[str]:
        """Return method, host and path of what reached fal."""
        return [f"{entry.method} {entry.host}{entry.target.decode()}" for entry in self.fal.app.journal]


class Front:
    """What stands before the proxy: it notes who comes, and as a reverse proxy names the holder of a session."""

    def __init__(self, app: CanaryWatch, *, names_users: bool) -> None:
        self._app = app
        self._names_users = names_users
        self.arrivals: list[Arrival] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one ASGI connection on."""
        if "headers" not in scope:
            await self._app(scope, receive, send)
            return
        if scope["path"] == STRANGERS_PAGE:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
            await send({"type": "http.response.body", "body": BLANK.encode()})
            return
        user = session_of(scope["headers"])
        if self._names_users:  # and nobody else may
            kept = [pair for pair in scope["headers"] if pair[0] != USER_HEADER.encode()]
            named = [] if user is None else [(USER_HEADER.encode(), user.encode())]
            scope = {**scope, "headers": kept + named}

        async def noted(message: Message) -> None:
            status = {"websocket.accept": 101}.get(message["type"], message.get("status"))
            if status is not None:
                fields = dict(scope["headers"])
                self.arrivals.append(Arrival(scope["path"], int(status), b"cookie" in fields, fields.get(b"origin")))
            await send(message)

        await self._app(scope, receive, noted)


def session_of(headers: list[tuple[bytes, bytes]]) -> str | None:
    """Return the session cookie of a request."""
    pairs = [pair.strip() for name, value in headers if name == b"cookie" for pair in value.decode().split(";")]
    return next((pair.partition("=")[2] for pair in pairs if pair.startswith("session=")), None)


def whoami(asked: Asked) -> Reply:
    """Answer as the app's own service does."""
    user = session_of(asked.headers)
    return Reply(401) if user is None else Reply(200, json.dumps({"id": user}).encode())


def ambient_settings(
    folder: Path, identity: str, whoami_url: str = "", *, methods: tuple[str, ...] = OPEN_METHODS, **changes: Any
) -> Settings:
    """Return settings with one ambient source; `methods` are those of its plan."""
    keys = KeySource(file=str(folder / "users.toml"))
    sources = {
        "anonymous": Identity(sources=("key", "anonymous"), key=keys),
        "forward": Identity(sources=("key", "forward"), key=keys, forward=ForwardSource(url=whoami_url)),
        "header": Identity(sources=("header",), header=HeaderSource(name=USER_HEADER, from_=("127.0.0.1",))),
    }
    plan: Plan = msgspec.structs.replace(OPEN_PLAN, methods=methods, realtime_sessions=100)
    changes = {
        "identity": sources[identity],
        "plans": {"default": plan},
        "state": State(),
        "storage": Storage(mode="relay"),
        **changes,
    }
    return msgspec.structs.replace(open_settings(folder), **changes)


@contextlib.asynccontextmanager
async def stage(
    folder: Path, identity: str = "anonymous", files: Mapping[str, Reply] | None = None, **changes: Any
) -> AsyncIterator[Stage]:
    """Run everything until the block ends; `files` are the strangers' pages, `changes` fields of the settings."""
    fronts: list[Front] = []

    def front(app: CanaryWatch) -> Front:
        fronts.append(Front(app, names_users=identity == "header"))
        return fronts[0]

    async with served(Service(whoami)) as service, emulated() as fal:
        settings = ambient_settings(folder, identity, f"{service}/whoami", **changes)
        async with proxied(fal.url, folder, settings, front=front) as proxy:
            arrivals = fronts[0].arrivals
            async with strangers(lambda: [arrival.name for arrival in arrivals], files or {}) as theirs:
                yield Stage(proxy, fal, theirs, arrivals, identity)


@contextlib.asynccontextmanager
async def strangers(arrived: Callable[[], list[str]], files: Mapping[str, Reply]) -> AsyncIterator[Site]:
    """Serve a blank page, `files`, and what attacks need: a redirect, a page that reports, and who has arrived."""

    def answer(asked: Asked) -> Reply | None:
        path, _, query = asked.path.partition("?")
        if path == "/arrived":
            return document(json.dumps(arrived()).encode(), "application/json")
        if path == "/redirect":
            [origin] = asked.values(b"origin") or [b"*"]
            allowed = ((b"access-control-allow-origin", origin), (b"access-control-allow-credentials", b"true"))
            return Reply(307, b"", ((b"location", unquote(query).encode()), *allowed))
        if path == "/reports":
            policy = f"img-src 'none'; report-uri {unquote(query)}"
            return html("<img src=/refused.png>", content_security_policy=policy)
        return None

    async with site({"/": html(), **files}, answer) as theirs:
        yield theirs
