"""`fal.stream` of the official client: every event, in order, with every byte."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from client.stage import SetStage, Stage
from fal_proxy.emulator import parse_faults
from support.emulated import emulated
from support.proxied import FAL_KEY

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = {"prompt": "žluťoučký kůň 🐎"}
PICTURE = {"prompt": "a lighthouse", "image_size": {"width": 96, "height": 64}, "seed": 5}


async def without_proxy(endpoint: str, given: Any, **emulator: Any) -> list[Any]:
    """Return the events that an emulator sends to a plain HTTP client."""
    async with emulated(**emulator) as direct, httpx2.AsyncClient() as http:
        headers = {"Authorization": f"Key {FAL_KEY.reveal()}"}
        answer = await http.post(direct.at("fal.run", f"/{endpoint}/stream"), json=given, headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.content.decode().splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


@pytest.mark.parametrize(
    ("endpoint", "given", "count"),
    [("fal-ai/any-llm", PROMPT, 10), ("fal-ai/flux/dev", PICTURE, 5), ("emulator/split", {}, 5)],
)
async def test_a_stream_brings_what_fal_sent_in_the_order_of_fal(
    set_stage: SetStage, endpoint: str, given: dict[str, Any], count: int
) -> None:
    # The same seed and the same address of files: two emulators then say the same.
    same: dict[str, Any] = {"seed": 11, "public_url": "http://files.test"}
    sent = await without_proxy(endpoint, given, **same)
    async with set_stage(**same) as stage:
        seen = await stage.play("stream.mjs", "stream", endpoint=endpoint, input=given)

        assert len(sent) >= count
        assert seen["events"] == sent
        assert seen["last"] == sent[-1]
        assert len(seen["requestId"]) == 36
        [entry] = stage.entries("fal.run")
        assert (entry.method, entry.target) == ("POST", f"/{endpoint}/stream".encode())
        assert "text/event-stream" in (entry.header("accept") or "")


@pytest.mark.parametrize("endpoint", ["fal-ai/any-llm", "emulator/split"])
async def test_no_character_is_broken(stage: Stage, endpoint: str) -> None:
    seen = await stage.play("stream.mjs", "stream", endpoint=endpoint, input=PROMPT)

    for event in seen["events"]:
        assert "\ufffd" not in event["output"]
    assert "žluťoučký kůň" in seen["last"]["output"]
    assert seen["last"]["partial"] is False


async def test_a_stream_can_be_iterated(stage: Stage) -> None:
    seen = await stage.play("stream.mjs", "iterate", endpoint="emulator/slow", input={"seconds": 8, "chatty": True})

    assert [event["seconds"] for event in seen["events"]] == list(range(9))
    assert seen["events"][-1] == seen["last"] == {"seconds": 8, "partial": False}


async def test_the_suffix_of_a_stream_is_not_repeated(stage: Stage) -> None:
    seen = await stage.play("stream.mjs", "stream", endpoint="acme/app/stream", input={"prompt": "p"})

    assert stage.targets("fal.run") == ["POST /acme/app/stream"]
    assert seen["last"]["input"] == {"prompt": "p"}


async def test_a_stream_that_is_refused_rejects_with_fals_own_error(stage: Stage) -> None:
    seen = await stage.play("stream.mjs", "fails", endpoint="fal-ai/any-llm", input={"temperature": 9})

    assert (seen["name"], seen["status"]) == ("ValidationError", 422)
    assert [each["loc"][-1] for each in seen["fieldErrors"]] == ["prompt", "temperature"]


async def test_a_stream_that_breaks_off_rejects(set_stage: SetStage) -> None:
    async with set_stage(faults=parse_faults("fal-ai/any-llm:truncate=600")) as stage:
        seen = await stage.play("stream.mjs", "fails", endpoint="fal-ai/any-llm", input=PROMPT)

        assert (seen["name"], seen["status"]) == ("ApiError", 500)
        assert len(stage.entries("fal.run")) == 1
