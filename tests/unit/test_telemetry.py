"""The pieces of telemetry by themselves: what a line may hold, what a slow reader costs, how addresses are counted."""

from __future__ import annotations

import json
import logging
import threading
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fal_proxy.address_guard import MAX_ADDRESSES, AddressGuard
from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller, Exchange, Kind
from fal_proxy.telemetry import Telemetry
from fal_proxy.telemetry.access import ENDPOINT_CHARS, PLAN_CHARS, REASON_CHARS, AccessLog, line_of
from fal_proxy.telemetry.catalogue import OTHER_PLAN
from fal_proxy.telemetry.lines import LineWriter
from support.lines import Lines, parsed, total

NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Idle:
    """An upstream at rest."""

    idle = 3
    open_calls = 0


def test_exchange_is_timed_by_its_clock_and_counted_when_it_ends() -> None:
    clock = Clock()
    telemetry = Telemetry(["default"], Idle(), clock=clock)
    exchange = telemetry.begin()
    exchange.caller = Caller("key::ada", "key", "default", ambient=False)
    exchange.kind, exchange.plan, exchange.cost_microusd = Kind.RUN, "default", 25_000
    assert telemetry.metrics.in_flight()["run"] == 1
    clock.now += 1.5
    exchange.first_byte_seconds = exchange.elapsed_seconds
    clock.now += 0.25
    telemetry.finish(exchange)
    line = line_of(exchange, NOW)
    assert (line.first_byte_ms, line.total_ms, line.cost_microusd) == (1500.0, 1750.0, 25_000)
    assert line.caller == exchange.caller.shown != "key::ada"
    found = parsed(telemetry.metrics.exposition().decode())
    assert total(found, "fal_proxy_in_flight") == 0
    assert total(found, "fal_proxy_upstream_idle_connections") == 3
    assert total(found, "fal_proxy_exchange_seconds_sum", kind="run") == 1.75
    assert total(found, "fal_proxy_exchange_seconds_bucket", kind="run", le="1.0") == 0
    assert total(found, "fal_proxy_exchange_seconds_bucket", kind="run", le="2.5") == 1
    assert total(found, "fal_proxy_cost_microusd_total", plan="default") == 25_000


def test_charge_that_fal_lowers_is_counted_apart_because_counters_only_rise() -> None:
    telemetry = Telemetry(["default"], Idle())
    for change in (40_000, -15_000):
        exchange = telemetry.begin()
        exchange.kind, exchange.plan, exchange.cost_microusd = Kind.RESULT, "default", change
        telemetry.finish(exchange)
    found = parsed(telemetry.metrics.exposition().decode())
    assert total(found, "fal_proxy_cost_microusd_total", plan="default") == 40_000
    assert total(found, "fal_proxy_cost_lowered_microusd_total", plan="default") == 15_000


def test_two_apps_count_apart() -> None:
    one, other = Telemetry(["default"], Idle()), Telemetry(["default"], Idle())
    one.finish(one.begin())
    assert total(parsed(other.metrics.exposition().decode()), "fal_proxy_exchanges_total") == 0


@given(st.text(max_size=400), st.text(max_size=400), st.text(max_size=400))
def test_line_is_one_line_of_bounded_printable_json_whatever_it_holds(endpoint: str, reason: str, plan: str) -> None:
    exchange = Exchange()
    exchange.endpoint_id, exchange.reason, exchange.plan = endpoint, reason, plan
    with Lines() as lines:
        AccessLog(lambda: NOW).write(exchange)
    [text] = lines.text
    assert text.isprintable()
    line = json.loads(text)
    assert line["ts"] == "2026-01-02T03:04:05.678000Z"
    assert len(line["endpoint"] or "") <= ENDPOINT_CHARS
    assert len(line["reason"] or "") <= REASON_CHARS
    assert len(line["plan"] or "") <= PLAN_CHARS


def test_plans_that_the_settings_do_not_know_share_one_label() -> None:
    telemetry = Telemetry(["default"], Idle())
    for plan, cost in (("of a token's claim", 0), ("closed last week", 7), (None, 1), ("closed last week", -3)):
        exchange = telemetry.begin()
        exchange.plan, exchange.cost_microusd = plan, cost
        telemetry.finish(exchange)
    found = parsed(telemetry.metrics.exposition().decode())
    expected = {"fal_proxy_cost_microusd_total": 8, "fal_proxy_cost_lowered_microusd_total": 3}
    for name, others in expected.items():
        costs = {labels["plan"]: value for found_name, labels, value in found if found_name == name}
        assert costs == {"default": 0, OTHER_PLAN: others}


class SlowStream:
    """A stream whose reader sleeps until the test wakes it."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.awake = threading.Event()
        self.text = ""

    def write(self, text: str) -> int:
        """Take text once the reader is awake."""
        self.reached.set()
        assert self.awake.wait(10)
        self.text += text
        return len(text)

    def flush(self) -> None:
        """Do nothing."""


def _record(message: str) -> logging.LogRecord:
    return logging.LogRecord("fal_proxy.access", logging.INFO, "", 0, message, None, None)


def test_reader_that_sleeps_loses_lines_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    stream = SlowStream()
    writer = LineWriter(stream, max_waiting=2)
    writer.emit(_record("first"))
    writer.start()
    assert stream.reached.wait(10)
    for message in ("second", "third", "lost"):
        writer.emit(_record(message))
    stream.awake.set()
    writer.flush()
    assert stream.text == "first\nsecond\nthird\n"
    assert writer.dropped == 1
    assert "1 access lines were dropped" in caplog.text


def test_lines_wait_for_the_start() -> None:
    stream = SlowStream()
    stream.awake.set()
    writer = LineWriter(stream)
    writer.emit(_record("line"))
    writer.flush()
    assert stream.text == ""
    writer.start()
    writer.flush()
    assert stream.text == "line\n"


def test_closed_stream_is_survived() -> None:
    class Closed(SlowStream):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    writer = LineWriter(Closed())
    writer.start()
    writer.emit(_record("line"))
    writer.flush()
    assert writer.dropped == 1


def test_address_is_refused_beyond_its_ceiling_until_the_minute_is_over() -> None:
    clock = Clock()
    guard = AddressGuard(3, clock=clock)
    for _ in range(3):
        guard.hit("192.0.2.1/32")
    clock.now += 20.5
    with pytest.raises(Refusal) as refused:
        guard.hit("192.0.2.1/32")
    assert (refused.value.error_type, refused.value.headers) == ("rate_limited", ((b"retry-after", b"40"),))
    guard.hit("192.0.2.2/32")
    clock.now += 39.5
    guard.hit("192.0.2.1/32")


def test_flood_of_addresses_shares_one_count_and_bounded_memory() -> None:
    guard = AddressGuard(2, clock=Clock())
    for number in range(MAX_ADDRESSES):
        guard.hit(str(number))
    guard.hit("one more")
    guard.hit("another")
    with pytest.raises(Refusal):
        guard.hit("a third")
    guard.hit("7")
