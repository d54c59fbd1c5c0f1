"""api.fal.ai: what models cost, and what was billed. Other routes of the platform API are not emulated.

What nobody outside of fal knows is chosen here: endpoints without a price are left out of an answer, and when none of
those asked for has one it is 404; a key without admin scope gets 403.
"""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.parse import parse_qsl

from . import answers
from .answers import Answer
from .bills import Bill
from .exchange import Exchange, Json
from .tariff import find_tariff
from .world import World

HOST = "api.fal.ai"
_MOST_IDS = 50
_MOST_EVENTS = 10_000
_MOST_DAYS = 90


class _InvalidError(Exception):
    """A parameter that fal would refuse; the text says which."""


def serve(world: World, exchange: Exchange) -> Answer:
    """Serve one request."""
    path = exchange.path.rstrip("/")
    route = _ROUTES.get(path)
    if route is None:
        return _error(world, 404, "not_found", "Resource not found")
    if exchange.method != "GET":
        return answers.detail(405, "Method Not Allowed", [("allow", "GET")])
    verdict = world.access.admin(exchange) if path in _ADMIN else world.access.key(exchange)
    if verdict == "forbidden":
        return _error(world, 403, "authorization_error", "This endpoint requires an API key with admin scope")
    if verdict != "ok":
        return _error(world, 401, "authorization_error", "Authentication required")
    try:
        return route(world, _Query(exchange))
    except _InvalidError as error:
        return _error(world, 400, "validation_error", str(error))


class _Query:
    """The parameters of one request, which may be repeated or joined by commas."""

    def __init__(self, exchange: Exchange) -> None:
        text = exchange.entry.target.partition(b"?")[2].decode("latin-1")
        self._pairs = parse_qsl(text, keep_blank_values=True)

    def one(self, name: str) -> str | None:
        """Return the last value of that name."""
        return next((value for key, value in reversed(self._pairs) if key == name), None)

    def ids(self, name: str, *, required: bool = False) -> list[str] | None:
        """Return the ids of that name, None without any."""
        found = [part for key, value in self._pairs if key == name for part in value.split(",") if part]
        if not found and not required:
            return None
        if not 1 <= len(found) <= _MOST_IDS:
            raise _InvalidError(f"{name}: 1 to {_MOST_IDS} ids, not {len(found)}")
        return found

    def moment(self, name: str, default: float) -> float:
        """Return a time in seconds; ISO 8601, UTC where it does not say."""
        text = self.one(name)
        if text is None:
            return default
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise _InvalidError(f"{name}: must be a date in ISO 8601") from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

    def page(self, most: int, default: int) -> tuple[int, int]:
        """Return where the page begins and how many items it has."""
        limit, cursor = self.one("limit"), self.one("cursor")
        size = int(limit) if limit is not None and limit.isdecimal() else default
        if not 1 <= size <= most or (limit is not None and not limit.isdecimal()):
            raise _InvalidError(f"limit: must be from 1 to {most}")
        try:
            return (int(base64.urlsafe_b64decode(cursor.encode())) if cursor else 0), size
        except ValueError:
            raise _InvalidError("cursor: is none of ours") from None


def _pricing(world: World, query: _Query) -> Answer:
    asked = query.ids("endpoint_id", required=True) or []
    prices = [
        {
            "endpoint_id": endpoint,
            "unit_price": float(tariff.usd),  # its shortest form is what the table says
            "unit": tariff.unit,
            "currency": "USD",
        }
        for endpoint in dict.fromkeys(asked)
        if (tariff := find_tariff(endpoint)) is not None
    ]
    if not prices:
        return _error(world, 404, "not_found", "Resource not found")
    return _paged("prices", prices, *query.page(_MOST_IDS, _MOST_IDS))


def _billing_events(world: World, query: _Query) -> Answer:
    now = world.clock()
    end = query.moment("end", now)
    start = query.moment("start", end - timedelta(days=1).total_seconds())
    if start >= end or end - start > timedelta(days=_MOST_DAYS).total_seconds():
        raise _InvalidError(f"start, end: start must be before end, and at most {_MOST_DAYS} days")
    endpoints, requests = query.ids("endpoint_id"), query.ids("request_id")
    page = query.page(_MOST_EVENTS, 100)
    events = [
        _event(bill)
        for bill in world.bills.between(start, end)
        if (endpoints is None or bill.endpoint in endpoints) and (requests is None or bill.request_id in requests)
    ]
    return _paged("billing_events", events, *page)


def _event(bill: Bill) -> dict[str, Json]:
    tariff = find_tariff(bill.endpoint)
    usd = tariff.usd if tariff else Decimal(0)
    total = usd * bill.units
    moment = datetime.fromtimestamp(bill.at, UTC)
    return {
        "request_id": bill.request_id,
        "endpoint_id": bill.endpoint,
        "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "output_units": float(bill.units),
        "unit_price": float(usd),
        "percent_discount": None,
        "cost_subtotal": float(total),
        "cost_discount": 0,
        "cost_total": float(total),
        "cost_estimate_nano_usd": float(total * 10**9),
    }


def _paged(name: str, items: list[Json], begin: int, size: int) -> Answer:
    end = begin + size
    more = end < len(items)
    cursor = base64.urlsafe_b64encode(b"%d" % end).decode() if more else None
    return answers.json_answer(200, {name: items[begin:end], "next_cursor": cursor, "has_more": more})


def _error(world: World, status: int, type_: str, message: str) -> Answer:
    body = {"type": type_, "message": message, "docs_url": "https://fal.ai/docs", "request_id": world.new_id()}
    return Answer(status, [("content-type", "application/json")], json.dumps({"error": body}).encode())


_ROUTES: dict[str, Callable[[World, _Query], Answer]] = {
    "/v1/models/pricing": _pricing,
    "/v1/models/billing-events": _billing_events,
}
_ADMIN = frozenset({"/v1/models/billing-events"})
