"""Instances that share a port, as those of the systemd unit do, behind nginx with that one address."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from support.replicas import Deployment, deployed

RUN = "/fal.run/emulator/echo"


async def statuses(site: Deployment, count: int, plan: str) -> Counter[int]:
    """Ask so many times, four at a time; what a stalled machine could not count is left out."""
    seen: Counter[int] = Counter()
    for _ in range(0, count, 4):
        answers = await asyncio.gather(*(site.ask("POST", RUN, plan, Connection="close") for _ in range(4)))
        seen.update(answer.status for answer in answers)
    return seen


async def test_instances_on_one_port_are_one_proxy_and_each_may_end(tmp_path: Path) -> None:
    async with deployed("nginx", tmp_path, one_port=True) as site:
        assert site.replicas[0].port == site.replicas[1].port
        seen = await statuses(site, 40, "rated")
        assert 23 - seen[503] <= seen[200] <= 23
        assert site.sent("POST", "fal.run/") == seen[200]
        leaving, staying = site.replicas
        leaving.terminate()
        assert await leaving.ended() == 0
        before = len(staying.lines)
        assert set(await statuses(site, 20, "default")) <= {200, 503}
        await leaving.start()
        staying.terminate()
        assert await staying.ended() == 0
        assert len(staying.lines) > before
        assert set(await statuses(site, 20, "default")) <= {200, 503}
        assert leaving.lines
