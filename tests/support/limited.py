"""A proxy whose limits count, with the time of its store in the test's hands, in front of a fal that says what a test
wants.

The settler of the app looks once and then waits for the test: `Limited.turn` is its next turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fal_proxy.admission import settler
from fal_proxy.app import create_app
from fal_proxy.downstream.websocket import SocketProtocol
from fal_proxy.identity.key import add
from fal_proxy.server import Listener, bind, serving
from fal_proxy.settings import Plan, Server, Settings, State
from fal_proxy.stores import Store
from fal_proxy.stores.mailbox import Mailbox
from fal_proxy.stores.memory import MemoryStore
from support.peers import PATIENCE, Peer, Serve, Upstream, turns
from support.proxied import FAL_KEY, MOUNT, OPEN_PLAN, SIGNING_SECRET, WEBHOOK_SECRET, CanaryWatch, Proxy, open_settings
from support.raw import RawAnswer, raw_client, request
from support.scripts import ok, read_request

Fields = list[tuple[str, str]]
Say = bytes | Callable[[Peer], Awaitable[object]]

OURS = ("Origin", "http://127.0.0.1")
NETWORK: Fields = []  # curl: neither credential nor cookie
RUN = ("POST", "/fal.run/fal-ai/flux/dev")
STREAM = ("POST", "/fal.run/fal-ai/flux/dev/stream")
SUBMIT = ("POST", "/queue.fal.run/fal-ai/flux/dev")
INITIATE = ("POST", "/rest.fal.ai/storage/upload/initiate")
APP = "fal-ai/flux"
MORNING = 1_800_000_000.0  # 8 o'clock in UTC, and the beginning of a slot of every window


def status(job: str, app: str = APP) -> tuple[str, str]:
    """Return the request for a job's status."""
    return ("GET", f"/queue.fal.run/{app}/requests/{job}/status")


def status_stream(job: str) -> tuple[str, str]:
    """Return the request for a job's status stream."""
    return ("GET", f"/queue.fal.run/{APP}/requests/{job}/status/stream")


def result(job: str, app: str = APP) -> tuple[str, str]:
    """Return the request for a job's result."""
    return ("GET", f"/queue.fal.run/{app}/requests/{job}")


def cancel(job: str, app: str = APP) -> tuple[str, str]:
    """Return the request that cancels a job."""
    return ("PUT", f"/queue.fal.run/{app}/requests/{job}/cancel")


def said(code: int, body: bytes = b"{}", *lines: bytes) -> bytes:
    """Return a JSON answer with a status of fal's choice."""
    return ok(body, *lines).replace(b"200 OK", b"%d X" % code, 1)


def units(amount: str) -> bytes:
    """Return the field that bills."""
    return b"x-fal-billable-units: " + amount.encode()


def events(*data: bytes) -> bytes:
    """Return an event stream that ends cleanly."""
    body = b"".join(b"data: " + each + b"\n\n" for each in data)
    return ok(body).replace(b"application/json", b"text/event-stream", 1)


IN_QUEUE = said(202, b'{"status":"IN_QUEUE"}')
COMPLETED = ok(b'{"status":"COMPLETED"}')
NAMED = b"x-fal-request-id: r"


@dataclass
class Fal:
    """What fal answers, by kind; jobs are called job-1, job-2, …"""

    says: dict[str, Say] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)  # kinds, in order
    paths: list[str] = field(default_factory=list)
    inputs: list[bytes] = field(default_factory=list)
    jobs: int = 0
    named_app: str = APP  # under which fal itself speaks of a job
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def script(self, peer: Peer) -> None:
        """Lead one connection."""
        while True:
            head, body = await read_request(peer)
            method, path = (word.decode() for word in head.split(b" ")[:2])
            kind = kind_of(method, path)
            self.seen.append(kind)
            self.paths.append(path)
            self.inputs.append(body)
            self.arrived.set()
            say = self.says.get(kind)
            if callable(say):
                await say(peer)
                if peer._sock.fileno() < 0:
                    return
            else:
                await peer.send(say or self._default(kind))

    def _default(self, kind: str) -> bytes:
        if kind == "submit":
            self.jobs += 1
            job = f"job-{self.jobs}"
            url = f"https://queue.fal.run/{self.named_app}/requests/{job}"
            return ok(msgspec.json.encode({"status": "IN_QUEUE", "request_id": job, "response_url": url}))
        return {"status": IN_QUEUE, "status_stream": events(b'{"status":"IN_QUEUE"}'), "result": said(400)}.get(
            kind, ok(b'{"status":"OK"}') if kind == "cancel" else ok()
        )


def kind_of(method: str, path: str) -> str:
    """Return what a request to fal is."""
    path = path.partition("?")[0]
    if path.startswith("/fal.run/"):
        return "stream" if path.endswith("/stream") else "run"
    if not path.startswith("/queue.fal.run/"):
        return "initiate"
    if "/requests/" not in path:
        return "submit"
    ends = {"/cancel": "cancel", "/status": "status", "/status/stream": "status_stream"}
    return next((kind for end, kind in ends.items() if path.endswith(end)), "result")


async def reset(peer: Peer) -> None:
    """Break off without an answer."""
    peer.reset()


async def hold(peer: Peer) -> None:
    """Never answer."""
    await peer.wait_gone()


@dataclass
class Clock:
    """The store's time."""

    now: float = MORNING

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


