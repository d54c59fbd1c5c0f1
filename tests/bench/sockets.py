"""What idle realtime sessions cost a proxy process: `./run env PYTHONPATH=tests python tests/bench/sockets.py [COUNT]`.

Memory is resident, of both ends of each session together, once pings have gone both ways; then all leave at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from pathlib import Path

import uvloop

from soak.__main__ import process
from soak.sockets import Talker
from soak.sse import Callers
from support.observed import Observed, Sight, observed, raise_descriptor_limit

SETTLE_SECONDS = 45.0  # two pings each way
OPEN_SECONDS = 60.0


class Silent(Talker):
    """A caller who opens a socket, answers pings and says nothing."""

    def say(self) -> None:
        """Say nothing."""
        self.said += 1


async def _until(proxy: Observed, in_progress: int) -> Sight:
    async with asyncio.timeout(OPEN_SECONDS):
        while (sight := await proxy.look()).in_progress != in_progress:  # noqa: ASYNC110 -- another process's number
            await asyncio.sleep(0.2)
    return sight


async def main(count: int) -> None:
    """Open `count` sockets, wait, and print what each came to."""
    raise_descriptor_limit()
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = await stack.enter_async_context(process("soak.sockets", "upstream"))
        assert upstream.stdout is not None
        proxy = await stack.enter_async_context(observed(int(await upstream.stdout.readline()), folder))
        callers = Callers(proxy.port, Silent)
        await callers.open(1)  # which loads what is loaded once
        before = await _until(proxy, 1)
        await callers.open(count)
        opened = await _until(proxy, count)
        await asyncio.sleep(SETTLE_SECONDS)
        settled = await proxy.look()
        assert settled.in_progress == count
        assert not callers.faults
        callers.leave()
        left = await proxy.calm(before)
    for name, sight in (("opened", opened), (f"idle for {SETTLE_SECONDS:.0f} s", settled)):
        each = (sight.resident_kib - before.resident_kib) * 1024 / (count - 1)
        print(f"{name}: {sight.resident_kib / 1024:.1f} MiB, {each:.0f} bytes a session, {sight.tasks} tasks")
    print(
        f"one: {before.resident_kib / 1024:.1f} MiB, {before.tasks} tasks; all gone: {left.resident_kib / 1024:.1f} MiB"
    )


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
