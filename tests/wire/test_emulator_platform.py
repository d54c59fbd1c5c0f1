"""api.fal.ai of the emulator: prices that agree with what inference bills, and bills for what was really run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx2
import msgspec
import pytest

from support.emulated import Emulated, emulated

KEY = {"authorization": "Key id:secret"}
ADMIN = {"authorization": "Key admin:secret"}
PRICING, EVENTS = "/v1/models/pricing", "/v1/models/billing-events"
NOON = 1_800_000_000.0


class Clock:
    """The emulator's time, which stands still until a test moves it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return NOON + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def fal(clock: Clock) -> AsyncIterator[Emulated]:
    async with emulated(speed=500, api_keys=["id:secret"], admin_keys=["admin:secret"], clock=clock) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=10) as made:
        yield made


Asked = list[tuple[str, str]]


async def _get(
    client: httpx2.AsyncClient, fal: Emulated, path: str, query: Asked, headers: dict[str, str] = ADMIN
) -> tuple[int, Any]:
    answer = await client.get(fal.at("api.fal.ai", path), params=httpx2.QueryParams(list(query)), headers=headers)
    return answer.status_code, answer.json()


def _ids(*ids: str) -> Asked:
    return [("endpoint_id", one) for one in ids]


FLUX = {"endpoint_id": "fal-ai/flux/dev", "unit_price": 0.025, "unit": "megapixels", "currency": "USD"}
SDXL = {"endpoint_id": "fal-ai/fast-sdxl", "unit_price": 0.0025, "unit": "images", "currency": "USD"}
PRICED = [
    (_ids("fal-ai/flux/dev"), [FLUX], "one"),
    (_ids("fal-ai/flux/dev", "fal-ai/fast-sdxl"), [FLUX, SDXL], "repeated"),
    (_ids("fal-ai/flux/dev,fal-ai/fast-sdxl"), [FLUX, SDXL], "joined by commas"),
    (_ids("fal-ai/made-up", "fal-ai/flux/dev"), [FLUX], "what has no price is left out"),
    (_ids(*["fal-ai/flux/dev"] * 50), [FLUX], "fifty"),
]


@pytest.mark.parametrize(("query", "prices", "why"), PRICED)
async def test_pricing_names_unit_and_price(
    query: Asked, prices: list[Any], why: str, client: httpx2.AsyncClient, fal: Emulated
) -> None:
    expected = {"prices": prices, "next_cursor": None, "has_more": False}
    assert await _get(client, fal, PRICING, query, KEY) == (200, expected), why


REFUSED = [
    (PRICING, [], KEY, 400, "validation_error", "no id"),
    (PRICING, _ids(*[f"a/{n}" for n in range(51)]), KEY, 400, "validation_error", "fifty-one"),
    (PRICING, [*_ids("fal-ai/flux/dev"), ("cursor", "!")], KEY, 400, "validation_error", "a cursor of somebody else's"),
    (PRICING, _ids("fal-ai/made-up"), KEY, 404, "not_found", "none has a price"),
    (PRICING, _ids("fal-ai/flux/dev"), {}, 401, "authorization_error", "no key"),
    (PRICING, _ids("fal-ai/flux/dev"), {"authorization": "Key no:key"}, 401, "authorization_error", "a bad key"),
    (EVENTS, [], KEY, 403, "authorization_error", "a key without admin scope"),
    (EVENTS, [], {}, 401, "authorization_error", "no key"),
    (EVENTS, [("start", "yesterday")], ADMIN, 400, "validation_error", "no date"),
    (EVENTS, [("start", "2026-01-01"), ("end", "2026-06-01")], ADMIN, 400, "validation_error", "more than ninety days"),
    (EVENTS, [("start", "2026-01-02"), ("end", "2026-01-01")], ADMIN, 400, "validation_error", "backwards"),
    (EVENTS, [("limit", "10001")], ADMIN, 400, "validation_error", "a page too long"),
    (EVENTS, [("limit", "0")], ADMIN, 400, "validation_error", "an empty page"),
    ("/v1/keys", [], ADMIN, 404, "not_found", "what is not emulated"),
]


@pytest.mark.parametrize(("path", "query", "headers", "status", "type_", "why"), REFUSED)
async def test_platform_refuses_in_its_own_words(
    path: str,
    query: Asked,
    headers: dict[str, str],
    status: int,
    type_: str,
    why: str,
    client: httpx2.AsyncClient,
    fal: Emulated,
) -> None:
    code, body = await _get(client, fal, path, query, headers)
    assert (code, body["error"]["type"]) == (status, type_), why
    assert body["error"]["message"]


async def test_platform_takes_get_only(client: httpx2.AsyncClient, fal: Emulated) -> None:
    answer = await client.post(fal.at("api.fal.ai", PRICING), headers=ADMIN, json={})
    assert answer.status_code == 405


BILLED = [
    ("fal-ai/flux/dev", {"prompt": "a pier", "num_images": 3}, "3", "megapixels, each picture rounded up"),
    ("fal-ai/fast-sdxl", {"prompt": "a pier", "num_images": 2}, "2", "pictures"),
    ("fal-ai/kling-video/v2/text-to-video", {"prompt": "a pier", "duration": "5"}, "5", "seconds of video"),
    ("emulator/slow", {}, "1", "requests"),
]


