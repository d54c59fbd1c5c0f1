"""The proxy as its users meet it: our real server on a real socket, in front of an upstream of the test's choice."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fal_proxy.app import App, create_app
from fal_proxy.asgi import EXTENSION, Scope
from fal_proxy.downstream.websocket import SocketProtocol
from fal_proxy.environment import Secret
from fal_proxy.headers import Headers
from fal_proxy.identity.key import add
from fal_proxy.relay.inbound import Message, Receive, Send
from fal_proxy.server import Listener, bind, serving
from fal_proxy.settings import Identity, KeySource, Plan, Server, Settings, State

# The canary: wherever one of its halves shows up, the key has leaked.
FAL_KEY_ID = "ca0a7b1e-0000-4000-8000-00000000feed"
FAL_KEY_SECRET = "c0ffee5ec7e7c0ffee5ec7e7c0ffee5e"
FAL_KEY = Secret(f"{FAL_KEY_ID}:{FAL_KEY_SECRET}")
SIGNING_SECRET = "a signing secret for tests only and long enough"
WEBHOOK_SECRET = "whsec_Zm9yIHRlc3RzIG9ubHksIGFuZCBsb25nIGVub3VnaA=="
MOUNT = "/api/fal/proxy"
# Limits that no test meets by accident; tests of limits bring their own.
OPEN_PLAN = Plan(
    endpoints=("**",), submit="100000/second", read="100000/second", upload="100000/second", concurrent=10_000
)


StartProxy = Callable[..., Awaitable["Proxy"]]


@dataclass(frozen=True)
class Proxy:
    """One running proxy and the user key that it knows."""

    origin: str
    user_key: str
    app: App

    @property
    def url(self) -> str:
        """The mount, as `proxyUrl` wants it."""
        return self.origin + MOUNT

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.origin.rpartition(":")[2])

    @property
    def bearer(self) -> dict[str, str]:
        """The header that identifies the user key's holder."""
        return {"Authorization": f"Bearer {self.user_key}"}


def open_settings(folder: Path) -> Settings:
    """Return settings with both identity sources, loopback hosts and a plan that opens everything.

    Ownership is off, so that tests of the relay may read request ids that nobody submitted.
    """
    return Settings(
        server=Server(hosts=("127.0.0.1", "localhost")),
        identity=Identity(sources=("key", "anonymous"), key=KeySource(file=str(folder / "users.toml"))),
        plans={"default": OPEN_PLAN},
        state=State(ownership="off"),
    )


@contextlib.asynccontextmanager
async def proxied(
    upstream: str,
    folder: Path,
    settings: Settings | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    key: Secret | None = FAL_KEY,
    front: Callable[[CanaryWatch], Callable[..., Awaitable[None]]] | None = None,
) -> AsyncIterator[Proxy]:
    """Run a proxy whose every host is reached below `upstream`; `folder` holds its key file.

    Without `key`, the fal keys are those of `environ`. `front` wraps the app: what stands before it, in the same process.
    """
    settings = settings or open_settings(folder)
    user_key = add(folder / "users.toml", "ada", next(iter(settings.plans)))
    surroundings = {"FAL_PROXY_SECRET": SIGNING_SECRET, "FAL_PROXY_UPSTREAM": upstream, **(environ or {})}
    app = CanaryWatch(create_app(settings, environ=surroundings, key=key))
    sock = bind("127.0.0.1", 0)
    outermost = front(app) if front else app
    listener = Listener(outermost, sock, websockets=SocketProtocol, max_message_bytes=app.app.max_message_bytes)
    async with serving(listener) as origin:
        yield Proxy(origin, user_key, app.app)
    assert not app.leaks, f"the fal key went down to a caller: {app.leaks}"


class CanaryWatch:
    """Pass everything through and note every answer that holds half of the fal key, in fields or body."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.leaks: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection, watching what goes down."""
        tail = b""

        def look(what: str, data: bytes) -> None:
            nonlocal tail
            window = tail + data
            if FAL_KEY_SECRET.encode() in window or FAL_KEY_ID.encode() in window:
                self.leaks.append(f"{scope.get('method')} {scope.get('path')}: {what}")
            tail = window[-64:]

        async def watched(message: Message) -> None:
            headers = b"".join(value for _, value in message.get("headers", ()))
            look(message["type"], headers + bytes(message.get("body", b"")))
            await send(message)

        await self.app(_watching(scope, send, watched, look), receive, watched)


def _watching(scope: Scope, send: Send, watched: Send, look: Callable[[str, bytes], None]) -> Scope:
    """Return the scope with what our server can do beyond `send`, watched, so that it is done all the same."""
    own = (scope.get("extensions") or {}).get(EXTENSION)
    if (
        own is None or own.get("send") != send
    ):  # a socket, or somebody stands in front of the watch: it goes by `send` alone
        return scope

    answers, pushes = own["answer"], own["push"]

    def answer(status: int, headers: Headers, body: bytes) -> bool:
        look("answer", b"".join(value for _, value in headers) + body)
        return bool(answers(status, headers, body))

    def push(body: bytes) -> bool:
        look("push", body)
        return bool(pushes(body))

    # In the same dictionary: the server writes into it, too, for instance what it has refused meanwhile.
    own.update(send=watched, answer=answer, push=push)
    return scope


def with_server(settings: Settings, **changes: object) -> Settings:
    """Return `settings` with fields of `[server]` replaced."""
    return msgspec.structs.replace(settings, server=msgspec.structs.replace(settings.server, **changes))
