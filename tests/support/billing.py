"""A fal that shows its bills page by page, our access lines beside them, and the two compared."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from fal_proxy.environment import Secret
from fal_proxy.platform_api import PlatformApi
from fal_proxy.platform_api.billing import Bills
from fal_proxy.platform_api.books import Books
from fal_proxy.platform_api.reconcile import Outcome, Window, reconcile
from fal_proxy.upstream.dial import Route
from fal_proxy.upstream.own_calls import OwnCalls
from support.services import Asked, Reply, Service, served

ADMIN = Secret("adadadad-0000-4000-8000-00000000feed:" + "ad" * 16)
NOON = datetime(2026, 6, 15, 12, tzinfo=UTC)
SINCE, UNTIL = NOON - timedelta(hours=12), NOON + timedelta(hours=12)
FLUX = "fal-ai/flux/dev"


def event(name: str, usd: str | None, at: datetime = NOON, endpoint: str = FLUX, **more: Any) -> dict[str, Any]:
    """Return a billing event."""
    cost = {} if usd is None else {"cost_total": Decimal(usd)}
    return {"request_id": name, "endpoint_id": endpoint, "timestamp": at.isoformat(), **cost, **more}


def line(name: str | None, cost: int | None, at: datetime = NOON, kind: str = "run", **more: Any) -> str:
    """Return an access line, as far as books look at it."""
    known = {"ts": at.isoformat(), "id": "x", "kind": kind, "endpoint": FLUX, "plan": "default", "decision": "admitted"}
    return json.dumps(known | {"request_id": name, "cost_microusd": cost} | more)


@dataclass
class Fal:
    """What fal billed, shown by pages; `says` answers the first questions instead."""

    events: list[dict[str, Any]] = field(default_factory=list)
    says: list[Reply] = field(default_factory=list)
    page_events: int = 1000
    questions: list[dict[str, list[str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.service = Service(self.answer)

    def answer(self, asked: Asked) -> Reply:
        """Answer one question."""
        assert asked.values(b"authorization") == [b"Key " + ADMIN.reveal().encode()]
        query = parse_qs(urlsplit(asked.path).query)
        self.questions.append(query)
        if self.says:
            return self.says.pop(0)
        start, end = (datetime.fromisoformat(query[name][0]) for name in ("start", "end"))
        wanted = query["request_id"][0].split(",") if "request_id" in query else None
        assert wanted is None or len(wanted) <= 50
        found = [
            each
            for each in self.events
            if (start <= datetime.fromisoformat(each["timestamp"]) < end)
            and (wanted is None or each["request_id"] in wanted)
        ]
        begin = int(query["cursor"][0]) if "cursor" in query else 0
        after = begin + self.page_events
        rows = ",".join(map(_encoded, found[begin:after]))
        cursor = f'"{after}"' if after < len(found) else "null"
        more = str(after < len(found)).lower()
        text = f'{{"billing_events":[{rows}],"next_cursor":{cursor},"has_more":{more}}}'
        return Reply(200, text.encode())


def _encoded(event: dict[str, Any]) -> str:
    pairs = (
        f'"{name}":{value}' if isinstance(value, Decimal) else f'"{name}":{json.dumps(value)}'
        for name, value in event.items()
    )
    return "{" + ",".join(pairs) + "}"


Compare = Callable[..., Any]


@pytest.fixture
def fal() -> Fal:
    """Return a fal that has billed nothing."""
    return Fal()


@pytest.fixture
async def compare(fal: Fal) -> AsyncIterator[Compare]:
    """Return a function that compares lines with what fal shows."""
    waited: list[float] = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    async with served(fal.service) as url:
        api = PlatformApi(Route(url), OwnCalls(seconds=10, max_bytes=10**7, connections=1))

        async def run(
            *lines: str,
            now: datetime = UNTIL + timedelta(days=3),
            until: datetime = UNTIL,
            late: timedelta = timedelta(hours=1),
            tolerance: str = "0.000001",
        ) -> Outcome:
            window = Window(SINCE, until, now, late)
            return await reconcile(Bills(api, ADMIN, pause), Books(lines), window, Fraction(tolerance))

        run.waited = waited  # type: ignore[attr-defined]
        yield run
        await api.close()
