"""The journal and its disk: who waits for it and who does not, and whose the folder is."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fal_proxy.stores import Ask, Budget, Rate
from fal_proxy.stores.journal import Journal, JournalError
from fal_proxy.stores.memory import MemoryStore
from support.crash import AMOUNT, Clock, Disk, filled, perform, segments, spent


async def test_a_thousand_who_wait_share_a_few_syncs(tmp_path: Path) -> None:
    disk = Disk()
    store = MemoryStore(Journal(tmp_path, sync=disk), Clock())
    assert set(await asyncio.gather(*(perform(store, f"admit {number}") for number in range(1_000)))) == {"ok"}
    assert disk.syncs <= 5
    await store.close()
    assert await spent(tmp_path) == 1_000 * AMOUNT


async def test_nobody_is_told_before_the_disk_has_it(tmp_path: Path) -> None:
    disk = Disk()
    store = MemoryStore(Journal(tmp_path, sync=disk), Clock())
    disk.free.clear()
    admission = asyncio.ensure_future(perform(store, "admit a"))
    done, _ = await asyncio.wait([admission], timeout=0.05)
    assert not done
    disk.free.set()
    assert await admission == "ok"
    await store.close()


async def test_an_admission_that_the_disk_refused_holds_nothing(tmp_path: Path) -> None:
    disk = Disk()
    store = MemoryStore(Journal(tmp_path, sync=disk), Clock())
    await perform(store, "admit a")
    disk.error = OSError(28, "No space left on device")
    assert await perform(store, "admit b") == "unavailable"
    assert store.state.slots == {"everyone": 1}
    assert store.state.purses["only-b", "total", "total"].reserved == 0
    assert list(store.state.entries) == ["a"]
    await store.close()


async def test_what_nobody_waits_for_is_on_disk_within_a_second(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    store = MemoryStore(journal, Clock())
    assert await perform(store, "admit a") == "ok"
    (path,) = segments(tmp_path)
    size = path.stat().st_size
    begun = asyncio.get_running_loop().time()
    await perform(store, "settle a released")
    while path.stat().st_size == size:
        assert asyncio.get_running_loop().time() < begun + 1
        await asyncio.get_running_loop().run_in_executor(None, os.sched_yield)
    await store.close()


async def test_a_caller_who_stops_waiting_disturbs_nobody(tmp_path: Path) -> None:
    disk = Disk()
    store = MemoryStore(Journal(tmp_path, sync=disk), Clock())
    disk.free.clear()
    leaving, staying = (asyncio.ensure_future(perform(store, f"admit {name}")) for name in "ab")
    await asyncio.wait([leaving], timeout=0.01)
    leaving.cancel()
    disk.free.set()
    assert await staying == "ok"
    await store.close()
    assert await spent(tmp_path) == AMOUNT, "what was given up is released"


async def test_after_closing_nothing_is_admitted_and_the_folder_is_free(tmp_path: Path) -> None:
    store = MemoryStore(Journal(tmp_path), Clock())
    await store.close()
    await store.close()
    assert await perform(store, "admit a") == "unavailable"
    await Journal(tmp_path).close()


async def test_other_files_in_the_folder_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("mine")
    (tmp_path / "old.journal").write_text("mine")
    await filled(tmp_path)
    assert await spent(tmp_path) == 3 * AMOUNT


def second(folder: Path) -> subprocess.CompletedProcess[str]:
    """Let another process take the folder."""
    code = "import sys, pathlib; from fal_proxy.stores.journal import Journal; Journal(pathlib.Path(sys.argv[1]))"
    arguments = [sys.executable, "-c", code, str(folder)]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


async def test_two_processes_cannot_share_a_folder(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    other = await asyncio.to_thread(second, tmp_path)
    assert "is in use by another process; replicas share Redis instead" in other.stderr
    await journal.close()
    other = await asyncio.to_thread(second, tmp_path)
    assert (other.returncode, other.stderr) == (0, "")


@contextmanager
def as_nobody() -> Iterator[None]:
    """Be a user without privileges, for whom permissions hold."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_what_is_no_folder_of_ours_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "below"):
        with pytest.raises(JournalError, match=f"{path} is not a directory"):
            Journal(path)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with as_nobody(), pytest.raises(JournalError, match="does not let user"):
        Journal(closed)


async def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "journal"
    await filled(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


async def test_reads_write_nothing(tmp_path: Path) -> None:
    disk = Disk()
    store = MemoryStore(Journal(tmp_path, sync=disk), Clock())
    assert (await store.admit(Ask(rates=(Rate("reads", 5, 60),)))).denied is None
    assert (await store.admit(Ask(budgets=(Budget("none", 0, "day"),), amount_microusd=1, entry_id="a"))).denied
    await store.find("request")
    await store.close()
    assert disk.syncs == 0