@dataclass(frozen=True)
class Limited:
    """A running proxy, its store's clock, and its callers."""

    proxy: Proxy
    clock: Clock
    folder: Path

    @property
    def ada(self) -> Fields:
        """The caller who is always there."""
        return list(self.proxy.bearer.items())

    def user(self, name: str, plan: str = "default") -> Fields:
        """Return a new key holder."""
        return [("Authorization", f"Bearer {add(self.folder / 'users.toml', name, plan)}")]

    async def page(self, *fields: tuple[str, str]) -> Fields:
        """Return a browser that has its cookie already."""
        answer = await self.ask(("GET", "/me"), [OURS, *fields])
        cookie = (answer.one(b"set-cookie") or b"").decode().partition(";")[0]
        assert cookie, answer
        return [OURS, ("Cookie", cookie), *fields]

    async def ask(self, kind: tuple[str, str], caller: Fields, body: bytes = b"{}") -> RawAnswer:
        """Send one request on a connection of its own and read its answer."""
        method, path = kind
        async with raw_client(self.proxy.port) as client:
            await client.send(request(method, MOUNT + path, caller, body if method == "POST" else None))
            async with asyncio.timeout(PATIENCE * 5):
                return await client.answer()

    async def submit(self, caller: Fields, body: bytes = b"{}") -> str:
        """Submit and return the job's id."""
        answer = await self.ask(SUBMIT, caller, body)
        assert answer.status == 200, answer
        return str(msgspec.json.decode(answer.body)["request_id"])

    async def me(self, caller: Fields) -> dict[str, Any]:
        """Return where a caller stands."""
        answer = await self.ask(("GET", "/me"), caller)
        assert answer.status == 200, answer
        return dict(msgspec.json.decode(answer.body))

    async def in_use(self, caller: Fields) -> int:
        """Return how many slots a caller holds."""
        return int((await self.me(caller))["concurrent"]["in_use"])

    async def money(self, caller: Fields) -> tuple[int, int]:
        """Return what a caller has spent and reserved, in micro-dollars."""
        budget = (await self.me(caller))["budget"]
        return budget["spent_microusd"], budget["reserved_microusd"]

    async def turn(self) -> None:
        """Let the settler look at what is due."""
        await self.proxy.app._gateway.settler.turn()

    async def idle(self) -> None:
        """Wait until no request that reserved something is being answered any more."""
        async with asyncio.timeout(PATIENCE):
            while self.proxy.app._gateway.settler._open:
                await turns(1)


def limits(folder: Path, plan: Plan | None = None, **changes: Any) -> Settings:
    """Return settings in which `plan` counts for everybody and ownership is strict; `changes` replace fields."""
    changes = {"plans": {"default": plan or OPEN_PLAN}, "state": State(), **changes}
    changes.setdefault("server", Server(hosts=("127.0.0.1",), trusted_proxies=("127.0.0.1",)))
    return msgspec.structs.replace(open_settings(folder), **changes)


def wide(**changes: Any) -> Plan:
    """Return a plan that opens everything but for `changes`."""
    return msgspec.structs.replace(OPEN_PLAN, **changes)


@contextlib.asynccontextmanager
async def limited(
    upstream: Upstream | str,
    folder: Path,
    settings: Settings | None = None,
    *,
    clock: Clock | None = None,
    store: Store | None = None,
    mailbox: Mailbox | None = None,
    user_key: str | None = None,
    sock: socket.socket | None = None,
    more: Mapping[str, str] | None = None,
) -> AsyncIterator[Limited]:
    """Run a proxy that counts in `store`, by default in memory by `clock`; `user_key` is ada's from an earlier one.

    `more` is added to its environment.
    """
    clock = clock or Clock()
    settings = settings or limits(folder)
    user_key = user_key or add(folder / "users.toml", "ada", "default")
    base = upstream if isinstance(upstream, str) else f"http://127.0.0.1:{upstream.port}"
    secrets = {"FAL_PROXY_SECRET": SIGNING_SECRET, "FAL_PROXY_WEBHOOK_SECRET": WEBHOOK_SECRET}
    environ = {**secrets, "FAL_PROXY_UPSTREAM": base, **(more or {})}
    if store is None and settings.state.url == "memory://":
        store = MemoryStore(clock=clock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settler, "TICK_SECONDS", 3600.0)
        app = CanaryWatch(create_app(settings, environ=environ, key=FAL_KEY, store=store, mailbox=mailbox))
        sock = sock or bind("127.0.0.1", 0)
        listener = Listener(app, sock, websockets=SocketProtocol, max_message_bytes=app.app.max_message_bytes)
        async with serving(listener) as origin:
            yield Limited(Proxy(origin, user_key, app.app), clock, folder)
    assert not app.leaks, f"the fal key went down to a caller: {app.leaks}"


Limit = Callable[..., Awaitable[tuple[Limited, Fal]]]


@pytest.fixture
async def limiting(serve: Serve, tmp_path: Path) -> AsyncIterator[Limit]:
    """Return a function that runs a proxy with a plan's limits in front of a scripted fal until the test ends."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(plan: Plan | None = None, *, unreachable: bool = False, **changes: Any) -> tuple[Limited, Fal]:
            fal = Fal()
            upstream = serve(fal.script)
            if unreachable:
                await upstream.close()
            settings = limits(tmp_path, plan, **changes)
            return await stack.enter_async_context(limited(upstream, tmp_path, settings)), fal

        yield start


def refused(answer: RawAnswer, code: int, error_type: str) -> str:
    """Assert that the answer is this error of ours and return its sentence."""
    body = msgspec.json.decode(answer.body)
    assert (answer.status, answer.one(b"x-fal-error-type"), body.get("error_type")) == (
        code,
        error_type.encode(),
        error_type,
    ), answer
    assert body["detail"] == body["message"]
    assert answer.one(b"x-fal-request-id") is None
    return str(body["detail"])
