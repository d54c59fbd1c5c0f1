"""The official client repeats some failures by itself: it may where nothing was paid, and must not where it was."""

from __future__ import annotations

import json

import pytest

from client.stage import Once, SetStage
from fal_proxy.emulator import parse_faults

pytestmark = pytest.mark.asyncio(loop_scope="module")

INPUT = {"prompt": "p"}


async def test_a_transient_503_is_repeated_and_succeeds(set_stage: SetStage) -> None:
    request = "queue.fal.run/acme/{0}/requests/*"
    faults = [
        Once("fal.run/acme/run", "status", 503),
        Once("queue.fal.run/acme/submit", "status", 503),
        Once(request.format("status") + "/status", "status", 503),
        Once(request.format("result"), "status", 503),
    ]
    async with set_stage(faults=faults) as stage:
        seen = await stage.play("retries.mjs", "transient", input=INPUT)

        assert seen == dict.fromkeys(["run", "submit", "status", "result"], INPUT)
        assert all(fault.struck.is_set() for fault in faults)
        assert [entry.status for entry in stage.entries("fal.run")] == [503, 200]
        assert stage.targets("queue.fal.run").count("POST /acme/submit") == 2
        assert len([entry for entry in stage.entries("queue.fal.run") if entry.status == 503]) == 3


@pytest.mark.parametrize(
    "fault", ["acme/**:reset", "acme/**:reset=0", "acme/**:truncate=5"], ids=["no answer", "head only", "cut answer"]
)
async def test_a_paid_request_with_an_unknown_outcome_is_never_repeated(set_stage: SetStage, fault: str) -> None:
    async with set_stage(faults=parse_faults(fault)) as stage:
        seen = await stage.play("retries.mjs", "unknownOutcome", input=INPUT)

        for error in seen.values():
            assert (error["name"], error["status"]) == ("ApiError", 500)
            assert error["body"]["error_type"] == "upstream_outcome_unknown"
            assert "may have been billed" in error["message"]
            assert error["body"]["detail"] == error["body"]["message"] == error["message"]
        assert stage.targets("fal.run") == ["POST /acme/run"]
        assert stage.targets("queue.fal.run") == ["POST /acme/submit", "POST /acme/subscribe"]
        assert all(json.loads(entry.body) == INPUT for entry in stage.emulated.app.journal)
