"""`onResult` of client.js in Node: a job's end reaches its page without a poll, through every way a stream can break."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.documents import README
from support.emulated import emulated
from support.hub import APP_HOST, Hub, hubbed
from support.node import Node
from support.peers import Serve
from support.proxied import MOUNT


@pytest.fixture
async def hub(serve: Serve, tmp_path: Path) -> AsyncIterator[Hub]:
    """Return a proxy with the hub in front of the emulator."""
    async with emulated(speed=200) as fal, hubbed(serve, tmp_path, upstream=fal.url) as running:
        yield running


HOOK = f"https://{APP_HOST}/hook?user=42&next=a%2Fb+c~d"


async def play(node: Node, hub: Hub, scenario: str, **params: Any) -> Any:
    """Run a scenario of results.mjs in a page of the proxy's own origin."""
    proxy = hub.limited.proxy
    given = {"url": proxy.url, "origin": proxy.origin, **params}
    async with node.started("harness.mjs", "results.mjs", scenario, environ={"SCENARIO": json.dumps(given)}) as run:
        return await run.result()


@pytest.mark.parametrize("anonymous", [True, False], ids=["cookie", "key"])
async def test_a_page_learns_of_its_jobs_end_without_a_poll(anonymous: bool, node: Node, hub: Hub) -> None:
    caller = (
        {} if anonymous else {"credentials": hub.limited.proxy.user_key, "init": {"headers": hub.limited.proxy.bearer}}
    )
    options = {"input": {"prompt": "a pier"}, "webhookUrl": HOOK}
    seen = await play(node, hub, "inAPage", endpoint="fal-ai/flux/dev", options=options, **caller)
    assert seen["result"]["request_id"] == seen["id"]
    assert (seen["result"]["status"], seen["result"]["endpoint_id"]) == ("OK", "fal-ai/flux/dev")
    assert seen["result"]["payload"]["images"]
    assert seen["same"], "also when it has ended long ago"
    assert seen["asked"][0] == "GET /api/fal/proxy/me"
    assert seen["asked"][1].startswith("POST https://queue.fal.run/fal-ai/flux/dev?fal_webhook=https%3A%2F%2F")
    assert set(seen["asked"][2:]) == {"GET /api/fal/proxy/events"}, "and nothing was polled"
    running = hub.limited.proxy.app._hub
    assert running is not None
    [event] = await running.mailbox.since(frozenset(running.mailbox.state._by_owner), 0, 9)  # type: ignore[attr-defined]
    assert event.forward_url == HOOK, "as the client wrote it"


async def test_a_page_that_waits_is_told_as_soon_as_fal_tells(serve: Serve, tmp_path: Path, node: Node) -> None:
    async with hubbed(serve, tmp_path) as hub:
        job = await hub.submit(hub.limited.ada)
        proxy = hub.limited.proxy
        params = {"origin": proxy.origin, "url": proxy.url, "id": job, "init": {"headers": proxy.bearer}}
        environ = {"SCENARIO": json.dumps(params)}
        async with node.started("harness.mjs", "results.mjs", "afterwards", environ=environ) as run:
            assert (await hub.post(hub.webhook(job, {"n": 1}, status="ERROR", error="no"))).status == 200
            await run.go_on()
            result = await run.result()
    assert (result["request_id"], result["status"], result["error"], result["payload"]) == (
        job,
        "ERROR",
        "no",
        {"n": 1},
    )


async def test_what_the_readme_tells_pages_to_write_shows_the_result(node: Node, hub: Hub) -> None:
    section = README.read_text("utf-8").partition("### Webhooks\n")[2].partition("\n## ")[0]
    [source] = [each for each in re.findall(r"```js\n(.*?)```", section, re.DOTALL) if "onResult" in each]
    here = source.replace("https://proxy.example.com" + MOUNT, hub.limited.proxy.url)
    assert hub.limited.proxy.url in here
    images = await play(node, hub, "readme", source=here)
    assert images[0]["url"]


async def test_a_stream_that_breaks_goes_on_where_it_was(node: Node, hub: Hub) -> None:
    seen = await play(node, hub, "awkward")
    assert seen["ids"] == ["a", "b", "d"]
    assert seen["text"], "text that other readers would break into lines arrives whole"
    one = {"method": "GET", "url": "/mount/events", "authorization": None}
    assert seen["asked"] == [one | {"last": last} for last in (None, "7", "7", "7")]
    assert len(seen["warnings"]) == 2
    assert all(warning.startswith("no events from MOUNT/: ") for warning in seen["warnings"])
    assert seen["warnings"][1].endswith("HTTP 503")


async def test_all_who_wait_share_one_stream_that_ends_with_the_last(node: Node, hub: Hub) -> None:
    seen = await play(node, hub, "shared")
    assert seen["asked"] == [{"method": "GET", "url": "/mount/events", "last": None, "authorization": "Bearer ada"}]
    assert seen["called"] == ["first:a", "late:z", "third:b"], "each once, and not who has stopped"
    assert seen["open"], "while one waits"
    assert seen["faults"] == ["a callback's own fault"], "which is nobody else's"


async def test_a_stream_that_has_fallen_silent_is_opened_anew(node: Node, hub: Hub) -> None:
    assert await play(node, hub, "silent") == 2
