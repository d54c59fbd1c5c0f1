"""The two mailboxes are one: any sequence of operations has the same outcome on both."""

from __future__ import annotations

import random
from typing import Any

import pytest

from contract.bench import NOON
from contract.post import event
from fal_proxy.errors import StoreUnavailable
from fal_proxy.stores import mailbox, mailbox_state
from fal_proxy.stores.mailbox import EVENT_BYTES, EVENT_SECONDS, HELD_SECONDS, Mailbox
from fal_proxy.stores.mailbox_memory import MemoryMailbox
from fal_proxy.stores.mailbox_redis import RedisMailbox
from support.redis import RedisServer

OWNERS = ["me", "you", "network-1", "network-2"]
URLS = ["", "https://a.example/", "https://b.example/x", "https://a.example/y"]


def moves_of(seed: int) -> list[tuple[Any, ...]]:
    """Return a sequence in which most things happen: owners have too much, room is short, hosts are busy."""
    dice = random.Random(seed)
    passes = [0.0005, 1.5, 60.0, 3600.0, EVENT_SECONDS / 2, EVENT_SECONDS, HELD_SECONDS, -90.0]

    def move() -> tuple[Any, ...]:
        which, owners = dice.randrange(40), dice.sample(OWNERS, dice.choice([0, 1, 1, 1, 2]))
        kinds: dict[str, tuple[Any, ...]] = {
            "file": (which, owners, dice.choice(URLS), dice.choice([0, 9, 3000])),
            "since": (dice.sample(OWNERS, dice.randrange(4)), dice.choice([0, which]), dice.randrange(1, 6)),
            "newest": (dice.sample(OWNERS, dice.randrange(4)), dice.randrange(1, 6)),
            "claim": (dice.randrange(6), dice.randrange(1, 4), dice.randrange(4)),
            "delivered": (which,),
            "failed": (which, dice.choice([0.0, 5.5, 300.0, None])),
            "revive": (which,),
            "pass": (dice.choices(passes, [9, 9, 9, 5, 1, 1, 1, 1])[0],),
        }
        kind = dice.choices(list(kinds), [30, 10, 10, 12, 15, 15, 6, 12])[0]
        return (kind, *kinds[kind])

    return [move() for _ in range(120)]


async def taken(box: Mailbox, numbers: list[int], move: tuple[Any, ...]) -> object:
    """Take one step; return what it answered."""
    kind, *values = move
    which = numbers[values[0] % len(numbers)] if numbers and isinstance(values[0], int) else 0
    if kind == "file":
        name, owners, url, size = values
        try:
            return await box.file(event(f"job-{name}", *sorted(owners), forward_url=url, body=bytes(size)))
        except StoreUnavailable as error:
            return str(error)
    if kind == "since":
        after = numbers[values[1] % len(numbers)] if numbers and values[1] else 0
        return list(await box.since(frozenset(values[0]), after, values[2]))
    if kind == "newest":
        return await box.before_newest(frozenset(values[0]), values[1])
    if kind == "claim":
        return list(await box.claim(values[0], values[1], {"a.example": values[2]}))
    if kind == "failed":
        await box.failed(which, f"at {which}", values[1])
    if kind == "delivered":
        await box.delivered(which)
    return await box.revive(which) if kind == "revive" else None


@pytest.mark.parametrize("seed", range(20))
async def test_memory_and_redis_answer_alike(redis: RedisServer, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    for module in (mailbox, mailbox_state):
        monkeypatch.setattr(module, "MAX_EVENTS_PER_OWNER", 3)
        monkeypatch.setattr(module, "MAX_BODY_BYTES_KEPT", 12 * EVENT_BYTES)
        monkeypatch.setattr(module, "ANSWER_BYTES", 4000)
    redis.command("FLUSHALL")
    now = NOON
    boxes: list[Mailbox] = [MemoryMailbox(clock=lambda: now), RedisMailbox(redis.url, clock=lambda: now)]
    numbers: list[int] = []
    for at, move in enumerate(moves_of(seed), start=1):
        if move[0] == "pass":
            now += move[1]
        answers = [await taken(box, numbers, move) for box in boxes]
        assert answers[0] == answers[1], move
        if isinstance(answers[0], mailbox.Event):
            numbers.append(answers[0].number)
        standings = [await box.standing() for box in boxes]
        assert standings[0] == standings[1], move
        letters = [list(await box.dead_letters(40)) for box in boxes]
        assert letters[0] == letters[1], move
        if at % 12 == 0:
            filed = [[await box.filed(f"job-{name}") for name in range(40)] for box in boxes]
            assert filed[0] == filed[1], move
    for box in boxes:
        await box.close()
