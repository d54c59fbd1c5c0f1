"""The whole way of a caller's own webhook: submitted, replaced by ours, told by fal, and told on as it came."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from fal_proxy.settings import State
from fal_proxy.webhooks import deliveries
from support.delivering import Arrived, read_post
from support.hub import APP_HOST, Hub, hubbed
from support.limited import Fal
from support.peers import Peer, Serve
from support.proxied import WEBHOOK_SECRET

HOOK = f"https://{APP_HOST}/hooks/fal?tenant=7"
QUERY = f"?fal_webhook={quote(HOOK, safe='')}"


class App:
    """The app's own server, behind the same override as fal."""

    def __init__(self, fal: Fal, *statuses: int) -> None:
        self.arrived: list[Arrived] = []
        self._fal = fal
        self._statuses = list(statuses)

    async def script(self, peer: Peer) -> None:
        """Lead one connection: the app's, or fal's."""
        head = await peer.read_head()
        peer._read -= len(head)  # whoever it is for reads it again
        if head.startswith(f"POST /{APP_HOST}/".encode()):
            self.arrived.append(await read_post(peer))
            status = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
            await peer.send(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status)
            await peer.wait_gone()
        else:
            await self._fal.script(peer)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nobody tells."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 -- see above
            await asyncio.sleep(0.01)


def attempts(hub: Hub, name: str) -> int:
    """Return how many attempts were counted as this."""
    text = hub.limited.proxy.app.metrics.exposition().decode()
    lines = (line for line in text.splitlines() if line.startswith(f'fal_proxy_deliveries_total{{attempt="{name}"}}'))
    return sum(int(float(line.rpartition(" ")[2])) for line in lines)


async def test_callers_own_webhook_gets_what_fal_sent_byte_for_byte_and_both_signatures(
    serve: Serve, tmp_path: Path
) -> None:
    fal = Fal()
    app = App(fal, 200)
    port = serve(app.script).port
    async with hubbed(serve, tmp_path, fal=fal, upstream=f"http://127.0.0.1:{port}") as hub:
        ada = hub.limited.ada
        job = await hub.submit(ada, QUERY)
        webhook = hub.webhook(job, {"images": ["ä"]})
        assert (await hub.post(webhook)).status == 200
        assert (await hub.post(webhook)).status == 200
        await until(lambda: attempts(hub, "delivered") == 1)
    (post,) = app.arrived
    assert post.target == f"/{APP_HOST}/hooks/fal?tenant=7"
    assert post.body == webhook.body
    told = {name.lower(): value for name, value in webhook.fields}
    assert {name: post.headers[name] for name in told} == told
    assert post.headers["webhook-id"] == f"msg_{job}"
    assert post.signed_with(WEBHOOK_SECRET)
    assert "authorization" not in post.headers


async def test_without_a_webhook_of_their_own_nothing_is_told_on(serve: Serve, tmp_path: Path) -> None:
    fal = Fal()
    app = App(fal, 200)
    port = serve(app.script).port
    async with hubbed(serve, tmp_path, fal=fal, upstream=f"http://127.0.0.1:{port}") as hub:
        ada = hub.limited.ada
        await hub.finish(ada)
        job = await hub.submit(ada, QUERY)
        assert (await hub.post(hub.webhook(job))).status == 200
        await until(lambda: attempts(hub, "delivered") == 1)
    assert [post.headers["webhook-id"] for post in app.arrived] == [f"msg_{job}"]


async def test_what_could_not_be_told_is_told_by_the_next_process(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "PAUSES", (0.2, *deliveries.PAUSES[1:]))
    fal = Fal()
    app = App(fal, 503, 200)
    upstream = f"http://127.0.0.1:{serve(app.script).port}"
    state = State(url=f"memory://{tmp_path}/state")
    async with hubbed(serve, tmp_path, fal=fal, upstream=upstream, state=state) as hub:
        job = await hub.submit(hub.limited.ada, QUERY)
        assert (await hub.post(hub.webhook(job))).status == 200
        await until(lambda: attempts(hub, "failed") == 1)
        user_key = hub.limited.proxy.user_key
    async with hubbed(serve, tmp_path, fal=fal, upstream=upstream, state=state, user_key=user_key) as hub:
        await hub.limited.ask(("GET", "/me"), hub.limited.ada)  # the first message of any kind
        await until(lambda: attempts(hub, "delivered") == 1)
    assert [post.headers["webhook-id"] for post in app.arrived] == [f"msg_{job}"] * 2
