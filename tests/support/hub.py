"""A proxy with the hub, a fal whose webhooks a test signs and bends as it likes, and streams of events as pages read them.

Signs with `cryptography` alone; the emulator's webhooks and Node's vectors are the other witnesses.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fal_proxy.identity.jwks import PublicKey
from fal_proxy.server import bind
from fal_proxy.settings import MIB, Plan, Server, Settings, Webhooks
from fal_proxy.stores import Store
from fal_proxy.stores.mailbox import Mailbox
from support.limited import SUBMIT, Clock, Fal, Fields, Limited, limited, limits
from support.peers import PATIENCE, Serve
from support.proxied import MOUNT
from support.raw import RawAnswer, RawClient, raw_client, request
from support.scripts import ok

EVENTS = ("GET", "/events")
PAGE: Fields = [("Sec-Fetch-Site", "same-origin")]  # of a browser that has no cookie yet
USER = "github|42"
APP_HOST = "app.example.com"


def key_of(seed: int) -> Ed25519PrivateKey:
    """Return the nth key pair."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"key %d" % seed).digest())


def jwk_of(key: Ed25519PrivateKey) -> dict[str, str]:
    """Return a key as fal publishes it."""
    x = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).rstrip(b"=").decode()
    return {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": x[:8]}


@dataclass
class Signed:
    """A webhook: change what you like before it is sent."""

    path: str
    body: bytes
    request_id: str
    timestamp: str
    key: Ed25519PrivateKey
    changes: dict[str, str | None] = field(default_factory=dict)

    @property
    def fields(self) -> Fields:
        """Return its header fields, signed now."""
        message = f"{self.request_id}\n{USER}\n{self.timestamp}\n{hashlib.sha256(self.body).hexdigest()}"
        named: dict[str, str | None] = {
            "Content-Type": "application/json",
            "X-Fal-Webhook-Request-Id": self.request_id,
            "X-Fal-Webhook-User-Id": USER,
            "X-Fal-Webhook-Timestamp": self.timestamp,
            "X-Fal-Webhook-Signature": self.key.sign(message.encode()).hex(),
        }
        return [(name, value) for name, value in (named | self.changes).items() if value is not None]


@dataclass
class Hub:
    """A running proxy with the hub, its fal, and fal's keys."""

    limited: Limited
    fal: Fal
    key: Ed25519PrivateKey = field(default_factory=lambda: key_of(1))

    def publish(self, *keys: Ed25519PrivateKey) -> None:
        """Let fal publish these keys."""
        self.fal.says["initiate"] = ok(json.dumps({"keys": [jwk_of(key) for key in keys]}).encode())

    @property
    def fetches(self) -> int:
        """How often fal's keys were asked for."""
        return sum(path.endswith("/.well-known/jwks.json") for path in self.fal.paths)

    @property
    def callback(self) -> str:
        """Return the path that the latest submit told fal to call."""
        submitted = [path for kind, path in zip(self.fal.seen, self.fal.paths, strict=True) if kind == "submit"]
        url = parse_qs(urlsplit(submitted[-1]).query)["fal_webhook"][0]
        origin = self.limited.proxy.origin
        assert url.startswith(f"{origin}{MOUNT}/webhooks/"), url
        return url.removeprefix(origin + MOUNT)

    def webhook(self, request_id: str, payload: Any = None, *, path: str | None = None, **told: Any) -> Signed:
        """Return the webhook of a job's end, as fal would send it for the latest submit."""
        said = {"request_id": request_id, "gateway_request_id": request_id, "status": "OK", "payload": payload, **told}
        body = json.dumps(said, ensure_ascii=False).encode()
        return Signed(path or self.callback, body, request_id, str(int(time.time())), self.key)

    async def post(self, webhook: Signed) -> RawAnswer:
        """Send a webhook on a connection of its own."""
        return await self.limited.ask(("POST", webhook.path), webhook.fields, webhook.body)

    async def page(self) -> Fields:
        """Return a browser on our own origin that has its cookie already."""
        answer = await self.limited.ask(("GET", "/me"), PAGE)
        cookie = (answer.one(b"set-cookie") or b"").decode().partition(";")[0]
        assert cookie, answer
        return [*PAGE, ("Cookie", cookie)]

    async def submit(self, caller: Fields, query: str = "", body: bytes = b'{"prompt": "a pier"}') -> str:
        """Submit a job and return its id."""
        method, path = SUBMIT
        answer = await self.limited.ask((method, path + query), caller, body)
        assert answer.status == 200, answer
        return str(msgspec.json.decode(answer.body)["request_id"])

    async def finish(self, caller: Fields, payload: Any = None) -> str:
        """Submit a job and have fal tell its end; return its id."""
        job = await self.submit(caller)
        assert (await self.post(self.webhook(job, payload))).status == 200
        return job

    def listen(self, caller: Fields, last: str | None = None) -> contextlib.AbstractAsyncContextManager[Stream]:
        """Open a stream of events."""
        return listening(self.limited.proxy.port, caller, last)

    async def told(self, caller: Fields, last: str | None = None) -> list[str]:
        """Return the jobs that a new stream tells a caller of at once."""
        async with self.listen(caller, last) as stream:
            return [each["request_id"] for each in await stream.backlog()]

    def receipts(self) -> dict[str, int]:
        """Return how many webhooks were counted, by what became of them."""
        text = self.limited.proxy.app.metrics.exposition().decode()
        lines = [line for line in text.splitlines() if line.startswith("fal_proxy_webhooks_total{")]
        return {line.split('"')[1]: int(float(line.rpartition(" ")[2])) for line in lines}


class Stream:
    """One open stream of events, as a page reads it."""

    def __init__(self, client: RawClient, headers: dict[bytes, bytes]) -> None:
        self.client = client
        self.headers = headers
        self.last: str | None = None
        self.comments = 0
        self._text = b""

    async def next(self) -> dict[str, Any]:
        """Return the next event's data."""
        while True:
            block = await self.block()
            lines = dict(line.partition(b": ")[::2] for line in block.split(b"\n"))
            if b"data" in lines:
                assert list(lines) == [b"id", b"event", b"data"], block
                assert lines[b"event"] == b"result"
                self.last = lines[b"id"].decode()
                return dict(json.loads(lines[b"data"]))

    async def block(self) -> bytes:
        """Return what stands before the next empty line. Raises EOFError at the stream's clean end."""
        async with asyncio.timeout(PATIENCE * 5):
            while b"\n\n" not in self._text:
                chunk = await self.client.read_chunk()
                if not chunk:
                    raise EOFError
                self._text += chunk
        block, _, self._text = self._text.partition(b"\n\n")
        self.comments += block.startswith(b":")
        return block

    async def backlog(self) -> list[dict[str, Any]]:
        """Return what comes before the first heartbeat; tests of it let hearts beat fast."""
        events: list[dict[str, Any]] = []
        seen = self.comments
        while True:
            block = await self.block()
            if self.comments > seen:
                return events
            lines = dict(line.partition(b": ")[::2] for line in block.split(b"\n"))
            if b"data" in lines:
                self.last = lines[b"id"].decode()
                events.append(json.loads(lines[b"data"]))


@contextlib.asynccontextmanager
async def listening(port: int, caller: Fields, last: str | None = None) -> AsyncIterator[Stream]:
    """Open a stream of events and read its head."""
    fields = [*caller, ("Last-Event-ID", last)] if last is not None else caller
    async with raw_client(port) as client:
        await client.send(request("GET", MOUNT + EVENTS[1], fields))
        status, headers = await client.read_head()
        assert status == 200, await client.reader.read(2000)
        yield Stream(client, dict(headers))


def hub_settings(
    folder: Path, origin: str, plan: Plan | None = None, *, max_body_bytes: int = 10 * MIB, **changes: Any
) -> Settings:
    """Return settings with the hub, whose public URL is `origin`."""
    local = ("127.0.0.1",)
    server = Server(public_url=origin, hosts=local, trusted_proxies=local, max_body_bytes=max_body_bytes)
    hosts: Sequence[str] = (APP_HOST,)
    given = {"server": server, "webhooks": Webhooks(mode="hub", allowed_hosts=tuple(hosts)), **changes}
    return limits(folder, plan, **given)


@contextlib.asynccontextmanager
async def hubbed(
    serve: Serve,
    folder: Path,
    plan: Plan | None = None,
    *,
    store: Store | None = None,
    mailbox: Mailbox | None = None,
    clock: Clock | None = None,
    fal: Fal | None = None,
    user_key: str | None = None,
    upstream: str | None = None,
    **changes: Any,
) -> AsyncIterator[Hub]:
    """Run a proxy with the hub in front of a scripted fal, or of whatever is at `upstream`."""
    fal = fal or Fal()
    sock = bind("127.0.0.1", 0)
    settings = hub_settings(folder, f"http://127.0.0.1:{sock.getsockname()[1]}", plan, **changes)
    parts = {"store": store, "mailbox": mailbox, "clock": clock, "user_key": user_key, "sock": sock}
    async with limited(upstream or serve(fal.script), folder, settings, **parts) as running:  # type: ignore[arg-type]
        hub = Hub(running, fal)
        hub.publish(hub.key)
        yield hub


StartHub = Callable[..., Awaitable[Hub]]


@pytest.fixture
async def starting(serve: Serve, tmp_path: Path) -> AsyncIterator[StartHub]:
    """Return a function that runs a proxy with the hub until the test ends."""
    async with contextlib.AsyncExitStack() as stack:

        async def run(*arguments: Any, **changes: Any) -> Hub:
            return await stack.enter_async_context(hubbed(serve, tmp_path, *arguments, **changes))

        yield run


@pytest.fixture
def verifications(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Note the message of every public-key operation."""
    seen: list[bytes] = []
    verify = PublicKey.verifies

    def watched(key: PublicKey, algorithm: str, signed: bytes, signature: bytes) -> bool:
        seen.append(signed)
        return verify(key, algorithm, signed, signature)

    monkeypatch.setattr(PublicKey, "verifies", watched)
    return seen