@pytest.mark.parametrize(("endpoint", "given", "units", "why"), BILLED)
async def test_a_run_is_billed_by_the_units_of_its_answer_at_the_price_of_the_list(
    endpoint: str, given: dict[str, Any], units: str, why: str, client: httpx2.AsyncClient, fal: Emulated, clock: Clock
) -> None:
    answer = await client.post(fal.at("fal.run", "/" + endpoint), json=given, headers=KEY)
    assert (answer.status_code, answer.headers["x-fal-billable-units"]) == (200, units), why
    clock.ahead += 1
    _, prices = await _get(client, fal, PRICING, _ids(endpoint))
    _, books = await _get(client, fal, EVENTS, [])
    [event] = books["billing_events"]
    price = Decimal(repr(prices["prices"][0]["unit_price"]))
    assert event["request_id"] == answer.headers["x-fal-request-id"]
    assert event["endpoint_id"] == endpoint
    assert Decimal(repr(event["output_units"])) == Decimal(units)
    assert Decimal(repr(event["unit_price"])) == price
    assert Decimal(repr(event["cost_total"])) == price * Decimal(units)
    assert Decimal(repr(event["cost_estimate_nano_usd"])) == price * Decimal(units) * 10**9
    assert datetime.fromisoformat(event["timestamp"]).timestamp() == pytest.approx(NOON, abs=60)


async def test_a_job_is_billed_once_and_even_if_nobody_fetches_it(
    client: httpx2.AsyncClient, fal: Emulated, clock: Clock
) -> None:
    ids = []
    for _ in range(3):
        answer = await client.post(fal.at("queue.fal.run", "/fal-ai/flux/dev"), json={"prompt": "x"}, headers=KEY)
        ids.append(answer.json()["request_id"])
    cancelled, fetched, left = ids
    put = await client.put(fal.at("queue.fal.run", f"/fal-ai/flux/requests/{cancelled}/cancel"), headers=KEY)
    assert put.status_code in (200, 202)
    clock.ahead += 60
    for _ in range(2):
        answer = await client.get(fal.at("queue.fal.run", f"/fal-ai/flux/requests/{fetched}"), headers=KEY)
        assert answer.status_code == 200
    _, books = await _get(client, fal, EVENTS, [])
    assert sorted(event["request_id"] for event in books["billing_events"]) == sorted([fetched, left])
    assert {event["endpoint_id"] for event in books["billing_events"]} == {"fal-ai/flux/dev"}


FREE = [
    ("/fal-ai/flux/dev", {}, 422, "a wrong input"),
    ("/emulator/fail", {"status": 500}, 500, "a failure"),
]


@pytest.mark.parametrize(("path", "given", "status", "why"), FREE)
async def test_what_fails_is_not_billed(
    path: str, given: dict[str, Any], status: int, why: str, client: httpx2.AsyncClient, fal: Emulated, clock: Clock
) -> None:
    answer = await client.post(fal.at("fal.run", path), json=given, headers=KEY)
    clock.ahead += 1
    assert answer.status_code == status
    assert (await _get(client, fal, EVENTS, []))[1]["billing_events"] == [], why


async def test_a_stream_is_billed_though_its_head_cannot_say_so(
    client: httpx2.AsyncClient, fal: Emulated, clock: Clock
) -> None:
    answer = await client.post(fal.at("fal.run", "/fal-ai/any-llm/stream"), json={"prompt": "x"}, headers=KEY)
    clock.ahead += 1
    assert "x-fal-billable-units" not in answer.headers
    [event] = (await _get(client, fal, EVENTS, []))[1]["billing_events"]
    assert event["request_id"] == answer.headers["x-fal-request-id"]


async def test_events_come_by_pages_by_time_by_endpoint_and_by_request(
    client: httpx2.AsyncClient, fal: Emulated, clock: Clock
) -> None:
    ids = []
    for number in range(5):
        path = "/fal-ai/flux/dev" if number % 2 else "/fal-ai/fast-sdxl"
        answer = await client.post(fal.at("fal.run", path), json={"prompt": "x"}, headers=KEY)
        ids.append(answer.headers["x-fal-request-id"])
        clock.ahead += 3600

    async def named(*query: tuple[str, str]) -> list[str]:
        found, cursor, more = [], None, True
        while more:
            paged = [*query, ("cursor", cursor)] if cursor else list(query)
            status, body = await _get(client, fal, EVENTS, paged)
            assert status == 200, body
            found += [event["request_id"] for event in body["billing_events"]]
            cursor, more = body["next_cursor"], body["has_more"]
            assert more is (cursor is not None)
        return found

    def at(hours: float) -> str:
        return datetime.fromtimestamp(NOON + hours * 3600, UTC).isoformat().replace("+00:00", "Z")

    assert await named() == ids
    assert await named(("limit", "2")) == ids
    assert await named(("endpoint_id", "fal-ai/flux/dev"), ("limit", "1")) == ids[1::2]
    assert await named(("request_id", f"{ids[3]},{ids[0]}")) == [ids[0], ids[3]]
    assert await named(("start", at(1)), ("end", at(3))) == ids[1:3]


async def test_an_emulator_without_a_list_of_admins_shows_its_books_to_any_key(client: httpx2.AsyncClient) -> None:
    async with emulated(speed=500) as fal:
        assert (await _get(client, fal, EVENTS, [], KEY))[0] == 200
        answer = await client.get(fal.at("", ""))
        assert "api.fal.ai" in msgspec.json.decode(answer.content)["emulated_hosts"]
