"""What goes on for long when the operator stops it, and what the gate asks of a store that is away."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from fal_proxy.errors import StoreUnavailable
from fal_proxy.settings import Realtime, State
from fal_proxy.stores import Ask, Question, Standing, Verdict
from fal_proxy.stores.memory import MemoryStore
from support.limited import NETWORK, RUN, Fal, limits, refused, wide
from support.operated import Operate, operated, operating
from support.peers import Serve
from support.proxied import MOUNT
from support.raw import raw_client, request
from support.redis import redis_server
from support.sockets import ALIAS, TOKENS, StartStage, stage
from support.storage import page
from support.websocket import opened

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
operate = operating
start = stage


@pytest.mark.parametrize("mark", ["paid", "caller"])
async def test_open_socket_ends_with_its_lease_and_none_is_opened(
    start: StartStage, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    monkeypatch.setattr("fal_proxy.relay.websocket.LEASE_SECONDS", 0.2)
    on = await start(wide(realtime_sessions=2), realtime=Realtime())  # without a budget, nothing else is asked then
    shown = (await on.limited.me(on.ada))["id"]
    async with opened(on.proxy, on.ada) as caller:
        await on.proxy.app._gateway.gate.store.mark("paid" if mark == "paid" else f"caller:{shown}")
        code, reason = await caller.end()
        assert code == 4403
        assert reason.startswith("the operator of this proxy has")
    refused(await on.refused(on.ada), 403, "blocked")
    refused(await on.limited.ask(TOKENS, on.ada, ALIAS), 403, "blocked")


async def test_socket_without_a_budget_outlives_a_store_that_is_away(
    start: StartStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fal_proxy.relay.websocket.LEASE_SECONDS", 0.1)
    on = await start(wide(realtime_sessions=1), realtime=Realtime(idle_seconds=1.0))
    began = time.monotonic()
    async with opened(on.proxy, on.ada) as caller:

        async def away(*_: object) -> None:
            raise StoreUnavailable("away")

        with monkeypatch.context() as patch:
            patch.setattr(on.proxy.app._gateway.gate.store, "admit", away)
            assert (await caller.end())[0] == 1000, "it ends by its silence"
    assert time.monotonic() - began >= 1.0


async def test_switch_of_one_replica_stops_the_others_at_once(serve: Serve, tmp_path: Path) -> None:
    with redis_server() as redis:
        settings = limits(tmp_path, wide(budget="1.00/day"), prices={"default": 0.04}, state=State(url=redis.url))
        upstream = serve(Fal().script)
        async with operated(upstream, tmp_path, settings) as here, operated(upstream, tmp_path, settings) as there:
            assert (await there.limited.ask(RUN, there.limited.ada)).status == 200
            await here.act("/paid/stop")
            refused(await there.limited.ask(RUN, there.limited.ada), 403, "blocked")
            await there.act("/paid/resume")
            assert (await here.limited.ask(RUN, here.limited.ada)).status == 200
            shown = await there.shown(there.limited.ada)
            await there.act(f"/callers/{shown}/block")
            refused(await here.limited.ask(("GET", "/me"), here.limited.ada), 403, "blocked")
            assert [each["caller"] for each in (await here.see("/usage"))["stopped"]["callers"]] == [shown]


class Deaf(MemoryStore):
    """A store that answers nothing any more once it is told so."""

    deaf = False

    async def admit(self, ask: Ask) -> Verdict:
        if self.deaf:
            raise StoreUnavailable("Redis does not answer")
        return await super().admit(ask)

    async def standing(self, question: Question) -> Standing:
        if self.deaf:
            raise StoreUnavailable("Redis does not answer")
        return await super().standing(question)


async def test_what_is_counted_nowhere_needs_no_store(operate: Operate) -> None:
    store = Deaf()
    on = await operate(store=store)
    token = ("POST", "/rest.fal.ai/storage/auth/token?storage_type=fal-cdn-v3")
    before = await on.limited.ask(token, NETWORK)
    store.deaf = True
    assert (await on.limited.ask(token, NETWORK)).status == before.status
    refused(await on.limited.ask(("GET", "/me"), NETWORK), 503, "store_unavailable")


async def test_upload_url_ends_with_its_callers_block(tmp_path: Path) -> None:
    async with page(tmp_path) as app:
        path = await app.upload_path()
        store = app.proxy.app._gateway.gate.store
        async with raw_client(app.proxy.port) as client:
            await client.send(request("GET", MOUNT + "/me", app.proxy.bearer))
            shown = msgspec.json.decode((await client.answer()).body)["id"]
        await store.mark(f"caller:{shown}")
        refused(await app.ask("PUT", path, {"Content-Type": "image/png"}, PNG), 403, "blocked")
        await store.unmark(f"caller:{shown}")
        assert (await app.ask("PUT", path, {"Content-Type": "image/png"}, PNG)).status == 200
