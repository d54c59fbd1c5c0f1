"""A journalled mailbox in a process of its own, which files one event after the other until it is killed.

`python -m support.mortal_mailbox FOLDER FIRST` is that process: it prints each event's name once it is filed. Every third
is delivered, every fifth fails; bodies are told by their names, so that whoever reads them can judge them.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path

from fal_proxy.stores.journal import Journal
from fal_proxy.stores.mailbox import Event
from fal_proxy.stores.mailbox_memory import MemoryMailbox

HOOK = "https://app.example.com/hook"
AT_ONCE = 3


def body_of(name: str) -> bytes:
    """Return the body of an event by its name: up to 200 kB."""
    digest = hashlib.sha256(name.encode()).digest()
    return digest * (1 + int.from_bytes(digest[:2], "big") // 10)


async def _file(mailbox: MemoryMailbox, number: int) -> None:
    name = f"job-{number}"
    event = Event(name, "fal-ai/flux", ("me",), True, (("content-type", "x"),), body_of(name), HOOK)
    filed = await mailbox.file(event)
    sys.stdout.write(f"{name}\n")
    sys.stdout.flush()
    if filed is not None and number % 3 == 0:
        await mailbox.delivered(filed.number)
    elif filed is not None and number % 5 == 0:
        await mailbox.failed(filed.number, "status 500", 5)


async def _main(folder: Path, number: int) -> None:
    mailbox = MemoryMailbox(Journal(folder, segment_bytes=1_000_000))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        await asyncio.gather(*(_file(mailbox, at) for at in range(number, number + AT_ONCE)))
        number += AT_ONCE


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), int(sys.argv[2])))
