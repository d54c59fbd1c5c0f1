"""What a journal keeps when its process is killed or its disk is full."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from fal_proxy.errors import StoreUnavailable
from fal_proxy.stores import Outcome
from fal_proxy.stores.frames import TITLE, encode, frame
from fal_proxy.stores.journal import Journal, JournalError
from fal_proxy.stores.memory import MemoryStore
from support.crash import AMOUNT, START, Child, Clock, Disk, filled, memory, perform, replayed, segments, spent

COMMANDS = (
    "admit a",
    "admit b",
    "submitted b",
    "settle a billed 7",
    "admit c",
    "submitted c",
    "completed c",
    "settle b released",
    "settle b billed 9",
    "admit d",
    "settle d as_reserved",
    "settle c billed 1500",
    "admit e",
    "submitted e",
    "settle e as_reserved",
    "admit f",
)
LATER = START + len(COMMANDS) + 1


def restart(folder: Path) -> MemoryStore:
    return MemoryStore(Journal(folder), Clock(LATER))


async def oracle(commands: tuple[str, ...]) -> dict[str, Any]:
    """Return what a store that forgets nothing would hold after `commands` and a restart."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    for command in commands:
        clock.now += 1
        assert await perform(store, command) == "ok"
    for entry in list(store.state.entries.values()):
        if entry.outcome is None and not entry.request_id:
            store.state.settle(entry, Outcome.AS_RESERVED, entry.amount)
    return memory(store.state, LATER)


@pytest.mark.parametrize("acknowledged", range(len(COMMANDS) + 1))
async def test_a_kill_loses_nothing_that_was_durable_and_invents_nothing(tmp_path: Path, acknowledged: int) -> None:
    with Child(tmp_path) as child:
        for command in COMMANDS[:acknowledged]:
            assert child.do(command) == "ok"
        if acknowledged < len(COMMANDS):
            child.begin(COMMANDS[acknowledged])  # it may or may not get as far as the disk
    store = restart(tmp_path)
    found = memory(store.state, LATER)
    # Operations reach the disk in their order: what nobody waits for is there when something later is durable.
    waited_for = [at + 1 for at in range(acknowledged) if COMMANDS[at].split()[0] in {"admit", "submitted"}]
    possible = range(max(waited_for, default=0), min(acknowledged + 1, len(COMMANDS)) + 1)
    assert found in [await oracle(COMMANDS[:count]) for count in possible]
    await store.close()


async def test_after_a_kill_the_open_are_charged_or_asked_about_and_nothing_is_charged_twice(tmp_path: Path) -> None:
    with Child(tmp_path) as child:
        for command in ("admit lost", "admit queued", "submitted queued"):
            assert child.do(command) == "ok"
    store = restart(tmp_path)
    for _ in range(3):
        lost = store.state.purses["only-lost", "total", "total"]
        queued = store.state.purses["only-queued", "total", "total"]
        assert (lost.spent, lost.reserved) == (AMOUNT, 0)
        assert (queued.spent, queued.reserved) == (0, AMOUNT)
        assert store.state.slots == {"everyone": 1}
        assert [due.record.request_id for due in await store.due(10)] == ["request-queued"]
        await store.close()
        store = restart(tmp_path)
    await store.close()


async def test_an_admission_that_is_given_up_while_it_is_written_costs_nothing(tmp_path: Path) -> None:
    disk = Disk()
    store = MemoryStore(Journal(tmp_path, sync=disk), Clock())
    disk.free.clear()
    admitting = asyncio.create_task(perform(store, "admit left"))
    await asyncio.sleep(0)
    admitting.cancel()
    await asyncio.wait([admitting])
    disk.free.set()
    purse = store.state.purses["only-left", "total", "total"]
    assert (purse.spent, purse.reserved, store.state.slots) == (0, 0, {})
    await store.close()
    store = restart(tmp_path)
    purse = store.state.purses["only-left", "total", "total"]
    assert (purse.spent, purse.reserved, store.state.slots) == (0, 0, {})
    assert await store.untold() == []
    await store.close()


async def test_on_a_full_disk_what_costs_money_is_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    admitted = 0
    with Child(tmp_path, largest_file=8_000) as child:
        while child.do(f"admit number-{admitted}") == "ok":
            admitted += 1
        assert admitted > 10
        assert child.do("admit another") == "unavailable"
        assert child.do("read something") == "ok"
        assert child.do("settle number-0 released") == "ok"
    store = restart(tmp_path)
    purse = next(purse for name, purse in store.state.purses.items() if name[0] == "everyone")
    assert (purse.spent, purse.reserved) == (admitted * AMOUNT, 0)
    assert await perform(store, "admit later") == "ok"
    await store.close()


