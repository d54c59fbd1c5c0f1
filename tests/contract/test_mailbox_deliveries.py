"""What both mailboxes promise of deliveries: claimed once, due again after their pause, given up with a reason, revived."""

from __future__ import annotations

from contract.bench import NOON
from contract.post import HOOK, Post
from fal_proxy.stores.mailbox import (
    CLAIM_SECONDS,
    DeadLetter,
)


async def test_delivery_is_claimed_once_and_again_when_its_claim_ends(post: Post) -> None:
    await post.file("job", forward_url=HOOK)
    await post.file("not forwarded")
    assert await post.claim() == [("job", 0)]
    assert await post.claim() == []
    post.now += CLAIM_SECONDS - 0.001
    assert await post.claim() == []
    post.now += 0.002
    assert await post.claim() == [("job", 0)]


async def test_delivered_event_is_not_due_again_and_stays_readable(post: Post) -> None:
    filed = await post.file("job", forward_url=HOOK)
    await post.claim()
    await post.mailbox.delivered(filed.number)
    await post.mailbox.delivered(filed.number)
    await post.mailbox.failed(filed.number, "another process was slower", 0)
    await post.mailbox.failed(filed.number, "and another", None)
    post.now += 3600
    assert await post.claim() == []
    assert await post.counts() == (1, 0, 0)
    assert await post.read("me") == ["job"]


async def test_failed_delivery_is_due_after_its_pause_and_counts_its_attempts(post: Post) -> None:
    filed = await post.file("job", forward_url=HOOK)
    for attempt in range(3):
        assert await post.claim() == [("job", attempt)]
        await post.mailbox.failed(filed.number, "status 503", 300)
        post.now += 299.9
        assert await post.claim() == []
        post.now += 0.2
    assert await post.counts() == (1, 1, 0)


async def test_delivery_that_is_given_up_is_a_dead_letter_with_its_reason(post: Post) -> None:
    first = await post.file("first", forward_url=HOOK)
    second = await post.file("second", forward_url=HOOK)
    post.now += 5
    await post.mailbox.failed(first.number, "no connection", 5)
    post.now += 5
    await post.mailbox.failed(first.number, "status 410", None)
    await post.mailbox.failed(second.number, "its host is not in webhooks.allowed_hosts", None)
    letter = DeadLetter(first.number, "first", "fal-ai/flux", HOOK, NOON, NOON + 10, 2, "status 410")
    letters = list(await post.mailbox.dead_letters(9))
    assert letters[1] == letter
    assert (letters[0].request_id, letters[0].attempts) == ("second", 1)
    assert [each.request_id for each in await post.mailbox.dead_letters(1)] == ["second"]
    assert await post.counts() == (2, 0, 2)
    post.now += 3600
    assert await post.claim() == []
    await post.mailbox.failed(first.number, "late", None)
    assert list(await post.mailbox.dead_letters(9)) == letters
    assert await post.read("me") == ["first", "second"]


async def test_revived_dead_letter_begins_anew_at_once(post: Post) -> None:
    filed = await post.file("job", forward_url=HOOK)
    await post.mailbox.failed(filed.number, "status 500", None)
    assert await post.mailbox.revive(filed.number)
    assert not await post.mailbox.revive(filed.number)
    assert not await post.mailbox.revive(filed.number + 1)
    assert await post.counts() == (1, 1, 0)
    assert await post.claim() == [("job", 0)]
    await post.mailbox.failed(filed.number, "status 500", None)
    assert [letter.attempts for letter in await post.mailbox.dead_letters(1)] == [1]


async def test_success_that_comes_late_ends_a_dead_letter(post: Post) -> None:
    filed = await post.file("job", forward_url=HOOK)
    await post.claim()
    await post.mailbox.failed(filed.number, "the other process gave it up", None)
    await post.mailbox.delivered(filed.number)
    assert await post.dead() == []
    assert not await post.mailbox.revive(filed.number)


async def test_deliveries_are_claimed_in_the_order_of_their_time(post: Post) -> None:
    hosts = ["https://a.example/x", "https://b.example/x"]
    filed = []
    for at in range(6):
        filed.append(await post.file(f"job-{at}", forward_url=hosts[at % 2]))
        post.now += 1
    await post.claim()
    for pause, each in zip([50, 10, 40, 20, 30, 5], filed, strict=True):
        await post.mailbox.failed(each.number, "status 500", pause)
    post.now += 41
    assert [name for name, _ in await post.claim(3)] == ["job-5", "job-1", "job-3"]
    assert [name for name, _ in await post.claim()] == ["job-4", "job-2"]


async def test_slow_host_holds_up_no_other(post: Post) -> None:
    for at in range(50):
        await post.file(f"slow-{at}", forward_url="https://slow.example/hook")
    for at in range(3):
        await post.file(f"fast-{at}", forward_url="https://fast.example/hook")
    assert [name for name, _ in await post.claim(16, 4)] == [f"slow-{at}" for at in range(4)] + [
        f"fast-{at}" for at in range(3)
    ]
    await post.file("fast-3", forward_url="https://fast.example/hook")
    assert await post.claim(16, 4, slow_example=4) == [("fast-3", 0)]
    assert [name for name, _ in await post.claim(16, 4, slow_example=3)] == ["slow-4"]
    assert await post.claim(16, 4, slow_example=9) == []
    assert await post.claim(0, 4) == []
