"""`fal.subscribe` and `fal.queue` of the official client, through the proxy."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from client.stage import Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL_PICTURE = {"prompt": "a lighthouse", "image_size": {"width": 128, "height": 96}, "num_inference_steps": 6}
MAGIC = {"jpeg": "ffd8ff", "png": "89504e470d0a1a0a"}
# At the stage's speed these last 0.4 s and 0.5 s: long enough to be seen by a client that polls every 40 ms.
SLOW = {"seconds": 25, "queue_seconds": 20}
ENDLESS = {"seconds": 50_000, "queue_seconds": 50_000}
ORDER = ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]


def states(updates: list[dict[str, Any]]) -> list[str]:
    """Return the states of a series of updates without repetitions."""
    return list(dict.fromkeys(update["status"] for update in updates))


def in_order(updates: list[dict[str, Any]]) -> bool:
    """Say whether no update goes back to an earlier state."""
    places = [ORDER.index(update["status"]) for update in updates]
    return places == sorted(places)


@pytest.mark.parametrize("mode", ["polling", "streaming"])
async def test_subscribe_sees_every_state_and_the_logs(stage: Stage, mode: str) -> None:
    options = {"input": SLOW, "logs": True, "mode": mode}
    seen = await stage.play("subscribe.mjs", "subscribe", endpoint="emulator/slow", options=options)

    assert states(seen["updates"]) == ORDER
    assert in_order(seen["updates"])
    assert isinstance(seen["updates"][0]["position"], int)
    assert "24 s" in seen["updates"][-1]["logs"]
    assert seen["data"] == {"seconds": 25}
    assert seen["requestId"] == seen["enqueued"]
    request = f"/emulator/slow/requests/{seen['enqueued']}"
    targets = stage.targets("queue.fal.run")
    assert targets[0] == "POST /emulator/slow"
    assert targets[-1] == f"GET {request}"
    follow = f"GET {request}/status/stream?logs=1" if mode == "streaming" else f"GET {request}/status?logs=1"
    assert set(targets[1:-1]) == {follow}
    assert len(targets) == 3 or mode == "polling"


@pytest.mark.parametrize("output_format", ["jpeg", "png"])
async def test_subscribe_yields_a_picture_that_can_be_fetched(stage: Stage, output_format: str) -> None:
    options = {"input": {**SMALL_PICTURE, "output_format": output_format}, "logs": True}
    seen = await stage.play("subscribe.mjs", "picture", endpoint="fal-ai/flux/dev", options=options)

    assert in_order(seen["updates"])
    assert seen["updates"][-1]["status"] == "COMPLETED"
    assert any("6/6" in line for line in seen["updates"][-1]["logs"])
    image = seen["data"]["images"][0]
    assert (image["width"], image["height"], image["content_type"]) == (128, 96, f"image/{output_format}")
    assert seen["magic"].startswith(MAGIC[output_format])
    assert seen["size"] > 500
    assert json.loads(stage.entries("queue.fal.run")[0].body) == options["input"]


async def test_the_queue_operations_work_one_by_one(stage: Stage) -> None:
    seen = await stage.play("queue.mjs", "oneByOne", endpoint="emulator/slow", input={"seconds": 1})

    request_id = seen["submitted"]["request_id"]
    assert seen["submitted"]["status"] == "IN_QUEUE"
    assert seen["submitted"]["status_url"].endswith(f"/emulator/slow/requests/{request_id}/status")
    assert seen["first"]["request_id"] == request_id
    assert in_order(seen["events"])
    assert seen["events"][-1] == seen["last"]
    assert seen["last"]["status"] == "COMPLETED"
    assert seen["completed"]["status"] == "COMPLETED"
    assert seen["completed"]["logs"]
    assert seen["results"][0] == seen["results"][1]
    assert seen["results"][0]["requestId"] == request_id


async def test_the_client_drops_the_endpoints_path_from_the_paths_of_a_request(stage: Stage) -> None:
    seen = await stage.play("queue.mjs", "oneByOne", endpoint="acme/app/deep/route", input={"prompt": "p"})

    request = f"/acme/app/requests/{seen['submitted']['request_id']}"
    assert stage.targets("queue.fal.run") == [
        "POST /acme/app/deep/route",
        f"GET {request}/status?logs=0",
        f"GET {request}/status/stream?logs=1",
        f"GET {request}/status?logs=1",
        f"GET {request}",
        f"GET {request}",
    ]
    assert seen["results"][0]["data"]["endpoint"] == "acme/app/deep/route"


async def test_a_result_asked_for_too_early_is_an_api_error(stage: Stage) -> None:
    seen = await stage.play("queue.mjs", "tooEarly", endpoint="emulator/slow", input=ENDLESS)

    assert (seen["name"], seen["status"]) == ("ApiError", 400)
    assert seen["body"] == {"detail": "Request is still in progress"}


async def test_a_queued_request_can_be_cancelled(stage: Stage) -> None:
    seen = await stage.play("queue.mjs", "cancelQueued", endpoint="emulator/slow", input=ENDLESS)

    assert seen["answered"]
    assert seen["status"]["status"] == "COMPLETED"
    assert (seen["result"]["name"], seen["result"]["status"]) == ("ApiError", 499)
    assert seen["result"]["body"] == {"detail": "Request cancelled by the client."}
    cancel = stage.entries("queue.fal.run")[1]
    assert (cancel.method, cancel.body_bytes) == ("PUT", 0)
    assert cancel.target.endswith(b"/cancel")


async def test_a_running_request_can_be_cancelled(stage: Stage) -> None:
    given = {"seconds": 50_000, "queue_seconds": 0}
    seen = await stage.play("queue.mjs", "cancelRunning", endpoint="emulator/slow", input=given)

    assert seen["before"]["status"] == "IN_PROGRESS"
    assert seen["status"]["status"] == "COMPLETED"
    assert seen["result"]["status"] == 499


async def test_cancelling_a_completed_request_is_an_api_error_and_keeps_the_result(stage: Stage) -> None:
    given = {"seconds": 0, "queue_seconds": 0}
    seen = await stage.play("queue.mjs", "cancelCompleted", endpoint="emulator/slow", input=given)

    assert (seen["cancel"]["name"], seen["cancel"]["status"]) == ("ApiError", 400)
    assert seen["cancel"]["body"] == {"status": "ALREADY_COMPLETED"}
    assert seen["result"]["data"] == {"seconds": 0}


async def test_a_request_that_nobody_submitted_is_not_found(stage: Stage) -> None:
    unknown = "0b5a1c7e-1111-4222-8333-0123456789ab"
    seen = await stage.play("queue.mjs", "unknownRequest", endpoint="emulator/slow", requestId=unknown)

    assert [each["status"] for each in seen] == [404, 404, 404]


@pytest.mark.parametrize("endpoint", ["workflows/acme/flow", "comfy/acme/graph", "workflows/acme/flow/deep/route"])
async def test_namespaced_endpoints_keep_their_namespace(stage: Stage, endpoint: str) -> None:
    options = {"input": {"prompt": "p"}}
    seen = await stage.play("subscribe.mjs", "subscribe", endpoint=endpoint, options=options)

    assert seen["data"]["endpoint"] == endpoint
    app = "/".join(endpoint.split("/")[:3])
    targets = stage.targets("queue.fal.run")
    assert targets[0] == f"POST /{endpoint}"
    assert targets[-1] == f"GET /{app}/requests/{seen['enqueued']}"


async def test_a_request_can_be_read_under_every_documented_spelling(stage: Stage) -> None:
    paths = [
        "fal-ai/fast-app/deep/route/requests/ID/status",
        "fal-ai/fast-app/deep/route/requests/ID/status?logs=1",
        "fal-ai/fast-app/requests/ID/status/",
        "fal-ai/fast-app/deep/route/requests/ID",
        "fal-ai/fast-app/requests/ID/",
        "fal-ai/fast-app/requests/ID/response",
    ]
    seen = await stage.play("queue.mjs", "spellings", endpoint="fal-ai/fast-app/deep/route", paths=paths)

    assert seen == [[200, "COMPLETED"]] * 3 + [[200, "result"]] * 3


async def test_forty_requests_of_two_callers_at_once_each_get_their_own_answer(stage: Stage) -> None:
    prompts = [f"caller {name}, prompt {number}" for name in "ab" for number in range(20)]
    one, other = await asyncio.gather(
        stage.play("subscribe.mjs", "crowd", prompts=prompts[:20]),
        stage.play("subscribe.mjs", "crowd", prompts=prompts[20:], credentials=stage.proxy.user_key),
    )

    assert one + other == prompts
    assert stage.targets("queue.fal.run").count("POST /emulator/echo") == 40
