"""A fal that has a price list and runs anything: a service of ours on loopback, in the words of fal's documentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from fal_proxy.environment import Secret
from fal_proxy.platform_api import PlatformApi
from fal_proxy.platform_api.feed import Feed
from fal_proxy.platform_api.price_file import PriceFile
from fal_proxy.settings import PriceFeed
from fal_proxy.upstream.credentials import FalKey
from fal_proxy.upstream.dial import Route
from fal_proxy.upstream.keys import KeyPool
from fal_proxy.upstream.own_calls import OwnCalls
from support.proxied import FAL_KEY
from support.services import Asked, Clock, Reply, Service

KEPT = 1_800_000_000.0


def row(endpoint: str, price: str, currency: str = "USD", unit: str = "images") -> str:
    """Return a row of a price list, its price as JSON."""
    return f'{{"endpoint_id":"{endpoint}","unit_price":{price},"unit":"{unit}","currency":"{currency}"}}'


def page(*rows: str, cursor: str | None = None) -> Reply:
    """Return a page of a price list."""
    after = "null" if cursor is None else f'"{cursor}"'
    text = f'{{"prices":[{",".join(rows)}],"next_cursor":{after},"has_more":{str(cursor is not None).lower()}}}'
    return Reply(200, text.encode())


@dataclass
class Fal:
    """What it costs, by id; whatever is asked for beside that has no price. `says` answers in its place."""

    prices: dict[str, str] = field(default_factory=dict)
    says: Callable[[list[str]], Reply | None] | None = None
    units: str = "1"
    questions: list[list[str]] = field(default_factory=list)
    cursors: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.service = Service(self.answer)

    def answer(self, asked: Asked) -> Reply:
        """Answer one request, whatever its host."""
        parts = urlsplit(asked.path)
        if not parts.path.startswith("/api.fal.ai/v1/models/pricing"):
            self.runs.append(parts.path)
            return Reply(200, b"{}", ((b"x-fal-billable-units", self.units.encode()),))
        query = parse_qs(parts.query)
        ids = ",".join(query["endpoint_id"]).split(",")
        self.questions.append(ids)
        self.cursors += query.get("cursor", [])
        self.keys += [value.decode().removeprefix("Key ") for value in asked.values(b"authorization")]
        if self.says is not None and (reply := self.says(ids)) is not None:
            return reply
        return page(*(row(name, self.prices[name]) for name in ids if name in self.prices))


def refusing(*statuses: int, body: bytes = b'{"error":{"type":"server_error","message":"x"}}') -> Callable[..., Reply]:
    """Return what answers with these statuses, the last of them for ever."""
    left = list(statuses)
    return lambda _: Reply(left.pop(0) if len(left) > 1 else left[0], body)


@dataclass
class Fed:
    """A feed whose clocks are the test's, in front of a fal."""

    feed: Feed
    wall: Clock
    file: PriceFile

    async def usd(self, name: str) -> str | None:
        """Return the price of an endpoint as text."""
        price = await self.feed.price_of(name)
        return None if price is None else str(price.usd)


def fed(
    url: str,
    folder: Path,
    *keys: Secret,
    named: tuple[str, ...] = (),
    wall: Clock | None = None,
    refresh: float = 60,
    max_age: float = 3600,
) -> Fed:
    """Return a feed of the fal at `url`; close it."""
    wall = wall or Clock(KEPT)
    api = PlatformApi(Route(url), OwnCalls(seconds=5, max_bytes=1024 * 1024, connections=1))
    file = PriceFile(folder / "fal-prices.json", api.address(Route(url)), wall)
    settings = PriceFeed(mode="fetch", refresh_seconds=refresh, max_age_seconds=max_age)
    pool = KeyPool([FalKey(key) for key in keys or (FAL_KEY,)])
    return Fed(Feed(settings, api, pool, named, file, now=wall), wall, file)
