"""What fal billed, request by request: `GET /v1/models/billing-events`, which needs a key of admin scope.

An event that makes no sense ends the reading: of books that were half read nobody can say that they agree.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

import msgspec

from fal_proxy.environment import Secret
from fal_proxy.platform_api import MAX_CURSOR_CHARS, PlatformApi, PlatformError

PATH = "/v1/models/billing-events"
MAX_DAYS = 90  # of one question
MOST_IDS = 50
PAGE_EVENTS = 1000
MAX_PAGES = 10_000
RETRY_SECONDS = (1.0, 2.0, 4.0)
_LARGEST_EXPONENT = 30

Pause = Callable[[float], Awaitable[None]]


class Event(NamedTuple):
    """One thing that fal billed; of one request there may be several."""

    request_id: str
    endpoint: str
    at: datetime | None
    usd: Fraction
    units: Fraction | None


class _Row(msgspec.Struct, frozen=True):
    request_id: str
    endpoint_id: str = ""
    timestamp: datetime | None = None
    output_units: Decimal | None = None
    unit_price: Decimal | None = None
    cost_total: Decimal | None = None
    cost_estimate_nano_usd: Decimal | None = None


class _Page(msgspec.Struct, frozen=True):
    billing_events: list[_Row]
    next_cursor: str | None = None
    has_more: bool = False


class Bills:
    """fal's bills, read with one key."""

    def __init__(self, api: PlatformApi, key: Secret, pause: Pause = asyncio.sleep) -> None:
        """Take the API, which somebody else closes."""
        self._api = api
        self._key = key
        self._pause = pause

    async def between(self, start: datetime, end: datetime, ids: Sequence[str] = ()) -> AsyncIterator[Event]:
        """Yield what was billed from `start` until before `end`, of these requests only if any are named (at most 50).

        Raises PlatformError.
        """
        query = [("start", _written(start)), ("end", _written(end)), ("limit", str(PAGE_EVENTS))]
        if ids:
            query.append(("request_id", ",".join(ids)))
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            page = _decoded(await self._ask([*query, ("cursor", cursor)] if cursor else query))
            for row in page.billing_events:
                yield _event(row)
            if not page.has_more or not page.next_cursor:
                return
            if page.next_cursor == cursor or len(page.next_cursor) > MAX_CURSOR_CHARS:
                break
            cursor = page.next_cursor
        raise PlatformError("its pages do not end")

    async def _ask(self, query: Sequence[tuple[str, str]]) -> bytes:
        for seconds in RETRY_SECONDS:
            try:
                return await self._api.get(PATH, query, self._key)
            except PlatformError as error:
                if error.status is not None and error.status != 429 and error.status < 500:
                    raise
            await self._pause(seconds)
        return await self._api.get(PATH, query, self._key)


def _decoded(body: bytes) -> _Page:
    try:
        return msgspec.json.decode(body, type=_Page)
    except (msgspec.DecodeError, RecursionError) as error:
        raise PlatformError("its answer holds no bills that make sense") from error


def _event(row: _Row) -> Event:
    numbers = (row.output_units, row.unit_price, row.cost_total, row.cost_estimate_nano_usd)
    if not row.request_id or not all(number is None or _is_plain(number) for number in numbers):
        raise PlatformError("its answer holds a bill that makes no sense")
    units = None if row.output_units is None else Fraction(row.output_units)
    if row.cost_total is not None:
        usd = Fraction(row.cost_total)
    elif row.cost_estimate_nano_usd is not None:
        usd = Fraction(row.cost_estimate_nano_usd) / 10**9
    elif units is not None and row.unit_price is not None:
        usd = units * Fraction(row.unit_price)
    else:
        raise PlatformError("its answer holds a bill without an amount")
    return Event(row.request_id, row.endpoint_id, row.timestamp, usd, units)


def _is_plain(number: Decimal) -> bool:
    exponent = number.as_tuple().exponent
    return isinstance(exponent, int) and abs(exponent) <= _LARGEST_EXPONENT and abs(number) < 10**12


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
