"""Deliveries to servers that a test owns: a mailbox whose clock the test moves, and what arrived, judged from the bytes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest

from contract.post import Post
from fal_proxy.environment import Secret
from fal_proxy.stores.mailbox import Mailbox
from fal_proxy.stores.mailbox_memory import MemoryMailbox
from fal_proxy.telemetry import Telemetry
from fal_proxy.upstream.dial import Dialer, Route
from fal_proxy.webhooks.deliveries import Deliveries
from fal_proxy.webhooks.signing import Signer
from support.lines import parsed, total
from support.peers import PATIENCE, Peer, Serve
from support.proxied import WEBHOOK_SECRET

HOST = "app.example.com"
HOOK = f"https://{HOST}/hook"
LONG_AGO = Secret("whsec_" + base64.b64encode(b"an older secret of 32 bytes, out").decode())


class Idle:
    """An upstream at rest."""

    idle = 0
    open_calls = 0


class Arrived(NamedTuple):
    """One POST as it came."""

    target: str
    headers: dict[str, str]
    body: bytes

    def signed_with(self, secret: str) -> bool:
        """Judge the signature by the specification's words alone."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        content = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        expected = "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
        return expected in self.headers["webhook-signature"].split(" ")


async def read_post(peer: Peer) -> Arrived:
    """Read one request with its body."""
    lines = (await peer.read_head()).decode("latin-1").split("\r\n")
    pairs = [line.partition(": ") for line in lines[1:] if line]
    headers = {name: value for name, _, value in pairs}
    assert len(headers) == len(pairs), "a field came twice"
    return Arrived(lines[0].split(" ")[1], headers, await peer.read(int(headers["content-length"])))


def answering(*statuses: int, arrived: list[Arrived] | None = None) -> Callable[[Peer], Awaitable[None]]:
    """Return a script for connections of one request each: these statuses in order, the last forever."""
    left = list(statuses or (200,))

    async def script(peer: Peer) -> None:
        post = await read_post(peer)
        if arrived is not None:
            arrived.append(post)
        status = left.pop(0) if len(left) > 1 else left[0]
        await peer.send(b"HTTP/1.1 %d X\r\nlocation: /elsewhere\r\ncontent-length: 2\r\n\r\nok" % status)
        await peer.wait_gone()

    return script


@dataclass
class Delivering(Post):
    """A mailbox with its deliveries; `turn` begins what is due."""

    mailbox: Mailbox = field(default_factory=lambda: MemoryMailbox())
    upstream: str = ""
    telemetry: Telemetry = field(default_factory=lambda: Telemetry(["default"], Idle()))
    running: list[Deliveries] = field(default_factory=list)

    def deliveries(self, **given: Any) -> Deliveries:
        """Return another process' deliveries from the same mailbox."""
        made = Deliveries(
            self.mailbox,
            given.get("dialer") or Dialer(PATIENCE),
            given.get("route") or Route(self.upstream),
            Signer(given.get("secrets", (Secret(WEBHOOK_SECRET),))),
            given.get("hosts", (HOST,)),
            self.telemetry.metrics,
            clock=lambda: self.now,
            chance=given.get("chance", lambda: 0.0),
        )
        self.running.append(made)
        return made

    async def turn(self, deliveries: Deliveries | None = None) -> None:
        """Begin what is due and wait until every attempt has ended."""
        deliveries = deliveries or (self.running or [self.deliveries()])[0]
        async with asyncio.timeout(10):
            await deliveries.turn()
            while deliveries.under_way:  # noqa: ASYNC110 -- it tells nobody
                await asyncio.sleep(0.002)

    def attempts(self) -> dict[str, int]:
        """Return how many attempts were counted, by what became of them."""
        found = parsed(self.telemetry.metrics.exposition().decode())
        names = ("delivered", "failed", "given_up")
        return {name: int(total(found, "fal_proxy_deliveries_total", attempt=name)) for name in names}

    async def reason(self) -> str:
        """Return why the newest dead letter was given up."""
        return (await self.mailbox.dead_letters(1))[0].reason

    async def close(self) -> None:
        """End everything."""
        for deliveries in self.running:
            await deliveries.close()
        await self.mailbox.close()


def delivering(upstream: str = "") -> Delivering:
    """Return an empty mailbox and its deliveries, which are for hosts behind `upstream`."""
    made = Delivering(upstream=upstream)
    made.mailbox = MemoryMailbox(clock=lambda: made.now)
    return made


Start = Callable[..., Delivering]


@pytest.fixture
async def start_delivering(serve: Serve) -> AsyncIterator[Start]:
    """Return a function that makes deliveries to a server which these scripts lead."""
    made: list[Delivering] = []

    def begin(*scripts: Callable[[Peer], Awaitable[object]]) -> Delivering:
        made.append(delivering(f"http://127.0.0.1:{serve(*scripts).port}"))
        return made[-1]

    yield begin
    for each in made:
        await each.close()
