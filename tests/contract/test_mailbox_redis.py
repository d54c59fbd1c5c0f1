"""What only the shared mailbox has: several processes, keys that end by themselves, listening across a Redis that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from msgspec.structs import replace

from contract.bench import NOON
from contract.post import HOOK, Post, event
from fal_proxy.errors import StoreUnavailable
from fal_proxy.stores import subscription
from fal_proxy.stores.mailbox import CLAIM_SECONDS, Notice
from fal_proxy.stores.mailbox_redis import CHANNEL, RedisMailbox
from fal_proxy.stores.redis import RedisStore
from support.redis import RedisServer, SlowWire, redis_server

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be waited for longer than it must."""
    monkeypatch.setattr(subscription, "FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(subscription, "LONGEST_PAUSE_SECONDS", 0.1)


@pytest.fixture
async def open_post(redis: RedisServer) -> AsyncIterator[Callable[..., Post]]:
    """Return a function that opens the mailbox once more, as another process does."""
    redis.command("FLUSHALL")
    opened: list[Post] = []

    def another(url: str = redis.url) -> Post:
        mailbox = RedisMailbox(url, clock=lambda: opened[0].now)
        opened.append(Post(mailbox))
        return opened[-1]

    yield another
    for post in opened:
        await post.mailbox.close()


async def hearing(post: Post) -> list[Notice]:
    """Listen, from now on for certain."""
    told: list[Notice] = []
    post.mailbox.listen(told.append)
    await post.counts()
    return told


async def subscribers(redis: RedisServer, wanted: int) -> None:
    """Wait until so many connections listen."""
    async with asyncio.timeout(10):
        while f":{wanted}\r\n".encode() not in redis.command("PUBSUB", "NUMSUB", CHANNEL):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_event_of_one_process_is_told_in_every_other_and_readable_there(open_post: Callable[..., Post]) -> None:
    posts = [open_post() for _ in range(3)]
    told = [await hearing(post) for post in posts]
    filed = [await posts[at % 3].file(f"job-{at}", "me") for at in range(9)]
    for post, heard in zip(posts, told, strict=True):
        await post.told(heard, 9)
        assert heard == [Notice(each.number, each.request_id, ("me",)) for each in filed]
        assert await post.read("me") == [f"job-{at}" for at in range(9)]


async def test_no_two_processes_claim_one_delivery(open_post: Callable[..., Post]) -> None:
    posts = [open_post() for _ in range(3)]
    for at in range(60):
        await posts[0].file(f"job-{at}", forward_url=HOOK)
    claims = await asyncio.gather(*(post.claim(5, 5) for _ in range(5) for post in posts))
    assert sorted(name for claim in claims for name, _ in claim) == sorted(f"job-{at}" for at in range(60))
    posts[0].now += CLAIM_SECONDS
    assert len(await posts[2].claim(100, 100)) == 60


async def test_of_processes_that_file_one_request_id_at_once_one_does(open_post: Callable[..., Post]) -> None:
    posts = [open_post() for _ in range(4)]
    told = await hearing(posts[0])
    filed = await asyncio.gather(*(post.mailbox.file(event("job", body=b"%d" % at)) for at, post in enumerate(posts)))
    (kept,) = [each for each in filed if each is not None]
    assert list(await posts[0].mailbox.since(frozenset({"me"}), 0, 9)) == [kept]
    await posts[0].file("last")
    await posts[0].told(told, 2)
    assert [notice.request_id for notice in told] == ["job", "last"]


async def test_what_was_filed_while_the_connection_was_away_is_told_once_and_in_order(
    open_post: Callable[..., Post], redis: RedisServer
) -> None:
    post, other = open_post(), open_post()
    told = await hearing(post)
    names = []
    for turn in range(5):
        for at in range(3):
            names.append(f"job-{turn}-{at}")
            await other.file(names[-1])
        redis.command("CLIENT", "KILL", "TYPE", "pubsub")
        for at in range(3, 5):
            names.append(f"job-{turn}-{at}")
            await other.file(names[-1])
    await post.told(told, len(names))
    await subscribers(redis, 1)
    assert [notice.request_id for notice in told] == names


async def test_long_absence_is_made_up_for_in_pages(
    open_post: Callable[..., Post], redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "FIRST_PAUSE_SECONDS", 1.0)
    monkeypatch.setattr(subscription, "LONGEST_PAUSE_SECONDS", 1.0)
    post, other = open_post(), open_post()
    told = await hearing(post)
    await subscribers(redis, 1)
    redis.command("CLIENT", "KILL", "TYPE", "pubsub")
    await subscribers(redis, 0)
    for at in range(1100):
        await other.file(f"job-{at}", f"owner-{at % 2}")  # none has more than is kept
    await post.told(told, 1100)
    assert [notice.request_id for notice in told] == [f"job-{at}" for at in range(1100)]


async def test_who_listens_and_then_asks_has_missed_nothing(open_post: Callable[..., Post], redis: RedisServer) -> None:
    other = open_post()
    for turn in range(15):
        post = open_post()
        filing = asyncio.ensure_future(
            asyncio.gather(*(other.file(f"job-{turn}-{at}", f"me-{turn}") for at in range(9)))
        )
        for _ in range(turn):
            await asyncio.sleep(0.0005)
        told: list[Notice] = []
        post.mailbox.listen(told.append)
        read = await post.read(f"me-{turn}")
        await filing
        last = await other.file(f"last-{turn}")
        async with asyncio.timeout(10):
            while not told or told[-1].number < last.number:  # noqa: ASYNC110 -- a listener is a plain function
                await asyncio.sleep(0.005)
        heard = [notice.request_id for notice in told]
        assert set(read) | set(heard) >= {f"job-{turn}-{at}" for at in range(9)}


async def test_connection_that_vanished_without_a_word_is_noticed(
    open_post: Callable[..., Post], redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(subscription, "REPLY_SECONDS", 0.2)
    async with SlowWire(redis.port) as wire:
        near = open_post()
        post = open_post(wire.url)
        told = await hearing(post)
        await subscribers(redis, 1)
        await asyncio.sleep(0.5)
        assert wire.accepted <= 3, "a quiet connection is no lost one"
        wire.vanish()
        await near.file("job")
        await post.told(told, 1)


async def test_redis_that_was_away_has_lost_nothing_and_everybody_hears_of_what_follows(
    open_post: Callable[..., Post],
) -> None:
    with redis_server(durable=True) as server:
        post = open_post(server.url)
        told = await hearing(post)
        await post.file("before", forward_url=HOOK)
        await post.told(told, 1)
        server.stop()
        for call in (post.file("during"), post.read("me"), post.claim(), post.counts(), post.dead()):
            with pytest.raises(StoreUnavailable):
                await call
        server.start()
        async with asyncio.timeout(10):
            while True:
                try:
                    await post.file("after", forward_url=HOOK)
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.05)
        await post.told(told, 2)
        assert [notice.request_id for notice in told] == ["before", "after"]
        assert [name for name, _ in await post.claim()] == ["before", "after"]


async def test_largest_bodies_pass_and_do_not_trip_the_stores_breaker(
    open_post: Callable[..., Post], redis: RedisServer
) -> None:
    post = open_post()
    store = RedisStore(redis.url)
    body = bytes(range(256)) * (10 * MIB // 256)
    filed = await asyncio.gather(*(post.file(f"job-{at}", forward_url=HOOK, body=body) for at in range(6)))
    await store.ping()
    assert [each.body for each in await post.mailbox.since(frozenset({"me"}), 0, 9)] == [body]
    claimed = [await post.claimed() for _ in filed]
    assert [[each.event.body == body for each in claim] for claim in claimed] == [[True]] * 6
    assert store.available
    await store.close()


async def test_every_key_ends_by_itself(open_post: Callable[..., Post], redis: RedisServer) -> None:
    post = open_post()
    await post.file("read", "me", "you")
    await post.file("waiting", forward_url=HOOK)
    dead = await post.file("dead", forward_url=HOOK)
    await post.claim()
    await post.mailbox.failed(dead.number, "status 410", None)
    names = [line for line in redis.command("KEYS", "*").decode().split("\r\n") if line.startswith("fal-proxy:")]
    kinds = {name.split(":")[1] for name in names}
    assert kinds == {
        "events", "event-body", "event-ids", "event-numbers", "event-ends", "events-of",
        "deliveries", "delivery-hosts", "dead-letters", "idle", "event-sums",
    }  # fmt: skip
    for name in names:
        assert 7 * 86400 < redis.number("TTL", name) <= 8 * 86400, name


async def test_what_is_gone_leaves_no_key_behind_but_the_last_number(
    open_post: Callable[..., Post], redis: RedisServer
) -> None:
    post = open_post()
    for at in range(40):
        filed = await post.file(f"job-{at}", f"owner-{at}", forward_url=HOOK if at % 2 else "")
        if at % 4 == 1:
            await post.mailbox.failed(filed.number, "status 410", None)
    post.now = NOON + 8 * 86400
    for _ in range(3):
        await post.counts()
    assert await post.claim() == []
    assert await post.counts() == (0, 0, 0)
    names = redis.command("KEYS", "*").decode().split("\r\n")
    assert [name for name in names if name.startswith("fal-proxy:")] == ["fal-proxy:event-sums"]
    sums = redis.command("HGETALL", "fal-proxy:event-sums").decode().split("\r\n")[2::2]
    assert {name: value for name, value in zip(sums[::2], sums[1::2], strict=False) if name != "number"} == {
        "bytes": "0", "waiting": "0", "waiting_bytes": "0",
    }  # fmt: skip


async def test_event_whose_body_redis_has_ended_is_gone(open_post: Callable[..., Post], redis: RedisServer) -> None:
    post = open_post()
    filed = await post.file("job", forward_url=HOOK)
    await post.file("other", forward_url=HOOK)
    redis.command("DEL", f"fal-proxy:event-body:{filed.number}")
    assert await post.read("me") == ["other"]
    assert await post.claim() == [("other", 0)]
    assert await post.counts() == (1, 1, 0)


async def test_names_of_strangers_are_names_and_nothing_else(open_post: Callable[..., Post]) -> None:
    post = open_post()
    odd = "a:b*?[x]\r\n\x00\u20ac\u00e4 "
    sent = replace(event(odd, odd, forward_url=HOOK), headers=((odd, odd),), endpoint_id=odd)
    filed = await post.mailbox.file(sent)
    assert filed is not None
    assert list(await post.mailbox.since(frozenset({odd}), 0, 9)) == [filed]
    assert filed == replace(sent, number=filed.number, received_at=post.now)
    await post.mailbox.failed(filed.number, odd, None)
    (letter,) = await post.mailbox.dead_letters(9)
    assert (letter.request_id, letter.reason) == (odd, odd)


async def test_redis_that_refuses_is_not_stormed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "LONGEST_PAUSE_SECONDS", 0.2)
    accepted = 0

    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    mailbox = RedisMailbox(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    for _ in range(50):
        mailbox.listen(lambda notice: None)
    await asyncio.sleep(1.5)
    await mailbox.close()
    server.close()
    await server.wait_closed()
    assert 3 <= accepted <= 25, "pauses of 20, 40, 80, 160 and then 200 ms, halved at most"
