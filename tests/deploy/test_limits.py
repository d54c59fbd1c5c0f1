"""Limits behind nginx and Caddy: two replicas are one, and callers are told apart by their own addresses."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from fal_proxy.stores.link import PROBE_SECONDS
from support.replicas import Deployment

pytestmark = pytest.mark.asyncio(loop_scope="session")

RUN = "/fal.run/emulator/echo"


async def statuses(site: Deployment, count: int, plan: str | None, path: str = RUN, **fields: str) -> Counter[int]:
    """Ask so many times, six at a time; return how many answers of each status came.

    What a stalled machine could not count is 503, was not sent, and is asked again.
    """
    seen: Counter[int] = Counter()
    left = iter(range(count))

    async def some() -> None:
        for _ in left:
            while (answer := await site.ask("POST", path, plan, **fields)).status == 503:
                assert b"store_unavailable" in answer.body
                seen[503] += 1
                await asyncio.sleep(PROBE_SECONDS)
            seen[answer.status] += 1

    await asyncio.gather(*(some() for _ in range(6)))
    return seen


def exactly(seen: Counter[int], admitted: int, refused: Counter[int]) -> bool:
    """Say whether so many were admitted and all others refused; each 503 may hold the place of one."""
    unsure = seen.pop(503, 0)
    [(status, count)] = refused.items()
    assert seen.total() == admitted + count
    return admitted - unsure <= seen[200] <= admitted and seen[200] + seen[status] == seen.total()


async def test_a_rate_admits_exactly_n_over_both_replicas(site: Deployment) -> None:
    seen = await statuses(site, 60, "rated")
    assert exactly(seen, 23, Counter({429: 37})), seen
    assert site.sent("POST", "fal.run/emulator/echo") == seen[200]
    assert all(any(line["status"] == 200 for line in replica.lines) for replica in site.replicas), "both were asked"


async def test_a_budget_pays_for_exactly_n_over_both_replicas(site: Deployment) -> None:
    endpoint = "/fal.run/emulator/bought"
    seen = await statuses(site, 30, "bought", endpoint)
    assert exactly(seen, 5, Counter({402: 25})), seen
    assert site.sent("POST", "fal.run/emulator/bought") == seen[200]
    assert (await site.me("bought"))["budget"]["spent_microusd"] == 40_000 * seen[200]


async def test_concurrency_is_counted_over_both_replicas(site: Deployment) -> None:
    slow = "/fal.run/emulator/slow"
    seen = await statuses(site, 6, "few", slow, body='{"seconds": 40}')
    assert exactly(seen, 2, Counter({429: 4})), seen
    assert await statuses(site, 2, "few", slow, body='{"seconds": 0}') == {200: 2}, "both slots came back"


async def test_a_caller_is_known_by_their_own_address_and_not_by_what_they_claim(site: Deployment) -> None:
    forged = "203.0.113.77"
    mine = [
        await statuses(site, 2, None, local="127.0.0.2", X_Forwarded_For=claim) for claim in (forged, "198.51.100.1")
    ]
    assert mine == [{200: 2}, {429: 2}], "a new claim is no new caller"
    assert await statuses(site, 3, None, local="127.0.0.3", X_Forwarded_For=forged) == {200: 2, 429: 1}
    assert await statuses(site, 1, None, local="127.0.0.4", Forwarded="for=127.0.0.2", X_Real_IP="127.0.0.2") == {
        200: 1
    }


async def test_the_front_says_nothing_of_the_replicas_health_to_the_world(site: Deployment) -> None:
    async with site.open() as client:
        for path in (b"/healthz", b"/readyz"):
            await client.send(b"GET %b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % (path, site.front.port))
            assert (await client.answer()).status == 404
