"""What an app may do with fal's JavaScript client, in each version that the proxy promises to work with, in a page.

`proxyUrl: "/api/fal/proxy"` is all that the page says. Each test plays its scenario with every client, anonymous with the
proxy's cookie and with a user key; what reached fal is judged afterwards.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import msgspec
import pytest
import pytest_asyncio

from client.ages import CLIENTS, ELSEWHERE, IN_NODE, IN_NODE_BEFORE, Client, Fetched, Page
from client.stage import FILE_HOST, OLD_FILE_HOST, Stage, judge, staged
from fal_proxy.emulator import parse_faults
from fal_proxy.identity.key import add
from fal_proxy.settings import Cors, State
from support.node import Node
from support.proxied import MOUNT, OPEN_PLAN, open_settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = {"prompt": "žluťoučký kůň 🐎"}
SLOW = {"seconds": 2, "chatty": True}
ENDLESS = {"seconds": 1, "queue_seconds": 50_000}
OTHER_ORIGIN = "https://other.example.com"
MIB = 1024 * 1024
MULTIPART = [client for client in CLIENTS if client.name in ("1.2.3", "1.8.5")]  # the newest has a test of its own
STATUSES = ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
NOWHERE = "acme/closed"  # outside of the plan
LOST = "emulator/lost"  # its answers never come
PATIENT = {"connectionMode": "server"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def everything(
    node: Node, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Stage, dict[str, str]]]:
    """Run one stage for all clients, with a user key for each that is used up after one request."""
    folder = tmp_path_factory.mktemp("proxy")
    plans = {
        "default": msgspec.structs.replace(OPEN_PLAN, endpoints=("emulator/**", "fal-ai/**")),
        "tight": msgspec.structs.replace(OPEN_PLAN, submit="1/day"),
    }
    settings = msgspec.structs.replace(
        open_settings(folder), plans=plans, state=State(), cors=Cors(origins=(OTHER_ORIGIN,))
    )
    tight = {
        client.name: add(folder / "users.toml", client.package.strip("@").replace("/", "-"), "tight")
        for client in CLIENTS
    }
    async with staged(node, folder, anonymous=True, settings=settings, faults=parse_faults(f"{LOST}:reset")) as stage:
        yield stage, tight


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=CLIENTS, ids=lambda client: client.name)
async def loaded(
    everything: tuple[Stage, dict[str, str]], node: Node, request: pytest.FixtureRequest
) -> AsyncIterator[Page]:
    """Load one client, in a process that plays all of its scenarios."""
    client = cast(Client, request.param)
    async with node.started("ages.mjs", client.package, environ={}) as run:
        yield Page(client, everything[0], run)


@pytest.fixture
def page(loaded: Page, caller: str) -> Iterator[Page]:
    """Return the client with an empty journal, and judge the journal afterwards."""
    stage = loaded.stage.for_caller(anonymous=caller == "anonymous")
    stage.emulated.app.journal.clear()
    yield Page(loaded.client, stage, loaded.run)
    judge(stage.emulated.app.journal, stage.proxy.user_key)


def assert_only_ours(fetched: list[Fetched]) -> None:
    """Assert that everything went to the mount, as the header form, and was answered."""
    assert fetched
    for each in fetched:
        assert (each.ours, each.path) == (True, MOUNT)
        assert (each.target or "").startswith("https://")


async def test_run_returns_what_fal_returned(page: Page) -> None:
    seen, fetched = await page.play("run", endpoint="emulator/echo", input=PROMPT)

    assert page.client.data(seen)["input"] == PROMPT
    assert not page.client.wraps or len(seen["requestId"]) == 36
    assert_only_ours(fetched)
    assert page.stage.targets("fal.run") == ["POST /emulator/echo"]


@pytest.mark.parametrize("mode", ["polling", "streaming"])
async def test_subscribe_follows_the_queue_with_logs_to_the_result(page: Page, mode: str) -> None:
    options = {"logs": True, "mode": mode, **(PATIENT if mode == "streaming" else {"pollInterval": 500})}
    seen, fetched = await page.play("subscribe", endpoint="emulator/slow", input=SLOW, options=options)

    assert page.client.data(seen["result"])["seconds"] == 2
    order = [STATUSES.index(update["status"]) for update in seen["updates"]]
    assert order == sorted(order)
    assert seen["updates"][-1]["status"] == "COMPLETED"
    assert seen["updates"][-1]["logs"]
    assert_only_ours(fetched)
    request = f"/emulator/slow/requests/{seen['enqueued']}"
    way = "status/stream" if mode == "streaming" else "status"
    first, second, *_, last = page.stage.targets("queue.fal.run")
    assert (first, last) == ("POST /emulator/slow", f"GET {request}")
    assert second == f"GET {request}/{way}?logs=1"


async def test_the_queue_works_step_by_step(page: Page) -> None:
    seen, fetched = await page.play("queue", endpoint="fal-ai/any/deep/route", input=PROMPT)

    assert seen["first"]["request_id"] == seen["requestId"]
    assert seen["last"]["status"] == "COMPLETED"
    assert page.client.data(seen["result"])["input"] == PROMPT
    assert_only_ours(fetched)
    assert page.stage.targets("queue.fal.run")[-1] == f"GET /fal-ai/any/requests/{seen['requestId']}"


async def test_a_queued_job_can_be_cancelled(page: Page) -> None:
    seen, fetched = await page.play("cancel", endpoint="emulator/slow", input=ENDLESS)

    assert seen["status"]["status"] == "COMPLETED"
    assert seen["result"]["status"] == 499
    assert_only_ours(fetched)
    assert f"PUT /emulator/slow/requests/{seen['requestId']}/cancel" in page.stage.targets("queue.fal.run")


@pytest.mark.parametrize("endpoint", ["fal-ai/any-llm", "emulator/split"])
async def test_a_stream_arrives_whole_and_in_order(page: Page, endpoint: str) -> None:
    seen, fetched = await page.play("stream", endpoint=endpoint, input=PROMPT)

    outputs = [event["output"] for event in seen["events"]]
    assert len(outputs) >= 5
    assert outputs == sorted(outputs, key=len)
    assert not any("\ufffd" in output for output in outputs)
    assert seen["events"][-1] == seen["last"]
    assert "žluťoučký kůň" in seen["last"]["output"]
    assert_only_ours(fetched)
    assert page.stage.targets("fal.run") == [f"POST /{endpoint}/stream"]


async def test_an_upload_goes_straight_to_fals_files_and_comes_back(page: Page) -> None:
    seen, fetched = await page.play("upload", name="žluťoučký kůň.txt", type="text/plain", bytes="neigh")

    assert (seen["bytes"], seen["type"]) == ("neigh", "text/plain")
    asked, put, _ = fetched
    assert asked.target == f"https://{page.client.rest}{page.client.initiate().partition(' ')[2]}"
    assert (put.method, put.ours, put.authorization) == ("PUT", False, None)
    assert page.stage.targets(page.client.rest) == [page.client.initiate()]
    [initiated] = page.stage.entries(page.client.rest)
    assert json.loads(initiated.body) == {"content_type": "text/plain", "file_name": "žluťoučký kůň.txt"}
    host = FILE_HOST if page.client.storage_type else OLD_FILE_HOST
    assert [entry.method for entry in page.stage.entries(host)] == ["OPTIONS", "PUT", "GET"]


@pytest.mark.parametrize("loaded", MULTIPART, ids=lambda client: client.name, indirect=True)
async def test_a_large_upload_goes_up_in_parts(loaded: Page) -> None:
    stage = loaded.stage
    stage.emulated.app.journal.clear()
    seen, fetched = await loaded.play("upload", name="film.mp4", type="video/mp4", size=91 * MIB)

    assert (seen["length"], seen["type"]) == (91 * MIB, "video/mp4")
    assert stage.targets(loaded.client.rest) == [loaded.client.initiate("initiate-multipart")]
    assert [each.ours for each in fetched] == [True] + [False] * 12, "ten parts, their end, and the way back"
    parts = [entry.body_bytes for entry in stage.entries(FILE_HOST) if entry.method == "PUT"]
    assert parts == [10 * MIB] * 9 + [MIB]
    judge(stage.emulated.app.journal, stage.proxy.user_key)


async def test_a_file_in_the_input_is_uploaded_first(page: Page) -> None:
    seen, _ = await page.play("inInput", endpoint="emulator/echo", name="a.png", type="image/png", bytes="a picture")

    given = page.client.data(seen)["input"]
    assert given["file"].startswith(page.stage.emulated.url)
    assert page.stage.targets(page.client.rest) == [page.client.initiate()]


async def test_a_realtime_socket_opens_with_the_ticket_that_the_client_asks_for(page: Page) -> None:
    seen, fetched = await page.play("realtime", endpoint="emulator/echo", input=PROMPT)

    assert seen["input"]["prompt"] == PROMPT["prompt"]
    [asked] = fetched
    assert asked.target == f"https://{page.client.rest}/tokens/"
    assert page.stage.entries(page.client.rest) == [], "the ticket is ours"
    [socket] = page.stage.targets("fal.run")
    assert socket == "GET /emulator/echo/realtime"


async def test_an_endpoint_outside_of_the_plan_is_told(page: Page) -> None:
    seen, fetched = await page.play("refused", endpoint=NOWHERE, input=PROMPT)

    for way, refused in seen.items():
        assert_ours(refused["error"], 403, "endpoint_denied")
        assert refused["attempts"] == (1 if way == "stream" else page.client.attempts(403))
    assert_only_ours(fetched)
    assert not page.stage.emulated.app.journal


async def test_a_credential_that_nobody_knows_is_told(page: Page) -> None:
    seen, fetched = await page.play("refused", endpoint="emulator/echo", input=PROMPT, credentials="fpk_nobody")

    for refused in seen.values():
        assert_ours(refused["error"], 401, "unidentified")
    assert_only_ours(fetched)
    assert not page.stage.emulated.app.journal


async def test_wrong_input_is_fals_own_error_untouched(page: Page) -> None:
    seen, _ = await page.play("refused", endpoint="fal-ai/flux/dev", input={"num_images": 40})

    for refused in seen.values():
        error = refused["error"]
        assert (error["name"], error["status"]) == ("ValidationError", 422)
        assert error["fields"] == ["prompt", "num_images"]
        assert error["body"]["detail"][0]["type"] == "missing"


async def test_a_used_up_rate_is_told_and_reaches_fal_once(
    loaded: Page, everything: tuple[Stage, dict[str, str]]
) -> None:
    loaded.stage.emulated.app.journal.clear()
    key = everything[1][loaded.client.name]
    await loaded.play("run", endpoint="emulator/echo", input=PROMPT, credentials=key)
    seen, _ = await loaded.play("refused", endpoint="emulator/echo", input=PROMPT, credentials=key)

    for way, refused in seen.items():
        assert_ours(refused["error"], 429, "rate_limited")
        assert refused["attempts"] == (1 if way == "stream" else loaded.client.attempts(429))
    assert loaded.stage.targets("fal.run") == ["POST /emulator/echo"]
    judge(loaded.stage.emulated.app.journal, key)


async def test_a_paid_request_with_an_unknown_outcome_is_sent_once_unless_the_client_repeats_everything(
    page: Page,
) -> None:
    seen, _ = await page.play("refused", endpoint=LOST, input=PROMPT)

    for way, refused in seen.items():
        assert_ours(refused["error"], 500, "upstream_outcome_unknown")
        assert refused["attempts"] == (1 if way == "stream" else page.client.attempts(500))
    assert len(page.stage.targets("queue.fal.run")) == (4 if page.client.name == "1.6.0" else 1)


async def test_a_page_of_a_listed_origin_uses_the_proxy_of_another(loaded: Page) -> None:
    loaded.stage.emulated.app.journal.clear()
    given: dict[str, Any] = {"endpoint": "emulator/echo", "input": PROMPT, "options": {}}
    seen, fetched = await loaded.play("subscribe", row=ELSEWHERE, origin=OTHER_ORIGIN, **given)

    assert loaded.client.data(seen["result"])["input"] == PROMPT
    assert not loaded.client.wraps or len(seen["result"]["requestId"]) == 36, "the field is exposed"
    assert {each.ours for each in fetched} == {False}
    judge(loaded.stage.emulated.app.journal, loaded.stage.proxy.user_key)


async def test_a_page_of_an_origin_that_is_not_listed_learns_nothing(loaded: Page) -> None:
    loaded.stage.emulated.app.journal.clear()
    given: dict[str, Any] = {"endpoint": "emulator/echo", "input": PROMPT}
    seen, fetched = await loaded.play("refused", row=ELSEWHERE, origin="https://stranger.example.com", **given)

    # What a stream throws, the clients wrap; what they say is the browser's.
    assert {refused["error"]["message"].rpartition(": ")[2] for refused in seen.values()} == {"Failed to fetch"}
    assert not fetched
    assert not loaded.stage.emulated.app.journal


async def test_node_uses_the_proxy_for_everything_but_files(loaded: Page) -> None:
    stage = loaded.stage.for_caller(anonymous=False)
    stage.emulated.app.journal.clear()
    row = IN_NODE if loaded.client is CLIENTS[-1] else IN_NODE_BEFORE
    given: dict[str, Any] = {"endpoint": "emulator/echo", "name": "a.txt", "type": "text/plain", "bytes": "neigh"}
    seen, fetched = await Page(loaded.client, stage, loaded.run).play("inInput", row=row, browser=False, **given)

    assert loaded.client.data(seen)["input"]["file"].startswith(stage.emulated.url)
    assert [each.ours for each in fetched] == [True, False, True]
    assert stage.targets("fal.run") == ["POST /emulator/echo"]
    assert stage.targets(loaded.client.rest) == [loaded.client.initiate()]
    judge(stage.emulated.app.journal, stage.proxy.user_key)


def assert_ours(error: Any, status: int, error_type: str) -> None:
    """Assert that an error is one of the proxy's, in the form that the client shows to people."""
    assert (error["name"], error["status"]) == ("ApiError", status)
    assert error["body"] == {"detail": error["message"], "message": error["message"], "error_type": error_type}
