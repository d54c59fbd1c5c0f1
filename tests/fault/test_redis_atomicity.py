"""Four processes and one Redis: at a limit of N exactly N are admitted, whichever limit it is."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from support.redis import redis_server

PROCESSES = 4
EACH = 250
ROUNDS = 20
WIDE = 10**9


class Limit(NamedTuple):
    """What a round is limited by, all for N admissions."""

    denial: str
    rate: int = WIDE
    slots: int = WIDE
    money: int = WIDE


def limits(number: int) -> list[Limit]:
    """Return each kind of limit, at `number` admissions of 7 micro-dollars."""
    return [
        Limit("rate_limited", rate=number),
        Limit("concurrency_limited", slots=number),
        Limit("budget_exhausted", money=number * 7 + 6),
    ]


async def started(url: str) -> Process:
    """Start one process and wait until it is ready."""
    tests = Path(__file__).parent.parent
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "support.redis", url), cwd=tests, stdin=PIPE, stdout=PIPE, env=dict(os.environ)
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    return process


async def ordered(process: Process, line: str) -> Counter[str]:
    """Give one process its round; return how its admissions ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line.encode())
    return Counter(json.loads(await process.stdout.readline()))


async def test_exactly_n_of_a_thousand_are_admitted_by_four_processes() -> None:
    with redis_server() as redis:
        processes = await asyncio.gather(*(started(redis.url) for _ in range(PROCESSES)))
        for turn in range(ROUNDS):
            number = 1 + turn * 17
            for limit in limits(number):
                key = f"{limit.denial}-{turn}"
                line = f"{key} {EACH} {limit.rate} {limit.slots} {limit.money}\n"
                ended: Counter[str] = Counter()
                for counted in await asyncio.gather(*(ordered(process, line) for process in processes)):
                    ended += counted
                # On a machine too busy to answer in time, an outcome may stay unknown: then less, never more.
                assert ended["admitted"] <= number <= ended["admitted"] + ended["unknown"], (turn, limit, ended)
                assert ended["admitted"] + ended[limit.denial] + ended["unknown"] == PROCESSES * EACH
                if not ended["unknown"]:
                    assert redis.number("SCARD", f"fal-proxy:slots:{key}") == number
                    assert redis.number("HGET", f"fal-proxy:purse:total:total:{key}", "reserved") == number * 7
        for process in processes:
            process.terminate()
            await process.wait()
