"""Abort signals of the official client: the app hears of it at once, and fal stops working for nobody."""

from __future__ import annotations

import pytest

from client.stage import Once, SetStage, Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENDLESS = {"seconds": 80_000, "queue_seconds": 0}
PROMPT_MILLISECONDS = 1000


async def test_aborting_a_run_rejects_and_ends_the_work(set_stage: SetStage) -> None:
    arrived = Once("emulator/slow", "delay", 0)
    async with set_stage(faults=[arrived]) as stage:
        async with stage.started("aborts.mjs", "run", endpoint="emulator/slow", input=ENDLESS) as run:
            await arrived.struck.wait()
            await run.go_on()
            entry = await stage.emulated.finished()
            assert entry.disconnected
            await run.go_on()
            seen = await run.result()

        assert seen["name"] == "AbortError"
        assert seen["elapsed"] < PROMPT_MILLISECONDS
        assert stage.targets("fal.run") == ["POST /emulator/slow"]


@pytest.mark.parametrize("scenario", ["stream", "ownAbort"], ids=["by signal", "by abort()"])
async def test_aborting_a_silent_stream_ends_it_here_and_there(set_stage: SetStage, scenario: str) -> None:
    arrived = Once("emulator/slow", "delay", 0)
    async with set_stage(faults=[arrived]) as stage:
        async with stage.started("aborts.mjs", scenario, endpoint="emulator/slow", input=ENDLESS) as run:
            await arrived.struck.wait()
            entry = await stage.emulated.finished()
            assert entry.disconnected
            await run.go_on()
            seen = await run.result()

        assert seen["events"] == [seen["last"]] == [{"seconds": 0, "partial": True}]
        assert seen["elapsed"] < PROMPT_MILLISECONDS
        assert stage.targets("fal.run") == ["POST /emulator/slow/stream"]


async def test_aborting_a_subscription_rejects_and_ends_the_polling(stage: Stage) -> None:
    async with stage.started("aborts.mjs", "polling", endpoint="emulator/slow", input=ENDLESS) as run:
        await run.go_on()
        seen = await run.result()

    assert seen["name"] == "AbortError"
    assert seen["elapsed"] < PROMPT_MILLISECONDS
    submit, *polls = stage.targets("queue.fal.run")
    assert submit == "POST /emulator/slow"
    assert len(polls) >= 1
    assert all(poll.endswith("/status?logs=0") for poll in polls)
