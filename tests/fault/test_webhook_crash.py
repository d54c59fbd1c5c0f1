"""SIGKILL at every step of a webhook's way: its job is settled once, and its owner told once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fal_proxy.identity.key import add
from support.hub import Hub, Stream
from support.limited import COMPLETED, NAMED, Clock, Fal, Limited, units
from support.mortal_hub import Mortal, mortal
from support.peers import Serve
from support.proxied import Proxy
from support.scripts import ok

BILLED = (80_000, 0)  # what fal says: two units
STEPS = [
    ("before filed", False, "received, and nothing more"),
    ("before file", False, "the signature is good"),
    ("after file", False, "filed; fal was not told, and the settler neither"),
    ("before hasten", False, "the same"),
    ("after hasten", False, "the settler would ask now"),
    ("after completed", True, "the settler has seen that it is over"),
    ("before settle", True, "and what it cost"),
    ("after settle", True, "settled, perhaps not on disk"),
]


def hub_at(process: Mortal, folder: Path, fal: Fal, user_key: str) -> Hub:
    """Return the process as tests of the hub see one."""
    proxy = Proxy(f"http://127.0.0.1:{process.port}", user_key, None)  # type: ignore[arg-type]
    hub = Hub(Limited(proxy, Clock(), folder), fal)
    hub.publish(hub.key)
    return hub


async def until(expected: object, look: Callable[[], Awaitable[object]]) -> None:
    """Wait until something is so."""
    for _ in range(1000):
        if (seen := await look()) == expected:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{seen}, not {expected}")


@pytest.mark.parametrize(("step", "acknowledged", "reason"), STEPS, ids=[row[0] for row in STEPS])
async def test_a_kill_at_any_step_leaves_one_event_and_one_settlement(
    step: str, acknowledged: bool, reason: str, serve: Serve, tmp_path: Path
) -> None:
    fal = Fal(says={"status": COMPLETED, "result": ok(b"{}", units("2"), NAMED)})
    upstream = f"http://127.0.0.1:{serve(fal.script).port}"
    user_key = add(tmp_path / "users.toml", "ada", "default")
    async with mortal(tmp_path, upstream, step=step) as process:
        hub = hub_at(process, tmp_path, fal, user_key)
        ada = hub.limited.ada
        job = await hub.submit(ada)
        webhook = hub.webhook(job, {"n": 1})
        answered = False
        with contextlib.suppress(OSError, EOFError, asyncio.IncompleteReadError):
            answered = (await hub.post(webhook)).status == 200
        assert await process.died() == signal.SIGKILL
        assert answered is acknowledged, reason
    # Later than the settler's next turn would be. Fal repeats what was not answered with 200.
    async with mortal(tmp_path, upstream, port=process.port, late=120) as process:
        if not answered:
            assert (await hub.post(webhook)).status == 200
        await until(BILLED, lambda: hub.limited.money(ada))
        assert await hub.limited.in_use(ada) == 0
    async with mortal(tmp_path, upstream, port=process.port, late=240) as process:
        # The last second of settlements is not on disk yet: it was lost with the process, and is made up for.
        await until(BILLED, lambda: hub.limited.money(ada))
        assert (await hub.post(webhook)).status == 200, "a replay"
        async with hub.listen(ada) as stream:
            assert (await stream.next())["request_id"] == job
            await nothing_more(stream)
        assert await hub.limited.money(ada) == BILLED, "settled once"


async def nothing_more(stream: Stream) -> None:
    """See that a stream has told all: a second one, from where this is, begins with silence."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await stream.next()
