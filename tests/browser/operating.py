"""A proxy with a day behind it, its admin page, and the emulator; in the test's own loop."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx2

from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller, Exchange, Kind
from fal_proxy.telemetry.rollup import Rollup
from support.emulated import emulated
from support.limited import Clock, Fields, limits, wide
from support.operated import TOKEN, Operated, operated

PLAN = wide(budget="5.00/day", submit="30/minute", concurrent=8, realtime_sessions=4)
PRICES = {"default": 0.025}
RUN = "/fal.run/fal-ai/flux/dev"
_APPS = (("fal-ai/flux/dev", 25_000), ("fal-ai/flux/schnell", 3_000), ("fal-ai/kling-video/v2", 350_000))
_NAMES = ("ada", "bea", "cem", "dia", "eli", "fay")


@dataclass(frozen=True)
class Office:
    """Where a proxy is operated."""

    on: Operated
    url: str
    token: str = TOKEN

    async def run(self, caller: Fields | None = None) -> int:
        """Let a caller run something; return the status."""
        headers = {**dict(caller or self.on.limited.ada), "content-type": "application/json"}
        async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
            url = f"http://127.0.0.1:{self.on.limited.proxy.port}/api/fal/proxy{RUN}"
            return (await client.post(url, json={"prompt": "a fox"}, headers=headers)).status_code


@contextlib.asynccontextmanager
async def office(folder: Path, *, past: bool = False) -> AsyncIterator[Office]:
    """Run everything; `past` fills the last day with what might have been."""
    async with emulated(speed=50) as fal:
        settings = limits(folder, PLAN, prices=PRICES)
        async with operated(fal.url, folder, settings) as on:
            now = time.time()
            # Its clock stands: no minute ends between what a test does and what the page shows of it.
            on.limited.proxy.app._gateway.telemetry.rollup = day_behind(now) if past else Rollup(Clock(now))
            yield Office(on, f"http://127.0.0.1:{on.admin_port}")


def day_behind(now: float) -> Rollup:
    """Return a rollup that ends at `now` and has a day of runs, the same every time."""
    clock, chance = Clock(), random.Random(7)
    clock.now = now - 60 * (24 * 60 - 1)
    rollup = Rollup(clock)
    for minute in range(24 * 60):
        busy = 1 if minute < 700 else 3
        for _ in range(chance.randint(0, 2 * busy)):
            _one(rollup, chance)
        clock.advance(60 if minute < 24 * 60 - 1 else 0)
    return rollup


def _one(rollup: Rollup, chance: random.Random) -> None:
    exchange = Exchange(lambda: 0.0)
    name = chance.choices(_NAMES, weights=[9, 5, 3, 2, 1, 1])[0]
    plan = "studio" if name in ("ada", "cem") else "default"
    exchange.caller = Caller(f"key::{name}", "key", plan, ambient=False)
    exchange.plan, (exchange.endpoint_id, cost) = plan, chance.choices(_APPS, weights=[6, 8, 1])[0]
    exchange.kind = chance.choices((Kind.RUN, Kind.STATUS), weights=[3, 2])[0]
    if chance.random() < 0.06:
        exchange.refused(Refusal(chance.choice(("rate_limited", "rate_limited", "budget_exhausted")), "no"))
    elif exchange.kind is Kind.RUN:
        exchange.cost_microusd = cost
    rollup.count(exchange)
