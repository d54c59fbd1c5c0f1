"""A proxy with the hub in a process of its own, journalled, that kills itself at a chosen step of a webhook's way.

`python -m support.mortal_hub <JSON>` is that process: it prints its port and serves until it is killed. A step is
`<before|after> <call>`; the calls are those of the mailbox and the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fal_proxy.admission import settler
from fal_proxy.app import create_app
from fal_proxy.server import Listener, bind, serving
from fal_proxy.settings import State
from fal_proxy.stores.journal import Journal
from fal_proxy.stores.mailbox_memory import MemoryMailbox
from fal_proxy.stores.memory import MemoryStore
from fal_proxy.webhooks import deliveries
from support.hub import hub_settings
from support.limited import wide
from support.proxied import FAL_KEY, SIGNING_SECRET, WEBHOOK_SECRET

TESTS = Path(__file__).parent.parent
PRICE = 0.04
START_SECONDS = 30


class Mortal:
    """The process as its test sees it."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self.port = port

    async def died(self) -> int:
        """Wait until it has killed itself; return the signal."""
        return -await self._process.wait()


@contextlib.asynccontextmanager
async def mortal(
    folder: Path, upstream: str, *, port: int = 0, late: float = 0, step: str = ""
) -> AsyncIterator[Mortal]:
    """Run the process, whose store's clock is `late` seconds ahead; leaving the block kills it with SIGKILL."""
    given = {"folder": str(folder), "upstream": upstream, "port": port, "late": late, "step": step}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "support.mortal_hub", json.dumps(given), cwd=TESTS, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            line = await process.stdout.readline()
        yield Mortal(process, int(line))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _dies(step: str) -> None:
    """Make the process kill itself at a step."""
    when, name = step.split()
    kind: Any = MemoryMailbox if hasattr(MemoryMailbox, name) else MemoryStore
    call = getattr(kind, name)

    @functools.wraps(call)
    async def last(*arguments: Any) -> Any:
        found = await call(*arguments) if when == "after" else None
        if name != "claim" or found:  # that is asked all the time, mostly in vain
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(kind, name, last)


async def _main(folder: Path, upstream: str, port: int, late: float, step: str) -> None:
    settler.TICK_SECONDS = 0.02
    deliveries.TICK_SECONDS = 0.05
    deliveries.PAUSES = (0.2, *deliveries.PAUSES[1:])
    sock = bind("127.0.0.1", port)
    state = State(url=f"memory://{folder / 'state'}")
    plan = wide(concurrent=1, budget="1.00/day")
    origin = Listener(None, sock).url
    settings = hub_settings(folder, origin, plan, state=state, prices={"default": PRICE})
    store = MemoryStore(Journal(folder / "state"), lambda: time.time() + late)
    environ = {
        "FAL_PROXY_SECRET": SIGNING_SECRET,
        "FAL_PROXY_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "FAL_PROXY_UPSTREAM": upstream,
    }
    app = create_app(settings, environ=environ, key=FAL_KEY, store=store)
    if step:
        _dies(step)
    async with serving(Listener(app, sock)):
        sys.stdout.write(f"{sock.getsockname()[1]}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asyncio.run(_main(Path(given.pop("folder")), **given))
