"""A journalled store in a process of its own, which does one command at a time until it is killed.

`perform` is what the child does with a command; a test does the same to a store without a journal, as the oracle.
"""

from __future__ import annotations

import asyncio
import copy
import resource
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fal_proxy.errors import StoreUnavailable
from fal_proxy.stores import Ask, Budget, Concurrency, Outcome, Rate, Record
from fal_proxy.stores.journal import Journal
from fal_proxy.stores.memory import MemoryStore
from fal_proxy.stores.replay import StatePuts
from fal_proxy.stores.state import State

START = 1_800_000_000.0
AMOUNT = 1_000
APP = "owner/alias"
TESTS = Path(__file__).parent.parent


class Clock:
    """The store's clock; one second passes with each command."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now


async def perform(store: MemoryStore, command: str) -> str:
    """Do one command, e.g. `admit a` or `settle a billed 7`, and say what came of it."""
    verb, name, *rest = command.split()
    try:
        if verb == "admit":
            return await _admit(store, name)
        if verb == "read":
            return "ok" if (await store.admit(Ask(rates=(Rate("reads", 1_000, 60),)))).denied is None else "denied"
        if verb == "submitted":
            await store.submitted(Record(f"request-{name}", (APP,), ("you",), name, "0.001", "/path", "key"))
        elif verb == "completed":
            await store.completed(f"request-{name}")
        elif verb == "settle":
            await store.settle(name, Outcome(rest[0]), int(rest[1]) if len(rest) > 1 else 0)
        else:
            raise ValueError(command)
    except StoreUnavailable:
        return "unavailable"
    return "ok"


async def _admit(store: MemoryStore, name: str) -> str:
    ask = Ask(
        rates=(Rate("everyone", 100_000, 60),),
        concurrency=(Concurrency("everyone", 100_000),),
        budgets=(Budget("everyone", 10**12, "day"), Budget(f"only-{name}", 10**12, "total")),
        amount_microusd=AMOUNT,
        price="0.001",
        entry_id=name,
    )
    verdict = await store.admit(ask)
    return "ok" if verdict.denied is None else verdict.denied.value


class Child:
    """The process; leaving the block kills it with SIGKILL."""

    def __init__(self, folder: Path, largest_file: int = 0) -> None:
        """Start it on a journal folder; `largest_file` in bytes stands for a full disk."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.crash", str(folder), str(largest_file)],
            cwd=TESTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, command: str) -> None:
        """Let it begin a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def do(self, command: str) -> str:
        """Let it do a command; return its acknowledgement."""
        self.begin(command)
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()


class Disk:
    """A stand-in for fdatasync: counts, and does what a test wants of it."""

    def __init__(self) -> None:
        self.syncs = 0
        self.error: OSError | None = None
        self.free = threading.Event()
        self.free.set()

    def __call__(self, file: int) -> None:
        """Sync one file."""
        assert self.free.wait(10)
        self.syncs += 1
        if self.error is not None:
            raise self.error


def memory(state: State, now: float) -> dict[str, Any]:
    """Return all that must survive; hits that no longer count need not."""
    counts = {
        (key, length): window.count(int(now * 60 / length))
        for length in state.windows
        for key, window in state.windows[length].items()
    }
    return {
        "purses": copy.deepcopy(state.purses),
        "slots": dict(state.slots),
        "entries": copy.deepcopy(state.entries),
        "records": dict(state.records),
        "born": dict(state.born),
        "by age": [state.born[request_id] for request_id in state.records],  # of one moment, neither is older
        "windows": {key: count for key, count in counts.items() if count},
    }


async def replayed(folder: Path) -> State:
    """Return what a fresh process would read, and let go of the folder."""
    journal = Journal(folder)
    state = State()
    try:
        journal.replay(StatePuts(state))
    finally:
        await journal.close()
    return state


def segments(folder: Path) -> list[Path]:
    """Return the segments of a journal, oldest first."""
    return sorted(folder.glob("*.journal"))


async def filled(folder: Path, count: int = 3) -> None:
    """Leave a journal of `count` admissions."""
    store = MemoryStore(Journal(folder), Clock())
    for number in range(count):
        assert await perform(store, f"admit {number}") == "ok"
    await store.close()


async def spent(folder: Path) -> int:
    """Return what the budget that everyone shares would hold after a restart."""
    return sum(
        purse.spent + purse.reserved for name, purse in (await replayed(folder)).purses.items() if name[0] == "everyone"
    )


async def _main(folder: Path, largest_file: int) -> None:
    clock = Clock()
    store = MemoryStore(Journal(folder), clock)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    loop = asyncio.get_running_loop()
    while command := await loop.run_in_executor(None, sys.stdin.readline):
        clock.now += 1
        sys.stdout.write(await perform(store, command) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), int(sys.argv[2])))
