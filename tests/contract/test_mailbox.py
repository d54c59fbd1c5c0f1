"""What both mailboxes promise of events: one per request id, readable by its owners, kept for its time and no longer."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from contract.bench import NOON
from contract.post import HOOK, Post, event
from fal_proxy.errors import StoreUnavailable
from fal_proxy.stores import mailbox, mailbox_state
from fal_proxy.stores.mailbox import (
    ANSWER_BYTES,
    EVENT_BYTES,
    EVENT_SECONDS,
    HELD_SECONDS,
    MAX_BODY_BYTES_KEPT,
    Event,
    Notice,
)

MIB = 1024 * 1024


async def test_event_comes_back_as_it_was_filed_with_a_number_and_a_time(post: Post) -> None:
    sent = Event(
        "job-1",
        "fal-ai/flux/dev",
        ("key::alice", "anonymous:network-1:10.0.0.0/8"),
        False,
        (("x-fal-webhook-signature", "ab" * 64), ("content-type", "application/json")),
        b'{"payload": "\xff\x00 as it came"}' * 50,
        "https://app.example.com/hook?a=%20b",
    )
    filed = await post.mailbox.file(sent)
    assert filed is not None
    assert filed == replace(sent, number=filed.number, received_at=post.now)
    assert filed.number > 0
    assert list(await post.mailbox.since(frozenset({"key::alice"}), 0, 9)) == [filed]
    assert [each.event for each in await post.claimed()] == [filed]


async def test_request_id_has_one_event_whatever_comes_later(post: Post) -> None:
    await post.file("job", "me")
    assert not await post.mailbox.filed("other")
    assert await post.mailbox.filed("job")
    assert await post.mailbox.file(event("job", "somebody else", forward_url=HOOK, body=b"another")) is None
    assert await post.read("somebody else") == []
    assert await post.claim() == []
    assert await post.counts() == (1, 0, 0)


async def test_of_many_that_file_one_request_id_at_once_one_does(post: Post) -> None:
    filed = await asyncio.gather(*(post.mailbox.file(event("job", body=b"%d" % at)) for at in range(20)))
    assert len([each for each in filed if each is not None]) == 1


async def test_numbers_ascend_within_one_moment_and_when_the_clock_steps_back(post: Post) -> None:
    numbers = [(await post.file(f"job-{at}")).number for at in range(3)]
    post.now -= 3 * 86400
    numbers += [(await post.file(f"job-{at}")).number for at in range(3, 6)]
    post.now += 9 * 86400
    numbers.append((await post.file("job-6")).number)
    assert numbers == sorted(set(numbers))
    assert numbers[-1] < 2**53  # exact in Lua and in JavaScript


async def test_events_are_read_by_their_owners_in_order_from_any_number_on(post: Post) -> None:
    first = await post.file("a", "me")
    await post.file("b", "you")
    await post.file("c", "me", "you")
    await post.file("d", "you", "me", "me")
    await post.file("nobody's")
    assert await post.read("me") == ["a", "c", "d", "nobody's"]
    assert await post.read("you") == ["b", "c", "d"]
    assert await post.read("me", "you", limit=3) == ["a", "b", "c"]
    assert await post.read("me", after=first.number, limit=1) == ["c"]
    assert await post.read("stranger") == []
    assert await post.read() == []


async def test_event_without_owners_is_nobodys_to_read_and_still_delivered(post: Post) -> None:
    await post.mailbox.file(replace(event("job", forward_url=HOOK), owners=()))
    assert await post.read("", "me") == []
    assert await post.claim() == [("job", 0)]


async def test_reading_takes_nothing_away(post: Post) -> None:
    await post.file("job")
    assert await post.read("me") == await post.read("me") == ["job"]


async def test_large_events_come_a_few_at_a_time_and_at_least_one(post: Post) -> None:
    sizes = [3 * MIB, MIB, 1, 6 * MIB, 1, 1]
    for at, size in enumerate(sizes):
        await post.file(f"job-{at}", body=b"x" * size, forward_url=HOOK)
    assert ANSWER_BYTES == 4 * MIB
    pages, after = [], 0
    while page := await post.mailbox.since(frozenset({"me"}), after, 9):
        pages.append([each.request_id for each in page])
        after = page[-1].number
    assert pages == [["job-0", "job-1"], ["job-2"], ["job-3"], ["job-4", "job-5"]]
    assert [await post.claim() for _ in pages] == [[(name, 0) for name in page] for page in pages]


async def test_the_newest_of_a_backlog_come_after_one_number(post: Post) -> None:
    mine = [await post.file(f"job-{at}", *(["me", "also-me"] if at % 2 else ["me"])) for at in range(6)]
    await post.file("other", "you")
    both = frozenset({"me", "also-me"})
    assert await post.mailbox.before_newest(both, 2) == mine[3].number
    assert await post.read("me", after=await post.mailbox.before_newest(both, 2)) == ["job-4", "job-5"]
    assert await post.mailbox.before_newest(both, 6) == await post.mailbox.before_newest(both, 100) == 0
    assert await post.mailbox.before_newest(frozenset({"nobody"}), 1) == 0
    post.now += EVENT_SECONDS
    assert await post.mailbox.before_newest(both, 2) == 0, "and not after what is over"


async def test_event_is_kept_a_day_and_then_gone(post: Post) -> None:
    await post.file("job")
    post.now += EVENT_SECONDS - 1
    assert await post.read("me") == ["job"]
    post.now += 2
    assert await post.read("me") == []
    assert await post.counts() == (0, 0, 0)
    assert not await post.mailbox.filed("job")


async def test_what_waits_is_kept_a_week_and_readable_for_a_day(post: Post) -> None:
    await post.file("waiting", forward_url=HOOK)
    dead = await post.file("dead", forward_url=HOOK)
    delivered = await post.file("delivered", forward_url=HOOK)
    await post.mailbox.failed(dead.number, "status 410", None)
    post.now += EVENT_SECONDS + 1
    assert await post.read("me") == []
    assert await post.counts() == (3, 2, 1)
    await post.mailbox.delivered(delivered.number)
    assert await post.counts() == (2, 1, 1)
    post.now = NOON + HELD_SECONDS - 1
    assert await post.claim() == [("waiting", 0)]
    assert await post.dead() == ["dead"]
    post.now += 2
    assert await post.counts() == (0, 0, 0)
    assert await post.claim() == []


async def test_owner_keeps_the_newest_and_all_that_wait(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (mailbox, mailbox_state):
        monkeypatch.setattr(module, "MAX_EVENTS_PER_OWNER", 3)
    waiting = await post.file("waiting", "me", forward_url=HOOK)
    dead = await post.file("dead", "me", forward_url=HOOK)
    await post.mailbox.failed(dead.number, "status 410", None)
    await post.file("another's", "you")
    for at in range(5):
        await post.file(f"job-{at}", "me")
    assert await post.read("me") == ["waiting", "dead", "job-2", "job-3", "job-4"]
    await post.mailbox.delivered(waiting.number)  # the oldest of those that nobody waits for
    assert await post.read("me") == ["dead", "job-2", "job-3", "job-4"]
    assert await post.read("you") == ["another's"]


async def test_full_mailbox_drops_the_oldest_of_whoever_has_most(post: Post) -> None:
    for at in range(5):
        await post.file(f"large-{at}", "flooder", body=bytes(10 * MIB))
    for at in range(9):
        await post.file(f"small-{at}", "me", body=bytes(MIB))
    assert (await post.counts())[0] == 14
    await post.file("more", "me", body=bytes(9 * MIB))
    assert [await post.mailbox.filed(f"large-{at}") for at in range(3)] == [False, True, True]
    assert await post.mailbox.filed("small-0")
    await post.file("one", "you", "your network-1", body=bytes(9 * MIB))
    await post.file("two", "you", "your network-1", body=bytes(9 * MIB))
    assert not await post.mailbox.filed("large-1")
    assert [await post.mailbox.filed(f"small-{at}") for at in range(9)] == [True] * 9


async def test_dead_letters_make_room_when_nothing_else_can_and_what_waits_never_does(post: Post) -> None:
    for at in range(6):
        await post.file(f"job-{at}", "me", forward_url=HOOK, body=bytes(10 * MIB))
    filed = [each.event for _ in range(6) for each in await post.claimed()]
    await post.mailbox.failed(filed[2].number, "status 410", None)
    post.now += 1
    await post.mailbox.failed(filed[0].number, "status 410", None)
    await post.file("read by nobody yet", "you", body=bytes(MIB))
    await post.file("job-6", "me", forward_url=HOOK, body=bytes(10 * MIB))
    assert await post.dead() == ["job-0"]
    await post.file("job-7", "me", forward_url=HOOK, body=bytes(10 * MIB))
    assert await post.dead() == []
    with pytest.raises(StoreUnavailable, match="full"):
        await post.file("job-8", "you", body=bytes(10 * MIB))
    assert not await post.mailbox.filed("job-8")
    assert await post.counts() == (6, 6, 0)
    await post.file("job-9", "you", body=bytes(3 * MIB))
    await post.mailbox.delivered(filed[1].number)
    await post.file("job-8", "you", body=bytes(10 * MIB))


async def test_many_empty_events_are_bounded_too(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (mailbox, mailbox_state):
        monkeypatch.setattr(module, "MAX_BODY_BYTES_KEPT", 10 * EVENT_BYTES)
    for at in range(25):
        await post.file(f"job-{at}", f"owner-{at % 3}", body=b"")
    assert await post.counts() == (10, 0, 0)
    assert MAX_BODY_BYTES_KEPT == 64 * MIB


async def test_listener_is_told_of_every_new_event_once_until_it_ends(post: Post) -> None:
    told: list[Notice] = []
    end = post.mailbox.listen(told.append)
    first = await post.file("first", "me", "you")
    await post.mailbox.file(event("first", "me"))
    second = await post.file("second", forward_url=HOOK)
    await post.told(told, 2)
    assert told == [Notice(first.number, "first", ("me", "you")), Notice(second.number, "second", ("me",))]
    end()
    end()
    third: list[Notice] = []
    post.mailbox.listen(third.append)
    await post.file("third")
    await post.told(third, 1)
    assert len(told) == 2


async def test_listener_that_fails_is_no_fault_of_the_one_who_files(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(notice: Notice) -> None:
        raise RuntimeError(notice.request_id)

    told: list[Notice] = []
    post.mailbox.listen(failing)
    post.mailbox.listen(told.append)
    await post.file("job")
    await post.told(told, 1)
    assert "fault of a listener" in caplog.text
