"""`fal.run` of the official client, and what travels with a request."""

from __future__ import annotations

import json

import msgspec
import pytest

from client.stage import SetStage, Stage
from fal_proxy.settings import Plan, Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXTRA = {
    "x-custom": "1",
    "Cookie": "session=1",
    "X-Forwarded-For": "203.0.113.9",
    "x-fal-store-io": "0",
    "x-fal-tags": "team=a",
    "x-app-fal-disable-fallback": "true",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}


async def test_run_yields_data_and_request_id(stage: Stage) -> None:
    given = {"prompt": "žluťoučký kůň 🐎 日本語", "deep": {"list": [1, 2.5, None, True]}}
    seen = await stage.play("run.mjs", "run", endpoint="emulator/echo", options={"input": given})

    assert seen["data"]["input"] == given
    assert len(seen["requestId"]) == 36
    [entry] = stage.entries("fal.run")
    assert (entry.method, entry.target) == ("POST", b"/emulator/echo")
    assert json.loads(entry.body) == given
    assert entry.header("content-type") == "application/json"
    assert entry.header("user-agent") == "@fal-ai/client/1.10.1"


async def test_run_without_input_sends_no_body(stage: Stage) -> None:
    seen = await stage.play("run.mjs", "run", endpoint="emulator/echo", options={})

    assert seen["data"]["input"] is None
    assert stage.entries("fal.run")[0].body_bytes == 0


@pytest.mark.parametrize("length", [300_000, 3_000_000], ids=["streamed up", "streamed both ways"])
async def test_a_large_input_and_a_large_answer_are_whole(stage: Stage, length: int) -> None:
    seen = await stage.play("run.mjs", "large", length=length)

    assert seen == {"same": True, "length": length}
    assert stage.entries("fal.run")[0].body_bytes > length


async def test_run_reaches_every_form_of_endpoint_id(stage: Stage) -> None:
    paths = {
        "acme/app": "/acme/app",
        "fal-ai/flux-pro/v1.1/ultra": "/fal-ai/flux-pro/v1.1/ultra",
        "12345678-my-app": "/12345678/my-app",
        "workflows/acme/flow": "/workflows/acme/flow",
        "comfy/acme/graph": "/comfy/acme/graph",
        "https://fal.run/acme/app/deep/route": "/acme/app/deep/route/",
    }
    seen = await stage.play("run.mjs", "runEach", endpoints=list(paths), input={"prompt": "p"})

    assert [each["data"]["endpoint"] for each in seen] == [path.strip("/") for path in paths.values()]
    assert stage.targets("fal.run") == [f"POST {path}" for path in paths.values()]


async def test_what_run_can_ask_of_fal_reaches_fal(stage: Stage) -> None:
    options = {"input": {}, "startTimeout": 12.5, "storageSettings": {"expiresIn": "1h"}}
    await stage.play("run.mjs", "run", endpoint="emulator/echo", options=options)

    [entry] = stage.entries("fal.run")
    assert entry.header("x-fal-request-timeout") == "12.5"
    assert entry.header("x-fal-object-lifecycle-preference") == '{"expiration_duration_seconds":3600}'


async def test_what_submit_can_ask_of_fal_reaches_fal(stage: Stage) -> None:
    options = {"input": {}, "priority": "low", "startTimeout": 60, "storageSettings": {"expiresIn": 90}}
    await stage.play("queue.mjs", "submit", endpoint="emulator/echo", options=options)
    await stage.play("queue.mjs", "submit", endpoint="emulator/echo", options={"input": {}})

    low, normal = stage.entries("queue.fal.run")
    assert low.header("x-fal-queue-priority") == "low"
    assert low.header("x-fal-request-timeout") == "60"
    assert low.header("x-fal-object-lifecycle-preference") == '{"expiration_duration_seconds":90}'
    assert normal.header("x-fal-queue-priority") == "normal"
    assert normal.header("x-fal-request-timeout") is None


async def test_headers_that_nobody_opened_are_dropped_and_not_refused(stage: Stage) -> None:
    options = {"input": {}, "headers": EXTRA, "hint": "a-runner"}
    await stage.play("queue.mjs", "submit", endpoint="emulator/echo", options=options)

    [entry] = stage.entries("queue.fal.run")
    assert entry.header("x-app-fal-disable-fallback") == "true"
    assert entry.header("traceparent") == EXTRA["traceparent"]
    for name in ("x-custom", "cookie", "x-forwarded-for", "x-fal-store-io", "x-fal-tags", "x-fal-runner-hint"):
        assert entry.header(name) is None


async def test_a_plan_can_open_more_headers(set_stage: SetStage, open_settings: Settings) -> None:
    plan = Plan(endpoints=("**",), allow_headers=("x-fal-runner-hint", "x-fal-tags"))
    settings = msgspec.structs.replace(open_settings, plans={"default": plan})
    async with set_stage(settings=settings) as stage:
        options = {"input": {}, "headers": EXTRA, "hint": "a-runner"}
        await stage.play("queue.mjs", "submit", endpoint="emulator/echo", options=options)

        [entry] = stage.entries("queue.fal.run")
        assert entry.header("x-fal-runner-hint") == "a-runner"
        assert entry.header("x-fal-tags") == "team=a"
        assert entry.header("x-fal-store-io") is None
