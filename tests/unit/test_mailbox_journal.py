"""What the embedded mailbox finds in its journal: everything but claims, whatever happened to the process."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from contract.post import HOOK, Post, event
from fal_proxy.errors import StoreUnavailable
from fal_proxy.stores import mailbox_state
from fal_proxy.stores.frames import TITLE, encode, frame
from fal_proxy.stores.journal import Journal, JournalError
from fal_proxy.stores.mailbox import EVENT_SECONDS, Event, Notice
from fal_proxy.stores.mailbox_memory import MemoryMailbox
from fal_proxy.stores.mailbox_state import MailboxState
from support.crash import Disk, segments

IDENTITIES = frozenset({"me", "you"})


def opened(folder: Path, now: float, segment_bytes: int = 64 * 1024 * 1024) -> Post:
    """Return the mailbox of a folder, as a process that starts at this moment finds it."""
    made = Post(MemoryMailbox(Journal(folder, segment_bytes), clock=lambda: made.now), now)
    return made


async def everything(post: Post) -> object:
    """Return all that a restart must not change."""
    standing = await post.mailbox.standing()
    state = post.mailbox.state  # type: ignore[attr-defined]
    stages = {number: (kept.stage, kept.attempt, kept.given_up_at, kept.reason) for number, kept in state.kept.items()}
    letters = list(await post.mailbox.dead_letters(1000))
    return standing, stages, letters, list(await post.mailbox.since(IDENTITIES, 0, 1000)), dict(state.numbers)


async def restarted(post: Post, folder: Path, segment_bytes: int = 64 * 1024 * 1024) -> Post:
    """Close a mailbox and open it again."""
    await post.mailbox.close()
    return opened(folder, post.now, segment_bytes)


async def test_restart_keeps_events_attempts_pauses_and_dead_letters_and_forgets_claims(tmp_path: Path) -> None:
    post = opened(tmp_path, 1_800_000_000)
    await post.file("read", "me", "you", body=bytes(range(256)) * 999)
    claimed = await post.file("claimed", forward_url=HOOK)
    pausing = await post.file("pausing", forward_url=HOOK)
    dead = await post.file("dead", forward_url=HOOK)
    delivered = await post.file("delivered", forward_url=HOOK)
    assert len(await post.claim()) == 4
    await post.mailbox.failed(pausing.number, "status 500", 300)
    await post.mailbox.failed(dead.number, "status 410", None)
    await post.mailbox.delivered(delivered.number)
    before = await everything(post)
    post = await restarted(post, tmp_path)
    assert await everything(post) == before
    assert await post.claim() == [("claimed", 0)]
    post.now += 301
    assert ("pausing", 1) in await post.claim()
    assert await post.mailbox.revive(dead.number)
    assert await post.mailbox.file(event("delivered")) is None
    assert (await post.file("new")).number > delivered.number > claimed.number
    post = await restarted(post, tmp_path)
    assert [name for name, _ in await post.claim()] == ["claimed", "pausing", "dead"]
    await post.mailbox.close()


async def test_number_of_an_event_that_is_gone_is_not_given_again(tmp_path: Path) -> None:
    post = opened(tmp_path, 1_800_000_000)
    first = await post.file("job")
    post.now += EVENT_SECONDS + 1
    assert await post.counts() == (0, 0, 0)
    for _ in range(2):
        post = await restarted(post, tmp_path)
    post.now = 1_700_000_000  # the clock was wrong
    assert (await post.file("next")).number == first.number + 1
    await post.mailbox.close()


@pytest.mark.parametrize("seed", range(12))
async def test_any_sequence_leaves_the_same_after_restarts_and_rewriting(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    post = opened(tmp_path, 1_800_000_000, 4_000)
    numbers: list[int] = []
    for at in range(250):
        post.now += dice.choice([0, 1, 60, 3000])
        move = dice.random()
        if move < 0.4:
            hook = dice.choice(["", HOOK, "https://b.example/"])
            name = f"job-{dice.randrange(at + 1)}"
            new = event(name, dice.choice(["me", "you"]), forward_url=hook, body=bytes(dice.randrange(900)))
            if (filed := await post.mailbox.file(new)) is not None:
                numbers.append(filed.number)
        elif move < 0.6:
            await post.claim(3)
        elif move < 0.95 and numbers:
            number = dice.choice(numbers)
            if dice.random() < 0.4:
                await post.mailbox.delivered(number)
            elif dice.random() < 0.7:
                await post.mailbox.failed(number, f"attempt at {at}", dice.choice([5, 300, None]))
            else:
                await post.mailbox.revive(number)
        elif move > 0.98:
            before = await everything(post)
            post = await restarted(post, tmp_path, 4_000)
            assert await everything(post) == before
    before = await everything(post)
    post = await restarted(post, tmp_path)
    assert await everything(post) == before
    await post.mailbox.close()


async def test_bodies_are_rewritten_no_more_often_than_they_were_filed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, body = 1_000_000, bytes(20_000)
    monkeypatch.setattr(mailbox_state, "MAX_BODY_BYTES_KEPT", kept)
    post = opened(tmp_path, 1_800_000_000, kept)
    written, sizes = 0, dict[str, int]()
    for at in range(400):
        await post.file(f"job-{at}", body=body)
        post.now += 1
        for path in segments(tmp_path):
            size = path.stat().st_size
            written += size - sizes.get(path.name, 0)
            sizes[path.name] = size
        assert sum(path.stat().st_size for path in segments(tmp_path)) < 4.5 * kept
    assert len(sizes) > 5, "nothing was rewritten"
    assert written < 2.2 * 400 * len(body)
    await post.mailbox.close()


async def test_large_bodies_are_rewritten_a_few_at_a_time(tmp_path: Path) -> None:
    mailbox = MemoryMailbox(Journal(tmp_path), clock=lambda: 1_800_000_000)
    for at in range(5):
        await mailbox.file(event(f"job-{at}", body=bytes(3_000_000)))
    await mailbox.close()
    mailbox = MemoryMailbox(Journal(tmp_path), clock=lambda: 1_800_000_000)
    await mailbox.close()
    (path,) = segments(tmp_path)
    whole, lengths = path.read_bytes(), []
    at = 0
    while at < len(whole):
        lengths.append(int.from_bytes(whole[at : at + 4], "little"))
        at += 12 + lengths[-1]
    assert max(lengths) < 3_100_000
    assert len([length for length in lengths if length > 3_000_000]) == 5


async def test_event_that_cannot_be_written_was_never_filed(tmp_path: Path) -> None:
    disk = Disk()
    mailbox = MemoryMailbox(Journal(tmp_path, sync=disk), clock=lambda: 1_800_000_000)
    assert await mailbox.file(event("first")) is not None
    disk.error = OSError(5, "Input/output error")
    for name in ("second", "second", "third"):
        with pytest.raises(StoreUnavailable, match="Input/output error"):
            await mailbox.file(event(name, forward_url=HOOK))
    assert not await mailbox.filed("second")
    assert [each.request_id for each in await mailbox.since(frozenset({"me"}), 0, 9)] == ["first"]
    assert await mailbox.claim(9, 9, {}) == []
    await mailbox.close()


async def test_second_of_two_is_answered_only_when_the_first_is_on_disk(tmp_path: Path) -> None:
    disk = Disk()
    mailbox = MemoryMailbox(Journal(tmp_path, sync=disk), clock=lambda: 1_800_000_000)
    disk.free.clear()
    first = asyncio.ensure_future(mailbox.file(event("job")))
    second = asyncio.ensure_future(mailbox.file(event("job")))
    done, _ = await asyncio.wait([first, second], timeout=0.05)
    assert not done
    disk.free.set()
    assert await first is not None
    assert await second is None
    await mailbox.close()


async def test_listener_of_an_event_whose_filer_has_left_is_told_all_the_same(tmp_path: Path) -> None:
    disk = Disk()
    mailbox = MemoryMailbox(Journal(tmp_path, sync=disk), clock=lambda: 1_800_000_000)
    told: list[Notice] = []
    mailbox.listen(told.append)
    disk.free.clear()
    filing = asyncio.ensure_future(mailbox.file(event("job")))
    await asyncio.sleep(0)
    filing.cancel()
    disk.free.set()
    await asyncio.wait([filing])
    await mailbox.close()
    assert [notice.request_id for notice in told] == ["job"]
    mailbox = MemoryMailbox(Journal(tmp_path), clock=lambda: 1_800_000_000)
    assert await mailbox.filed("job")
    await mailbox.close()


async def test_kind_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "00000001.journal").write_bytes(frame([encode(TITLE)]) + frame([encode(("a kind of tomorrow", 1))]))
    with pytest.raises(JournalError, match="newer version"):
        MemoryMailbox(Journal(tmp_path))


def test_every_field_of_an_event_survives_as_the_type_that_it_had() -> None:
    filed = Event("job", "a/b", ("me", "you"), False, (("a", "b"), ("c", "d")), b"\xff", HOOK, 7, 1.5)
    state, again = MailboxState(written_down=True), MailboxState()
    state.file(filed, 3.5)
    for put in state.snapshot():
        again.apply(put)
    again.arrange()
    assert [kept.event for kept in again.kept.values()] == [kept.event for kept in state.kept.values()]
    assert again.last_number == state.last_number == 3500
