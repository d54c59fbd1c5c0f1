"""The journal: what is written reads back, whatever is asked of it; what does not read back is refused with a reason."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fal_proxy.stores import RECORD_SECONDS, Ask, Budget, Rate, Record
from fal_proxy.stores.journal import Journal, JournalError
from fal_proxy.stores.memory import MemoryStore
from fal_proxy.stores.replay import StatePuts, apply, snapshot
from fal_proxy.stores.state import State
from support.crash import AMOUNT, START, Clock, Disk, filled, memory, perform, replayed, segments, spent

NAMES = st.sampled_from("abcdef")
OUTCOMES = st.sampled_from(["released", "as_reserved", "billed 7", "billed 3000"])
COMMANDS = st.one_of(
    NAMES.map("admit {}".format),
    NAMES.map("submitted {}".format),
    NAMES.map("completed {}".format),
    st.builds("settle {} {}".format, NAMES, OUTCOMES),
)
STEPS = st.lists(st.tuples(COMMANDS, st.sampled_from([0, 1, 59, 3_000, 90_000])), max_size=40)


def once_each(steps: list[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """Yield the steps without second admissions under one entry id, which callers never make."""
    admitted = set()
    for command, passed in steps:
        if command not in admitted:
            yield command, passed
        if command.startswith("admit"):
            admitted.add(command)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, segment_bytes=st.sampled_from([500, 2_000, 1 << 26]))
def test_whatever_was_done_reads_back_as_it_was(steps: list[tuple[str, int]], segment_bytes: int) -> None:
    async def check(folder: Path) -> None:
        clock = Clock()
        store = MemoryStore(Journal(folder, segment_bytes, Disk()), clock)
        for command, passed in once_each(steps):
            clock.now += passed
            await perform(store, command)
        await store.completed("nothing")  # writes down what has expired
        await store.close()
        assert memory(await replayed(folder), clock.now) == memory(store.state, clock.now)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(check(Path(folder)))


@settings(max_examples=15, deadline=None)
@given(steps=STEPS.filter(bool))
def test_a_journal_cut_anywhere_in_its_last_frame_is_the_one_without_it(steps: list[tuple[str, int]]) -> None:
    async def check(folder: Path) -> None:
        clock = Clock()
        journal = Journal(folder, sync=Disk())
        store = MemoryStore(journal, clock)
        (path,) = segments(folder)
        before, size = memory(State(), clock.now), path.stat().st_size
        for command, passed in once_each(steps):
            clock.now += passed
            for part in ("completed nothing", "completed nothing", command):  # what has expired is written down apart
                latest, whole = memory(store.state, clock.now), path.stat().st_size
                await perform(store, part)
                await journal.durable()
                if path.stat().st_size > whole:
                    before, size = latest, whole
        await store.close()
        whole_text = path.read_bytes()
        for end in range(size, len(whole_text)):
            path.write_bytes(whole_text[:end])
            found = memory(await replayed(folder), START)
            assert {**found, "windows": 0} == {**before, "windows": 0}
            assert path.stat().st_size == size

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(check(Path(folder)))


@pytest.mark.parametrize("segment_bytes", [500, 1 << 26], ids=["in a snapshot", "as it was written"])
async def test_what_is_covered_is_covered_after_a_restart(tmp_path: Path, segment_bytes: int) -> None:
    clock = Clock()
    store = MemoryStore(Journal(tmp_path, segment_bytes, Disk()), clock)
    for number in range(40):
        await store.extend(f"token {number}", 60 + number)
    clock.now += 70
    await store.extend("token 39", 120)
    await store.close()
    again = MemoryStore(Journal(tmp_path, segment_bytes, Disk()), clock)
    assert await again.extend("token 9", 0) == 0
    assert await again.extend("token 20", 0) == 10
    assert await again.extend("token 39", 0) == 120
    clock.now += 120
    await again.extend("token 39", 0)
    assert (again.state.covers, again.state._cover_ends) == ({}, [])
    await again.close()


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
    assert await spent(tmp_path) == 2 * AMOUNT


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


@pytest.mark.parametrize("rounds", [1, 3])
async def test_a_rotation_during_traffic_keeps_everything_and_removes_what_it_replaces(
    tmp_path: Path, rounds: int
) -> None:
    clock = Clock()
    store = MemoryStore(Journal(tmp_path, 20_000, Disk()), clock)
    for turn in range(rounds):
        names = [f"{turn}-{number}" for number in range(1_500)]
        for verb in ("admit {}", "submitted {}", "settle {} billed 5"):
            clock.now += 1
            await asyncio.gather(*(perform(store, verb.format(name)) for name in names))
    await store.completed("nothing")
    await store.close()
    found = await replayed(tmp_path)
    assert memory(found, clock.now) == memory(store.state, clock.now)
    assert found.find_window("everyone", 60) is not None
    assert len(segments(tmp_path)) <= 2
    assert segments(tmp_path)[0].name != "00000001.journal"


async def test_hits_before_and_after_their_window_in_a_snapshot_count_once(tmp_path: Path) -> None:
    """Every slice boundary is met: a hit falls between any two puts of the snapshot."""
    state = State()
    journal = Journal(tmp_path, 1, Disk())
    journal.start(StatePuts(state))
    for turn in range(3_000):
        key, slot = f"window {turn % 700}", turn // 60  # within one window's length, so that none ends
        state.hit(key, 60, slot)
        state.note_hit(key, 60, slot)
        journal.append(state.take_puts())
        if turn % 7 == 0:
            await journal.durable()
    await journal.close()
    assert len(segments(tmp_path)) <= 2
    found = (await replayed(tmp_path)).windows[60]
    assert {key: window.dump() for key, window in found.items()} == {
        key: window.dump() for key, window in state.windows[60].items()
    }


async def test_what_a_read_let_expire_is_not_swallowed_by_a_snapshot() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    for command in ("admit a", "submitted a"):
        await perform(store, command)
    puts = snapshot(store.state)
    written = [next(puts)]  # of the first purse, which holds a reservation still
    clock.now += 4_000
    await store.find("request-a")  # ends the lease; a read leaves writing to the next operation
    written += [*puts, *store.state.take_puts()]
    again = State()
    for put in written:
        apply(again, put)
    assert memory(again, clock.now) == memory(store.state, clock.now)


async def test_a_purse_that_was_dropped_before_a_restart_does_not_stop_it(tmp_path: Path) -> None:
    clock = Clock()
    store = MemoryStore(Journal(tmp_path), clock)
    await perform(store, "admit a")
    clock.now += 3 * 24 * 3600
    await perform(store, "admit b")
    await store.close()
    store = MemoryStore(Journal(tmp_path), clock)
    assert [name[2] for name in store.state.purses if name[0] == "everyone"] == ["2027-01-18"]
    clock.now += 3 * 24 * 3600
    assert await perform(store, "admit c") == "ok"
    await store.close()


async def test_the_oldest_record_goes_first_although_a_younger_one_was_written_before_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.start(StatePuts(State()))
    for name, born in (("young", START + 500), ("old", START)):
        journal.append([("record", born, name, ["app/alias"], ["you"], "", "1", "/", "key", False)])
    await journal.close()
    store = MemoryStore(Journal(tmp_path), Clock(START + RECORD_SECONDS + 1))
    assert list(store.state.records) == ["young"]
    await store.close()


async def test_reads_write_nothing(tmp_path: Path) -> None:
    disk = Disk()
    store = MemoryStore(Journal(tmp_path, sync=disk), Clock())
    assert (await store.admit(Ask(rates=(Rate("reads", 5, 60),)))).denied is None
    assert (await store.admit(Ask(budgets=(Budget("none", 0, "day"),), amount_microusd=1, entry_id="a"))).denied
    await store.find("request")
    await store.close()
    assert disk.syncs == 0


async def test_a_record_without_an_entry_reads_back(tmp_path: Path) -> None:
    store = MemoryStore(Journal(tmp_path), Clock())
    record = Record("request", ("app/alias", "fal/name"), (), "", "", "/path", "key")
    await store.submitted(record)
    await store.close()
    assert list((await replayed(tmp_path)).records.values()) == [record]
