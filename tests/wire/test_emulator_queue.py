"""The emulator's queue, over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from support.emulated import Emulated, emulated

KEY = {"authorization": "Key id:secret"}
FLUX = "/fal-ai/flux/dev"


@pytest.fixture
async def fal() -> AsyncIterator[Emulated]:
    async with emulated(speed=100) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(headers=KEY, timeout=10) as made:
        yield made


async def submit(client: httpx2.AsyncClient, fal: Emulated, endpoint: str, given: Any, **headers: str) -> str:
    answer = await client.post(fal.at("queue.fal.run", endpoint), json=given, headers=headers)
    assert answer.status_code == 200
    request_id: str = answer.json()["request_id"]
    return request_id


async def completed(client: httpx2.AsyncClient, url: str) -> Any:
    async with asyncio.timeout(10):
        while True:
            answer = await client.get(url)
            if answer.status_code == 200:
                return answer.json()
            await asyncio.sleep(0.005)


def events(text: str) -> list[Any]:
    lines = text.replace("\r\n", "\n").split("\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


async def test_submit_answers_with_every_field_and_fals_own_urls(client: httpx2.AsyncClient, fal: Emulated) -> None:
    answer = await client.post(fal.at("queue.fal.run", FLUX), json={"prompt": "x"})
    body = answer.json()
    base = f"https://queue.fal.run/fal-ai/flux/requests/{body['request_id']}"
    assert body.pop("queue_position") >= 0
    assert body == {
        "status": "IN_QUEUE",
        "request_id": body["request_id"],
        "response_url": base,
        "status_url": f"{base}/status",
        "cancel_url": f"{base}/cancel",
        "logs": None,
        "metrics": {},
    }


async def test_status_is_202_until_the_job_is_completed_then_200(client: httpx2.AsyncClient) -> None:
    now = 1000.0
    async with emulated(speed=1, clock=lambda: now) as fal:
        request_id = await submit(client, fal, "/emulator/slow", {"seconds": 10, "queue_seconds": 5})
        url = fal.at("queue.fal.run", f"/emulator/slow/requests/{request_id}")
        waiting = await client.get(url + "/status")
        assert (waiting.status_code, waiting.json()["status"]) == (202, "IN_QUEUE")
        assert (waiting.json()["logs"], waiting.json()["metrics"]) == (None, {})
        now += 8
        running = await client.get(url + "/status?logs=1")
        assert (running.status_code, running.json()["status"]) == (202, "IN_PROGRESS")
        assert [entry["message"] for entry in running.json()["logs"]] == ["0 s", "1 s", "2 s", "3 s"]
        early = await client.get(url)
        assert (early.status_code, early.json()) == (400, {"detail": "Request is still in progress"})
        now += 7
        done = await client.get(url + "/status?logs=true")
        assert (done.status_code, done.json()["status"]) == (200, "COMPLETED")
        assert done.json()["metrics"] == {"inference_time": 10}
        result = await client.get(url)
        assert (result.status_code, result.json()) == (200, {"seconds": 10.0})
        assert result.headers["x-fal-request-id"] == request_id


async def test_every_spelling_of_a_queued_request_is_understood(client: httpx2.AsyncClient, fal: Emulated) -> None:
    request_id = await submit(client, fal, "/comfy/me/flow/with/path", {})
    await completed(client, fal.at("queue.fal.run", f"/comfy/me/flow/requests/{request_id}/status"))
    for path in (
        f"/comfy/me/flow/requests/{request_id}",
        f"/comfy/me/flow/requests/{request_id}/",
        f"/comfy/me/flow/requests/{request_id}/response",
        f"/comfy/me/flow/with/path/requests/{request_id}",
    ):
        assert (await client.get(fal.at("queue.fal.run", path))).json()["endpoint"] == "comfy/me/flow/with/path"
    assert (await client.get(fal.at("queue.falrun.com", f"/a/b/requests/{request_id}/status/"))).status_code == 200


async def test_a_result_is_the_same_every_time_and_has_its_units(client: httpx2.AsyncClient, fal: Emulated) -> None:
    request_id = await submit(client, fal, FLUX, {"prompt": "x", "num_images": 2})
    url = fal.at("queue.fal.run", f"/fal-ai/flux/requests/{request_id}")
    await completed(client, url + "/status")
    first, second = await asyncio.gather(client.get(url), client.get(url))
    assert first.json() == second.json()
    assert first.headers["x-fal-billable-units"] == "2"


async def test_a_wrong_input_is_accepted_by_the_queue_and_refused_by_the_result(
    client: httpx2.AsyncClient, fal: Emulated
) -> None:
    request_id = await submit(client, fal, FLUX, {"num_images": 9})
    url = fal.at("queue.fal.run", f"/fal-ai/flux/requests/{request_id}")
    status = await completed(client, url + "/status")
    assert (status["status"], status["error"]) == ("COMPLETED", "Invalid status code: 422")
    assert status["error_type"]
    result = await client.get(url)
    assert (result.status_code, result.headers["x-fal-billable-units"]) == (422, "0")
    assert [item["loc"][1] for item in result.json()["detail"]] == ["prompt", "num_images"]


async def test_the_status_stream_tells_every_change_pings_and_ends(client: httpx2.AsyncClient, fal: Emulated) -> None:
    request_id = await submit(client, fal, "/emulator/slow", {"seconds": 40, "queue_seconds": 2})
    url = fal.at("queue.fal.run", f"/emulator/slow/requests/{request_id}/status/stream?logs=1")
    answer = await client.get(url)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "\n: ping\n\n" in answer.text
    seen = [event["status"] for event in events(answer.text)]
    assert seen[0] == "IN_QUEUE"
    assert seen[-1] == "COMPLETED"
    assert seen.count("COMPLETED") == 1
    assert "IN_PROGRESS" in seen


async def test_cancel_has_three_answers(client: httpx2.AsyncClient) -> None:
    now = 1000.0
    async with emulated(speed=1, clock=lambda: now) as fal:
        ids = [await submit(client, fal, "/emulator/slow", {"seconds": 9, "queue_seconds": 5}) for _ in range(2)]
        urls = [fal.at("queue.fal.run", f"/emulator/slow/requests/{each}") for each in ids]
        removed = await client.put(urls[0] + "/cancel")
        assert (removed.status_code, removed.json()) == (200, {"status": "OK"})
        now += 6
        asked = await client.put(urls[1] + "/cancel")
        assert (asked.status_code, asked.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
        now += 1
        for url in urls:
            status = await client.get(url + "/status")
            assert (status.status_code, status.json()["error_type"]) == (200, "client_cancelled")
            result = await client.get(url)
            assert (result.status_code, result.json()) == (499, {"detail": "Request cancelled by the client."})
            late = await client.put(url + "/cancel")
            assert (late.status_code, late.json()) == (400, {"status": "ALREADY_COMPLETED"})
        unknown = await client.put(fal.at("queue.fal.run", "/emulator/slow/requests/none/cancel"))
        assert (unknown.status_code, unknown.json()) == (404, {"status": "NOT_FOUND"})


@pytest.mark.parametrize("header", ["x-fal-request-timeout", "x-fal-request-start-timeout"])
async def test_a_start_deadline_that_passes_gives_a_504_of_the_user(
    client: httpx2.AsyncClient, fal: Emulated, header: str
) -> None:
    given = {"seconds": 1, "queue_seconds": 30}
    request_id = await submit(client, fal, "/emulator/slow", given, **{header: "2.0"})
    url = fal.at("queue.fal.run", f"/emulator/slow/requests/{request_id}")
    assert (await completed(client, url + "/status"))["error_type"] == "request_timeout"
    result = await client.get(url)
    assert (result.status_code, result.headers["x-fal-request-timeout-type"]) == (504, "user")


async def test_a_queue_longer_than_the_caller_allows_is_429(client: httpx2.AsyncClient, fal: Emulated) -> None:
    for _ in range(2):
        await submit(client, fal, "/emulator/slow", {"queue_seconds": 1000})
    answer = await client.post(fal.at("queue.fal.run", "/emulator/slow?fal_max_queue_length=1"), json={})
    assert answer.status_code == 429
