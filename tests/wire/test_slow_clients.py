"""Slow callers against a server process whose deadlines are played faster: it goes on serving others and its memory stays small.

The long run, by the thousand and with the real deadlines, is `tests/soak/slow_clients.py`.
"""

from __future__ import annotations

import asyncio

import pytest

from support.slow_clients import PROGRAM, idle, never_reading, slowhttptest, target

FASTER = 4
HEAD_SECONDS = 4  # a little more than a head may take then, by what slowhttptest counts in: whole seconds
BODY_SECONDS = 8  # a little more than a body may drip
MAX_KIB_PER_SLOW_CALLER = 64
MAX_KIB_PER_UNREAD_ANSWER = 2048  # what waits in both directions, as the allocator rounds it


async def test_idle_connections_and_unread_answers_leave_others_served() -> None:
    async with target(FASTER) as proxy:
        toll = await proxy.endure(idle(proxy.port, 1000, HEAD_SECONDS, b"GET / HTTP/1.1\r\n"))
        assert toll.served > 10
        assert toll.refused == 0
        assert toll.peak_kib - toll.before_kib < 1000 * MAX_KIB_PER_SLOW_CALLER
        assert toll.left < 10, "all but the probes of this test are ended"
        toll = await proxy.endure(never_reading(proxy.port, 30, 2))
        assert toll.served > 10
        assert toll.refused == 0
        assert toll.peak_kib - toll.before_kib < 30 * MAX_KIB_PER_UNREAD_ANSWER


@pytest.mark.skipif(PROGRAM is None, reason="needs slowhttptest")
async def test_slowhttptest_leaves_others_served_and_its_connections_end() -> None:
    async with target(FASTER) as proxy:
        toll = await proxy.endure(_both(proxy.port))
        assert toll.served > 10
        assert toll.refused == 0
        assert toll.peak_kib - toll.before_kib < 600 * MAX_KIB_PER_SLOW_CALLER
        assert toll.left < 10, "all but the probes of this test are ended"


async def _both(port: int) -> int:
    heads, bodies = slowhttptest(port, "H", 300, HEAD_SECONDS, 1), slowhttptest(port, "B", 300, BODY_SECONDS, 1)
    return (await asyncio.gather(heads, bodies))[1]
