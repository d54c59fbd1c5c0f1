"""The operator's views and actions on the wire: what is shown of a day, and what stops, blocks and resets."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from fal_proxy.errors import StoreUnavailable
from fal_proxy.settings import Server, State, Storage, Webhooks
from fal_proxy.stores.memory import MemoryStore
from support.limited import (
    INITIATE,
    NETWORK,
    RUN,
    STREAM,
    SUBMIT,
    Fal,
    cancel,
    limits,
    refused,
    result,
    status,
    units,
    wide,
)
from support.operated import BEARER, TOKEN, Operate, operated, operating
from support.peers import Serve
from support.scripts import ok

operate = operating
PLAN = wide(budget="1.00/day", submit="4/minute")
PRICES = {"default": 0.04}
STOPPED = "the operator of this proxy has stopped everything that costs money; what is free still works"
BLOCKED = "the operator of this proxy has blocked you, or the network that you call from"


async def test_usage_shows_requests_refusals_and_spend_by_plan_endpoint_and_caller(operate: Operate) -> None:
    on = await operate(PLAN, prices=PRICES)
    ada, shown = on.limited.ada, await on.shown(on.limited.ada)
    on.fal.says["run"] = ok(b"{}", units("2"))
    for _ in range(2):
        assert (await on.limited.ask(RUN, ada)).status == 200
    assert (await on.limited.ask(("POST", "/fal.run/fal-ai/flux/../x"), ada)).status == 400
    usage = await on.see("/usage")
    for span in ("hour", "day"):
        found = usage[span]
        assert found["total"] == {"requests": 4, "paid": 2, "refused": 1, "microusd": 160_000}
        assert found["refusals"] == {"invalid_target": 1}
        paid = {"requests": 2, "paid": 2, "refused": 0, "microusd": 160_000}
        assert found["endpoints"][0] == {"name": "fal-ai/flux/dev", **paid}
        assert found["plans"] == [{"name": "default", **found["total"]}]
        assert found["callers"] == [{"name": shown, **found["total"]}]
        assert sum(point["microusd"] for point in found["points"]) == 160_000
    assert (len(usage["hour"]["points"]), len(usage["day"]["points"])) == (60, 24)
    assert usage["stopped"] == {"paid_since": None, "callers": []}
    assert usage["health"]["keys"] == {"reasons": [], "usable": 1, "resting": 0}
    assert usage["health"]["store"] is True


async def test_export_is_csv_that_no_spreadsheet_takes_for_formulas(operate: Operate) -> None:
    on = await operate(PLAN, prices=PRICES)
    assert (await on.limited.ask(RUN, on.limited.ada)).status == 200
    answer = await on.ask("GET", "/usage.csv")
    assert answer.one(b"content-type") == b"text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.body.decode())))
    assert [(row["by"], row["requests"], row["spend_usd"]) for row in rows] == [
        ("total", "1", "0.040000"),
        ("plan", "1", "0.040000"),
        ("endpoint", "1", "0.040000"),
        ("caller", "1", "0.040000"),
    ]


PAID = [(RUN, "a run"), (STREAM, "a stream"), (SUBMIT, "a submit")]


@pytest.mark.parametrize(("kind", "why"), PAID)
async def test_stopped_paid_calls_are_refused_and_go_on_when_resumed(
    operate: Operate, kind: tuple[str, str], why: str
) -> None:
    on = await operate(PLAN, prices=PRICES)
    assert await on.act("/paid/stop") == {"paid": "stopped"}
    assert refused(await on.limited.ask(kind, on.limited.ada), 403, "blocked") == STOPPED, why
    assert on.fal.seen == [], why
    assert await on.limited.money(on.limited.ada) == (0, 0), why
    assert (await on.see("/usage"))["stopped"]["paid_since"] > 0
    assert await on.act("/paid/resume") == {"paid": "running"}
    assert (await on.limited.ask(kind, on.limited.ada)).status == 200, why


async def test_what_is_free_still_works_while_paid_calls_are_stopped(operate: Operate) -> None:
    on = await operate(PLAN, prices=PRICES)
    job = await on.limited.submit(on.limited.ada)
    await on.act("/paid/stop")
    on.fal.says["result"] = ok(b'{"made": true}', units("1"), b"x-fal-request-id: r")
    for kind in (status(job), result(job), ("GET", "/me")):
        answer = await on.limited.ask(kind, on.limited.ada)
        assert answer.one(b"x-fal-error-type") is None, kind
        assert answer.status in (200, 202), kind


EVERYTHING = [
    (RUN, "what is paid"),
    (SUBMIT, "what is paid, and queued"),
    (("GET", "/me"), "even the question where one stands"),
    (status("job-1"), "what was paid before"),
    (cancel("job-1"), "the same"),
    (INITIATE, "an upload"),
    (("GET", "/events"), "the page's events"),
    (("GET", "/v3.fal.media/files/a/b.png"), "a file"),
    (("POST", "/rest.fal.ai/storage/auth/token?storage_type=fal-cdn-v3"), "a bearer for files"),
]


@pytest.mark.parametrize(("kind", "why"), EVERYTHING, ids=[why for _, why in EVERYTHING])
async def test_blocked_caller_is_refused_everything_and_nobody_else_is(
    operate: Operate, kind: tuple[str, str], why: str
) -> None:
    webhooks, server = Webhooks(mode="hub"), Server(hosts=("127.0.0.1",), public_url="http://127.0.0.1")
    storage = Storage(mode="relay", serve_files=True)
    on = await operate(PLAN, prices=PRICES, webhooks=webhooks, server=server, storage=storage)
    ada, bea = on.limited.ada, on.limited.user("bea")
    shown = await on.shown(ada)
    await on.limited.submit(ada)
    assert await on.act(f"/callers/{shown}/block") == {"caller": shown, "blocked": True}
    assert refused(await on.limited.ask(kind, ada), 403, "blocked") == BLOCKED, why
    assert (await on.limited.ask(RUN, bea)).status == 200
    about = await on.see(f"/callers/{shown}")
    assert (about["known"], about["plan"], about["source"], about["network"]) == (True, "default", "key", None)
    assert about["blocked_since"] == (await on.see("/usage"))["stopped"]["callers"][0]["since"]
    assert await on.act(f"/callers/{shown}/unblock") == {"caller": shown, "blocked": False}
    assert (await on.limited.ask(RUN, ada)).status == 200


async def test_blocked_network_takes_its_pages_with_it(operate: Operate) -> None:
    on = await operate(PLAN, prices=PRICES)
    page = await on.limited.page()
    shown = await on.shown(page)
    network = (await on.see(f"/callers/{shown}"))["network"]["caller"]
    assert network == await on.shown(NETWORK)
    await on.act(f"/callers/{network}/block")
    for caller in (page, NETWORK):
        refused(await on.limited.ask(RUN, caller), 403, "blocked")
    assert (await on.limited.ask(RUN, on.limited.ada)).status == 200, "who has proved more is not their network"
    assert (await on.see(f"/callers/{shown}"))["network"]["blocked_since"] > 0


async def test_reset_lets_a_caller_begin_anew(operate: Operate) -> None:
    on = await operate(wide(budget="0.10/day", submit="2/minute"), prices=PRICES)
    ada, shown = on.limited.ada, await on.shown(on.limited.ada)
    for _ in range(2):
        assert (await on.limited.ask(RUN, ada)).status == 200
    refused(await on.limited.ask(RUN, ada), 429, "rate_limited")
    about = await on.see(f"/callers/{shown}")
    assert about["standing"]["budget"]["spent_microusd"] == 80_000
    assert await on.act(f"/callers/{shown}/reset") == {"caller": shown, "reset": True}
    assert await on.limited.money(ada) == (0, 0)
    for _ in range(2):
        assert (await on.limited.ask(RUN, ada)).status == 200


async def test_caller_that_was_never_here_can_be_blocked_but_not_reset(operate: Operate) -> None:
    on = await operate(PLAN, prices=PRICES)
    stranger = "0123456789ab"
    about = await on.see(f"/callers/{stranger}")
    assert (about["known"], about["blocked_since"], "standing" in about) == (False, None, False)
    refused(await on.ask("POST", f"/callers/{stranger}/reset", BEARER), 404, "not_found")
    await on.act(f"/callers/{stranger}/block")
    assert [each["caller"] for each in (await on.see("/usage"))["stopped"]["callers"]] == [stranger]


async def test_what_is_stopped_stays_so_across_a_restart(serve: Serve, tmp_path: Path) -> None:
    settings = limits(tmp_path, PLAN, prices=PRICES, state=State(url=f"memory://{tmp_path}/state"))
    upstream = serve(Fal().script)
    async with operated(upstream, tmp_path, settings) as on:
        shown = await on.shown(on.limited.ada)
        await on.act("/paid/stop")
        await on.act(f"/callers/{shown}/block")
    async with operated(upstream, tmp_path, settings) as on:
        refused(await on.limited.ask(RUN, on.limited.user("bea")), 403, "blocked")
        refused(await on.limited.ask(("GET", "/me"), on.limited.ada), 403, "blocked")
        await on.act("/paid/resume")
        await on.act(f"/callers/{shown}/unblock")
        assert (await on.limited.ask(RUN, on.limited.ada)).status == 200


ACTIONS = ["/paid/stop", "/paid/resume", *(f"/callers/0123456789ab/{name}" for name in ("block", "unblock", "reset"))]
JUDGED = [
    ("POST", {}, 401, "loopback is not enough to change anything"),
    ("POST", {"Authorization": f"Bearer {TOKEN}x"}, 401, "another token"),
    ("POST", {"Cookie": f"token={TOKEN}"}, 401, "what a browser sends by itself"),
    ("POST", {**BEARER, "Origin": "https://evil.example"}, 403, "another page, whatever it knows"),
    ("POST", {**BEARER, "Origin": "null"}, 403, "a sandboxed page"),
    ("POST", {**BEARER, "Host": "evil.example"}, 421, "a rebound name"),
    ("GET", BEARER, 405, "a link"),
    ("PUT", BEARER, 405, "no such method"),
]


@pytest.mark.parametrize("path", ACTIONS)
async def test_nothing_changes_without_token_own_page_literal_name_and_post(operate: Operate, path: str) -> None:
    on = await operate(PLAN, prices=PRICES)
    store = on.limited.proxy.app._gateway.gate.store
    await store.mark("paid")
    before = await store.marks()
    for method, headers, code, why in JUDGED:
        answer = await on.ask(method, path, headers)
        assert answer.status == code, why
        if code == 405:
            assert answer.one(b"allow") == b"POST", why
    assert await store.marks() == before


async def test_actions_are_off_where_no_token_is_set(operate: Operate) -> None:
    on = await operate(PLAN, prices=PRICES, token="")
    assert (await on.see("/usage"))["can_act"] is False
    for path in ACTIONS:
        refused(await on.ask("POST", path, {"Authorization": "Bearer "}), 403, "mode_off")


NOWHERE = [
    "/callers/",
    "/callers/0123456789AB",
    "/callers/0123456789abc",
    "/callers/..%2f",
    "/callers/x/block",
    "/paid",
]


@pytest.mark.parametrize("path", NOWHERE)
async def test_what_is_no_caller_is_nowhere(operate: Operate, path: str) -> None:
    on = await operate(PLAN, prices=PRICES)
    for method in ("GET", "POST"):
        refused(await on.ask(method, path, BEARER), 404, "not_found")


class Away(MemoryStore):
    """A store that cannot be asked about marks."""

    async def marks(self) -> dict[str, float]:
        raise StoreUnavailable("Redis does not answer")

    async def mark(self, name: str) -> None:
        raise StoreUnavailable("Redis does not answer")

    async def ping(self) -> None:
        raise StoreUnavailable("Redis does not answer")


async def test_store_that_is_away_is_shown_and_no_action_claims_success(operate: Operate) -> None:
    on = await operate(PLAN, prices=PRICES, store=Away())
    usage = await on.see("/usage")
    assert (usage["stopped"], usage["health"]["store"]) == (None, False)
    refused(await on.ask("POST", "/paid/stop", BEARER), 503, "store_unavailable")
    refused(await on.ask("GET", "/callers/0123456789ab"), 503, "store_unavailable")
