"""Settings put in force while the proxy serves: what begins is judged by the new ones, what runs is left alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fal_proxy.settings import (
    Cors,
    Identity,
    InputRule,
    KeySource,
    Realtime,
    Server,
    State,
    Storage,
    Webhooks,
)
from support.hub import StartHub, starting
from support.limited import RUN, STREAM, SUBMIT, Fields, Limit, limiting, status, units, wide
from support.peers import PATIENCE, Peer, turns
from support.proxied import MOUNT
from support.raw import raw_client, request
from support.reloaded import change, metric
from support.scripts import ok
from support.sockets import StartStage, stage, with_ticket
from support.websocket import TEXT, opened

limit, sockets, hubs = limiting, stage, starting


PAGE = ("Origin", "https://page.example")
WEBHOOK = (SUBMIT[0], SUBMIT[1] + "?fal_webhook=https%3A%2F%2Fapp.example%2Fhook")
TOKEN = ("POST", "/rest.fal.ai/tokens/realtime")
TOKEN_BODY = b'{"app":"fast-lcm"}'
HOSTS = ("127.0.0.1",)
Row = tuple[str, dict[str, Any], tuple[str, str], Fields, bytes, tuple[int, int]]
TABLE: list[Row] = [
    ("plans.default.endpoints", {"plan": wide(endpoints=("other/**",))}, RUN, [], b"{}", (200, 403)),
    ("plans.default.methods", {"plan": wide(methods=("POST", "GET"))}, ("GET", RUN[1]), [], b"", (405, 200)),
    ("plans.default.submit", {"plan": wide(submit="1/hour")}, RUN, [], b"{}", (200, 429)),
    ("plans.default.budget", {"plan": wide(budget="0.01/day"), "prices": {"default": 1}}, RUN, [], b"{}", (200, 402)),
    ("total_budget", {"total_budget": "0.00/day", "prices": {"default": 1}}, RUN, [], b"{}", (200, 402)),
    ("inputs", {"inputs": (InputRule("**", reject=("loras",)),)}, RUN, [], b'{"loras":1}', (200, 422)),
    ("server.max_body_bytes", {"server": Server(hosts=HOSTS, max_body_bytes=9)}, RUN, [], b"[0,1,2,3,4]", (200, 413)),
    ("server.hosts", {"server": Server(hosts=("app.example",))}, ("GET", "/me"), [], b"", (200, 421)),
    ("cors.origins", {"cors": Cors((PAGE[1],))}, ("OPTIONS", RUN[1]), [PAGE], b"", (403, 204)),
    ("identity.sources", {"identity": Identity(("anonymous",))}, RUN, [], b"{}", (200, 401)),
    ("storage.mode", {"storage": Storage(mode="off")}, ("POST", "/rest.fal.ai/storage/upload/initiate"), [], b"{}", (200, 403)),
    ("realtime.mode", {"realtime": Realtime(mode="off")}, TOKEN, [], TOKEN_BODY, (201, 403)),
    ("realtime.wma", {"realtime": Realtime(wma=True)}, ("POST", "/wma.fal.run/ice"), [], b"{}", (403, 422)),
    ("webhooks.allowed_hosts", {"webhooks": Webhooks(("app.example",))}, WEBHOOK, [], b"{}", (403, 200)),
    ("state.ownership", {"state": State(ownership="off")}, status("job-9"), [], b"", (404, 202)),
]  # fmt: skip


@pytest.mark.parametrize(("path", "changes", "kind", "fields", "body", "codes"), TABLE, ids=[row[0] for row in TABLE])
async def test_what_begins_after_a_change_is_judged_by_it_and_what_came_before_was_not(
    path: str,
    changes: dict[str, Any],
    kind: tuple[str, str],
    fields: Fields,
    body: bytes,
    codes: tuple[int, int],
    limit: Limit,
) -> None:
    limited, _ = await limit(wide(submit="9/hour"))

    async def ask() -> int:
        method, below = kind
        asked = [*limited.ada, *fields]
        if method == "OPTIONS":
            asked = [*fields, ("Access-Control-Request-Method", "POST")]
        async with raw_client(limited.proxy.port) as client:
            await client.send(request(method, MOUNT + below, asked, body if method == "POST" else None))
            return (await client.answer()).status

    before = limited.proxy.app.settings
    assert await ask() == codes[0]
    changed, waiting = await change(limited, **changes)
    assert path in changed
    assert waiting == ()
    assert await ask() == codes[1]
    reverted = await limited.proxy.app.reload(before)
    assert set(reverted.changed) == set(changed)
    if path != "plans.default.submit":  # what was counted stays counted
        assert await ask() == codes[0]


async def test_a_connection_that_is_kept_open_meets_the_new_settings_with_its_next_request(limit: Limit) -> None:
    limited, _ = await limit(wide())
    wanted = request("POST", MOUNT + RUN[1], limited.ada, b"{}")
    async with raw_client(limited.proxy.port) as client:
        for plan, code in ((wide(), 200), (wide(endpoints=("other/**",)), 403), (wide(), 200)):
            await change(limited, plan)
            await client.send(wanted)
            assert (await client.answer()).status == code


async def test_what_was_counted_spent_reserved_and_owned_goes_on(limit: Limit) -> None:
    limited, fal = await limit(wide(submit="9/hour", budget="9.00/day", concurrent=3), prices={"default": 0.25})
    fal.says["run"] = ok(b"{}", units("2"))
    await limited.ask(RUN, limited.ada)
    job = await limited.submit(limited.ada)
    assert await limited.money(limited.ada) == (500_000, 250_000)
    store, settler = limited.proxy.app._gateway.gate.store, limited.proxy.app._gateway.settler
    changed, _ = await change(limited, wide(submit="3/hour", budget="1.00/day", concurrent=2), prices={"default": 0.5})
    assert changed == ("plans.default.submit", "plans.default.concurrent", "plans.default.budget", "prices.default")
    me = await limited.me(limited.ada)
    assert me["limits"]["submit"][0] == {"limit": 3, "remaining": 1, "reset_seconds": 3660}
    assert me["concurrent"] == {"limit": 2, "in_use": 1}
    assert (me["budget"]["limit_microusd"], me["budget"]["spent_microusd"]) == (1_000_000, 500_000)
    assert (await limited.ask(RUN, limited.ada)).status == 402, "0.75 of 1 dollar are gone, and it costs 0.50 now"
    assert (await limited.ask(status(job), limited.user("eve"))).status == 404
    fal.says["status"], fal.says["result"] = (
        ok(b'{"status":"COMPLETED"}'),
        ok(b"{}", units("3"), b"x-fal-request-id: r"),
    )
    limited.clock.advance(11)
    await limited.turn()
    assert await limited.money(limited.ada) == (1_250_000, 0), "by the price of the day on which it was submitted"
    assert (limited.proxy.app._gateway.gate.store, limited.proxy.app._gateway.settler) == (store, settler)


class Held:
    """An event stream of fal's that goes on when the test says so."""

    def __init__(self) -> None:
        self.begun, self.over = asyncio.Event(), asyncio.Event()

    async def __call__(self, peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-fal-billable-units: 1\r\n")
        await peer.send(b"transfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
        self.begun.set()
        await self.over.wait()
        await peer.send(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")


async def test_a_stream_goes_on_to_its_end_and_pays_what_it_cost_when_it_began(limit: Limit) -> None:
    limited, fal = await limit(wide(budget="9.00/day"), prices={"default": 0.25})
    fal.says["stream"] = held = Held()
    app = limited.proxy.app
    async with raw_client(limited.proxy.port) as client:
        await client.send(request("POST", MOUNT + STREAM[1], limited.ada, b"{}"))
        async with asyncio.timeout(PATIENCE * 5):
            await held.begun.wait()
        assert app._deployments.current.users == 1
        before = app._deployments.current
        for _ in range(3):
            await change(limited, wide(endpoints=("other/**",), budget="9.00/day"), prices={"default": 7})
            await change(limited, wide(endpoints=("another/**",), budget="9.00/day"), prices={"default": 8})
        assert app._deployments._before == [before], "those that nobody uses are gone"
        assert (await limited.ask(STREAM, limited.ada)).status == 403
        held.over.set()
        answer = await client.answer()
    assert (answer.complete, answer.body) == (True, b"data: 1\n\ndata: 2\n\n")
    await limited.idle()
    assert await limited.money(limited.ada) == (250_000, 0)
    await turns()
    assert app._deployments._before == []
    assert app._deployments.current.users == 0


async def test_a_socket_goes_on_and_the_next_one_is_refused(sockets: StartStage) -> None:
    on = await sockets()
    async with opened(on.proxy, on.ada) as caller:
        fal = await on.fal.next()
        changed, _ = await change(on.limited, realtime=Realtime(mode="off", session_seconds=1))
        assert changed == ("realtime.mode", "realtime.session_seconds")
        assert (await on.refused(on.ada)).status == 403
        await caller.send(TEXT, b"still there")
        assert (await fal.frame()).data == b"still there"
        assert await on.sessions() == 1
    await on.left()


async def test_what_fal_and_pages_were_told_before_goes_on_and_new_hosts_are_delivered_to(hubs: StartHub) -> None:
    hub = await hubs()
    job = await hub.submit(hub.limited.ada)
    told_before = hub.webhook(job, {"n": 1})
    async with hub.listen(hub.limited.ada) as stream:
        await stream.block()
        allowed = Webhooks(mode="hub", allowed_hosts=("new.example",))
        changed, _ = await change(hub.limited, wide(submit="7/hour"), webhooks=allowed)
        assert changed == ("plans.default.submit", "webhooks.allowed_hosts")
        assert (await hub.post(told_before)).status == 200
        assert (await stream.next())["request_id"] == job
        later = await hub.finish(hub.limited.ada)
        assert (await stream.next())["request_id"] == later
    refused = await hub.limited.ask(WEBHOOK, hub.limited.ada)
    assert refused.status == 403
    new = (SUBMIT[0], SUBMIT[1] + "?fal_webhook=https%3A%2F%2Fnew.example%2Fhook")
    assert (await hub.limited.ask(new, hub.limited.ada)).status == 200
    running = hub.limited.proxy.app._hub
    assert running is not None
    assert running.deliveries._hosts == {"new.example"}


async def test_a_ticket_that_was_used_stays_used_whatever_a_ticket_s_life_is_now(sockets: StartStage) -> None:
    on = await sockets()
    ticket = with_ticket(await on.ticket(on.ada))
    async with opened(on.proxy, [], ticket):
        pass
    assert (await change(on.limited, realtime=Realtime(token_seconds=7)))[0] == ("realtime.token_seconds",)
    assert (await on.refused([], ticket)).status == 401


async def test_a_plan_that_comes_is_counted_and_one_that_went_stays_counted(limit: Limit, tmp_path: Path) -> None:
    keys = Identity(("key",), key=KeySource(str(tmp_path / "users.toml")))
    limited, fal = await limit(wide(budget="9.00/day"), prices={"default": 0.25}, identity=keys)
    fal.says["run"] = ok(b"{}", units("1"))
    await limited.ask(RUN, limited.ada)
    pro = limited.user("bob", "pro")
    assert (await limited.ask(RUN, pro)).status == 403, "there is no such plan"
    plans = {"default": wide(budget="9.00/day"), "pro": wide(budget="9.00/day")}
    assert await change(limited, plans=plans) == (("plans.pro",), ())
    assert (await limited.ask(RUN, pro)).status == 200
    (limited.folder / "users.toml").write_text("")
    assert await change(limited, plans={"pro": plans["pro"]}) == (("plans.default",), ())
    cost = "fal_proxy_cost_microusd_total"
    costs = [metric(limited.proxy.app, f'{cost}{{plan="{plan}"}}') for plan in ("default", "pro")]
    assert costs == [250_000, 250_000]