async def test_a_kill_during_a_rotation_keeps_everything(tmp_path: Path) -> None:
    for turn in range(3):
        journal = Journal(tmp_path, segment_bytes=2_000)
        store = MemoryStore(journal, Clock(LATER + turn))
        await asyncio.gather(*(perform(store, f"admit {turn}-{number}") for number in range(200)))
        # Leaving the folder as it is at this moment is what a kill does.
        copy = tmp_path / f"copy-{turn}"
        copy.mkdir()
        for segment in segments(tmp_path):
            (copy / segment.name).write_bytes(segment.read_bytes())
        again = MemoryStore(Journal(copy), Clock(LATER + turn))
        assert again.state.purses["everyone", "day", "2027-01-15"].spent == (turn + 1) * 200 * AMOUNT
        await again.close()
        await store.close()


async def test_after_one_failed_sync_nothing_is_admitted_any_more(tmp_path: Path) -> None:
    disk = Disk()
    journal = Journal(tmp_path, sync=disk)
    store = MemoryStore(journal, Clock())
    assert await perform(store, "admit a") == "ok"
    disk.error = OSError(errno.EIO, "Input/output error")
    assert set(await asyncio.gather(*(perform(store, f"admit {number}") for number in range(10)))) == {"unavailable"}
    disk.error = None
    held = memory(store.state, START)
    assert await perform(store, "admit b") == "unavailable"
    assert memory(store.state, START) == held, "a refusal consumed something"
    with pytest.raises(StoreUnavailable, match="Input/output error"):
        await journal.durable()
    await store.close()
    assert await spent(tmp_path) == AMOUNT


@pytest.mark.parametrize("end", [b"\0" * 5_000, b"\x01\x02\x03", frame([encode(("hit", "a", 60, 1))])[:-1] + b"?"])
async def test_an_end_that_was_never_written_whole_is_cut_off(
    tmp_path: Path, end: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    await filled(tmp_path)
    (path,) = segments(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + end)
    assert await spent(tmp_path) == 3 * AMOUNT
    assert path.read_bytes() == whole
    assert str(len(end)) in caplog.text


async def test_a_flipped_bit_before_the_last_frame_is_refused_whatever_it_hits(tmp_path: Path) -> None:
    await filled(tmp_path)
    (path,) = segments(tmp_path)
    whole = path.read_bytes()
    last = whole.rindex(frame([encode(TITLE)])[12:13] + b"\0\0\0")  # where the last payload begins
    for at in range(last - 12):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        with pytest.raises(JournalError, match=f"{path.name} is .*restore the folder from a backup"):
            await replayed(tmp_path)


async def test_a_segment_that_is_cut_off_before_another_is_refused(tmp_path: Path) -> None:
    await filled(tmp_path)
    (path,) = segments(tmp_path)
    whole = path.read_bytes()
    path.with_name("00000002.journal").write_bytes(whole)
    path.write_bytes(whole[:-1])
    with pytest.raises(JournalError, match=f"{path.name} is damaged"):
        await replayed(tmp_path)


async def test_a_missing_segment_is_refused(tmp_path: Path) -> None:
    await filled(tmp_path)
    (path,) = segments(tmp_path)
    path.with_name("00000003.journal").write_bytes(path.read_bytes())
    with pytest.raises(JournalError, match="lacks a segment"):
        await replayed(tmp_path)
    path.unlink()
    path.with_name("00000003.journal").write_bytes(frame([encode(TITLE)]))
    with pytest.raises(JournalError, match=r"00000003.journal needs the segment before it"):
        await replayed(tmp_path)


@pytest.mark.parametrize("text", [b"", b"hello", b"a letter to the editor", b"\0" * 64])
async def test_a_foreign_file_under_our_name_is_refused_and_left_alone(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "00000001.journal"
    path.write_bytes(text)
    with pytest.raises(JournalError, match=r"00000001.journal is "):
        await replayed(tmp_path)
    assert path.read_bytes() == text


@pytest.mark.parametrize("put", [(TITLE[0], TITLE[1] + 1), ("a kind of tomorrow", 1)])
async def test_a_newer_version_is_refused(tmp_path: Path, put: tuple[Any, ...]) -> None:
    first = [] if put[0] == TITLE[0] else [frame([encode(TITLE)])]
    (tmp_path / "00000001.journal").write_bytes(b"".join([*first, frame([encode(put)])]))
    with pytest.raises(JournalError, match=r"00000001.journal .*newer version of fal-proxy"):
        await replayed(tmp_path)
