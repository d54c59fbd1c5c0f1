"""@ai-sdk/fal with the README's `fetch`: it names its targets itself, polls the result's URL and fetches files directly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from client.ages import AI_SDK
from client.stage import FILE_HOST, Stage, judge, staged
from fal_proxy.settings import State
from support.node import Node
from support.proxied import MOUNT, OPEN_PLAN, open_settings
from support.snippets import at, client_lines

pytestmark = pytest.mark.asyncio(loop_scope="module")

# The SDK downloads from public addresses only, so fal's files have a public name here and Node is told where that is.
FILES = "https://files.example.com"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(node: Node, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Run one stage for all tests."""
    folder = tmp_path_factory.mktemp("proxy")
    plans = {"default": msgspec.structs.replace(OPEN_PLAN, endpoints=("emulator/**", "fal-ai/**"))}
    settings = msgspec.structs.replace(open_settings(folder), plans=plans, state=State())
    async with staged(node, folder, anonymous=False, settings=settings, public_url=FILES) as stage:
        yield stage


@pytest.fixture
def stage(running: Stage) -> Iterator[Stage]:
    """Return the stage with an empty journal, and judge the journal afterwards."""
    running.emulated.app.journal.clear()
    yield running
    judge(running.emulated.app.journal, running.proxy.user_key)


async def play(stage: Stage, scenario: str, *, browser: bool = False, key: str = "", **params: Any) -> Any:
    """Play a scenario of ai.mjs and return what the SDK returned, after looking at what it fetched."""
    page = {"origin": stage.proxy.origin, "browser": browser, "elsewhere": {FILES: stage.emulated.url}}
    line = at(stage.proxy.origin, client_lines()[AI_SDK])
    given = {"scenario": scenario, "page": page, "setUp": line, "userKey": key or stage.credentials, **params}
    environ = {"SCENARIO": msgspec.json.encode(given).decode()}
    async with stage.node.started("ai.mjs", environ=environ) as run:
        said = stage.clean(await run.result())
    for each in said["fetched"]:
        assert (each["path"] == MOUNT) == each["ours"]
        assert each["ours"] or each["authorization"] is None, "the user key stays between page and proxy"
    return said["returned"]


@pytest.mark.parametrize("browser", [False, True], ids=["node", "page"])
async def test_an_image_is_made_and_downloaded(stage: Stage, browser: bool) -> None:
    seen = await play(stage, "image", browser=browser, endpoint="fal-ai/flux/dev")

    assert seen["size"] > 500
    assert len(seen["requestId"]) == 36
    assert stage.targets("fal.run") == ["POST /fal-ai/flux/dev"]
    assert [entry.method for entry in stage.entries(FILE_HOST)][-1] == "GET"


async def test_a_transcript_comes_through_the_queue(stage: Stage) -> None:
    seen = await play(stage, "transcription")

    assert len(seen["text"]) > 50
    submit, *reads = stage.targets("queue.fal.run")
    assert submit == "POST /fal-ai/whisper"
    assert all(read.startswith("GET /fal-ai/whisper/requests/") for read in reads)


async def test_a_video_is_followed_at_the_url_that_fal_gave(stage: Stage) -> None:
    seen = await play(stage, "video")

    assert seen["status"] == "completed", seen
    assert seen["url"].startswith(FILES)
    submit, *reads = stage.targets("queue.fal.run")
    assert submit == "POST /fal-ai/kling-video/v2/master/text-to-video"
    assert all(read.startswith("GET /fal-ai/kling-video/requests/") for read in reads)
    assert {entry.status for entry in stage.entries("queue.fal.run")} <= {200, 400}


@pytest.mark.parametrize(
    ("endpoint", "key", "status", "error_type"),
    [("acme/closed", "", 403, "endpoint_denied"), ("fal-ai/flux/dev", "fpk_nobody", 401, "unidentified")],
)
async def test_a_refusal_of_ours_is_an_error_with_our_body(
    stage: Stage, endpoint: str, key: str, status: int, error_type: str
) -> None:
    seen = await play(stage, "refused", endpoint=endpoint, key=key)

    assert (seen["name"], seen["status"], seen["isRetryable"]) == ("AI_APICallError", status, False)
    assert seen["body"]["error_type"] == error_type
    assert seen["message"] == seen["body"]["detail"]
    assert not stage.emulated.app.journal
