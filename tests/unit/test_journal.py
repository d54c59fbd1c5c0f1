"""The journal: what is written reads back, whatever is asked of it, also through snapshots and cuts."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fal_proxy.stores import RECORD_SECONDS, Record
from fal_proxy.stores.journal import Journal
from fal_proxy.stores.memory import MemoryStore
from fal_proxy.stores.replay import StatePuts, apply, snapshot
from fal_proxy.stores.state import State
from support.crash import START, Clock, Disk, memory, perform, replayed, segments

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


async def test_a_record_without_an_entry_reads_back(tmp_path: Path) -> None:
    store = MemoryStore(Journal(tmp_path), Clock())
    record = Record("request", ("app/alias", "fal/name"), (), "", "", "/path", "key")
    await store.submitted(record)
    await store.close()
    assert list((await replayed(tmp_path)).records.values()) == [record]
