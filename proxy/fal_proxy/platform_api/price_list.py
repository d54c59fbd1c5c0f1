"""What an endpoint costs: the operator's own words first, then fal's price list, then the operator's `default`.

`default` comes last because it is a guess about whatever has no price, and fal's own figure is none. It does not stand in
for a price that fal named once and that has grown too old: that one is known to be something else.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fal_proxy.platform_api import PlatformApi
from fal_proxy.platform_api.feed import Feed
from fal_proxy.platform_api.price_file import PriceFile
from fal_proxy.policy.endpoints import spelled_plainly
from fal_proxy.policy.pricing import Price, Prices
from fal_proxy.settings import Plan, Settings
from fal_proxy.upstream.dial import Route
from fal_proxy.upstream.keys import KeyPool
from fal_proxy.upstream.own_calls import OwnCalls

ASK_SECONDS = 10.0
MAX_BYTES = 1024 * 1024


class PriceList:
    """The prices of one deployment."""

    def __init__(self, prices: Prices, feed: Feed | None = None) -> None:
        """Take the operator's prices and, where it is on, the feed, which is somebody else's to close."""
        self.feed = feed
        self._prices = prices

    async def price_of(self, endpoint_id: str) -> Price | None:
        """Return the price of an endpoint, None where it has none. Raises Refusal store_unavailable."""
        if self.feed is None:
            return self._prices.price_of(endpoint_id)
        plain = spelled_plainly(endpoint_id)
        price = self._prices.named_price_of(plain)
        if price is None:
            price = await self.feed.price_of(plain)
        return self._prices.default if price is None else price

    def follow(self, settings: Settings, folder: Path, route: Route) -> None:
        """Let the feed go by these settings, which this list was made of."""
        if self.feed is not None:
            file = price_file(settings, folder, PlatformApi.address(route))
            self.feed.follow(settings.price_feed, _unpriced(settings, self._prices), file)


def open_price_list(
    settings: Settings, prices: Prices, folder: Path, route: Route, keys: KeyPool, kept: Feed | None = None
) -> PriceList:
    """Return the price list that the settings describe; paths are relative to `folder`. Close its feed.

    `kept` is the feed of the settings before them, which goes on if there is to be one.
    """
    if settings.price_feed.mode == "off":
        return PriceList(prices)
    if kept is not None:
        return PriceList(prices, kept)
    api = PlatformApi(route, OwnCalls(seconds=ASK_SECONDS, max_bytes=MAX_BYTES, connections=1))
    file = price_file(settings, folder, api.address(route))
    return PriceList(prices, Feed(settings.price_feed, api, keys, _unpriced(settings, prices), file))


def _unpriced(settings: Settings, prices: Prices) -> list[str]:
    """Return the ids that plans name and prices do not: fal is asked about them first."""
    return [name for name in exact_ids(settings.plans.values()) if prices.named_price_of(name) is None]


def price_file(settings: Settings, folder: Path, source: str) -> PriceFile | None:
    """Return the file that keeps fetched prices, None without one."""
    name = settings.price_feed.file
    return PriceFile(folder / name, source) if name else None


def exact_ids(plans: Iterable[Plan]) -> list[str]:
    """Return the endpoint ids that the plans name without a glob, plainly spelled."""
    return list(dict.fromkeys(spelled_plainly(glob) for plan in plans for glob in plan.endpoints if "*" not in glob))
