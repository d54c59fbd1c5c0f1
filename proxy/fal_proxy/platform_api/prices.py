"""What fal's price list says: `GET /v1/models/pricing`. Exact decimals in, exact fractions out; only a positive price in
USD is one.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

import msgspec

from fal_proxy.environment import Secret
from fal_proxy.platform_api import MAX_CURSOR_CHARS, PlatformApi, PlatformError
from fal_proxy.policy.endpoints import spelled_plainly
from fal_proxy.policy.pricing import Price

PATH = "/v1/models/pricing"
MOST_IDS = 50  # of one question
MAX_PAGES = 10
MAX_UNIT_CHARS = 64
_MAX_USD = 10_000
_MAX_DECIMALS = 20
# Plainly spelled, and without what separates ids in a query; fal's own ids are no stranger than this.
_ASKABLE = re.compile(r"(?=.{3,160}\Z)[a-z0-9._~\-]+(?:/[a-z0-9._~\-]+)+")


class Offer(NamedTuple):
    """What fal asks for one unit of an endpoint."""

    price: Price
    unit: str


class _Row(msgspec.Struct, frozen=True):
    endpoint_id: str
    unit_price: Decimal
    currency: str
    unit: str = ""


class _Page(msgspec.Struct, frozen=True):
    prices: list[msgspec.Raw]
    next_cursor: str | None = None
    has_more: bool = False


def is_askable(plain_id: str) -> bool:
    """Say whether an id, spelled plainly, can be one of fal's."""
    return _ASKABLE.fullmatch(plain_id) is not None


def offer_of(usd: str, unit: str) -> Offer | None:
    """Return the offer that a decimal text makes, None for one that no price can be."""
    try:
        amount = Decimal(usd)
    except ArithmeticError:
        return None
    return Offer(Price(Fraction(amount)), unit[:MAX_UNIT_CHARS]) if _is_price(amount) else None


async def ask_prices(api: PlatformApi, ids: Collection[str], key: Secret) -> dict[str, Offer]:
    """Return what fal asks for these endpoints, those left out that it names no price for. Raises PlatformError."""
    found: dict[str, Offer] = {}
    query = [("endpoint_id", ",".join(ids))]
    for _ in range(MAX_PAGES):
        page = _decoded(await api.get(PATH, query, key))
        for endpoint_id, offer in _offers(page):
            if endpoint_id in ids and (endpoint_id not in found or found[endpoint_id].price.usd < offer.price.usd):
                found[endpoint_id] = offer  # of two prices the higher one
        if not page.has_more or not page.next_cursor:
            return found
        if len(page.next_cursor) > MAX_CURSOR_CHARS:
            break
        query = [query[0], ("cursor", page.next_cursor)]
    raise PlatformError("its pages do not end")


def _decoded(body: bytes) -> _Page:
    try:
        return msgspec.json.decode(body, type=_Page)
    except (msgspec.DecodeError, RecursionError) as error:
        raise PlatformError("its answer is no price list") from error


def _offers(page: _Page) -> list[tuple[str, Offer]]:
    offers = []
    for raw in page.prices:
        try:
            row = msgspec.json.decode(raw, type=_Row)
        except (msgspec.DecodeError, RecursionError):
            continue  # one malformed row does not spoil the others
        if row.currency == "USD" and _is_price(row.unit_price):
            offer = Offer(Price(Fraction(row.unit_price)), row.unit[:MAX_UNIT_CHARS])
            offers.append((spelled_plainly(row.endpoint_id), offer))
    return offers


def _is_price(amount: Decimal) -> bool:
    """Say whether it is more than nothing, no fortune, and short enough to calculate with."""
    exponent = amount.as_tuple().exponent
    return (
        isinstance(exponent, int)
        and 0 < amount <= _MAX_USD
        and -_MAX_DECIMALS <= exponent <= _MAX_DECIMALS
        and len(amount.as_tuple().digits) <= 2 * _MAX_DECIMALS
    )
