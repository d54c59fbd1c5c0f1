"""Prometheus metrics of one app, in a registry of its own; `catalogue` lists them."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.registry import Collector

from fal_proxy.exchange import Attempt, Ending, Exchange, Receipt, Reload
from fal_proxy.telemetry.catalogue import KINDS, METRICS, OTHER_PLAN
from fal_proxy.telemetry.watched import FetchedPrices, Keys, Upstream

__all__ = ["CONTENT_TYPE", "Metrics"]

# A status answers in milliseconds, a video in half an hour.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_EDGES = [*(str(float(edge)) for edge in SECONDS), "+Inf"]
Labels = tuple[str, ...]


class _OfKind:
    """What is known of the exchanges of one kind that have ended."""

    __slots__ = ("bytes_down", "bytes_up", "first_byte", "first_byte_sum", "seconds", "seconds_sum")

    def __init__(self) -> None:
        self.seconds = [0] * (len(SECONDS) + 1)  # by bucket, the last without an end
        self.first_byte = [0] * (len(SECONDS) + 1)
        self.seconds_sum = self.first_byte_sum = 0.0
        self.bytes_up = self.bytes_down = 0


class _Exchanges(Collector):
    """Counts in plain numbers, which become the library's own values when somebody looks: those lock for every step."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str, Ending], int] = {}
        self.kinds: dict[str, _OfKind] = {}
        self.costs: dict[str, int] = {}
        self.lowered: dict[str, int] = {}

    def know_plans(self, plans: Collection[str]) -> None:
        """Begin to count the costs of plans."""
        for plan in plans:
            self.costs.setdefault(plan, 0)
            self.lowered.setdefault(plan, 0)

    def count(self, exchange: Exchange) -> None:
        """Count an exchange that has ended."""
        name = exchange.kind_shown
        outcome = (name, exchange.decision, exchange.ending)
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        kind = self.kinds.get(name)
        if kind is None:
            kind = self.kinds[name] = _OfKind()
        seconds = exchange.ended_seconds or 0.0
        kind.seconds[bisect_left(SECONDS, seconds)] += 1
        kind.seconds_sum += seconds
        if (first := exchange.first_byte_seconds) is not None:
            kind.first_byte[bisect_left(SECONDS, first)] += 1
            kind.first_byte_sum += first
        kind.bytes_up += exchange.bytes_up
        kind.bytes_down += exchange.bytes_down
        if cost := exchange.cost_microusd:
            plan = exchange.plan if exchange.plan in self.costs else OTHER_PLAN
            into = self.costs if cost > 0 else self.lowered
            into[plan] = into.get(plan, 0) + abs(cost)

    def collect(self) -> Iterable[Metric]:
        """Return everything as metrics."""
        kinds = self.kinds
        outcomes: dict[Labels, float] = {(k, what, end.value): count for (k, what, end), count in self.outcomes.items()}
        yield _counter("fal_proxy_exchanges_total", outcomes)
        yield _histogram("fal_proxy_exchange_seconds", {k: (v.seconds, v.seconds_sum) for k, v in kinds.items()})
        first = {k: (v.first_byte, v.first_byte_sum) for k, v in kinds.items()}
        yield _histogram("fal_proxy_first_byte_seconds", first)
        yield _counter("fal_proxy_bytes_up_total", {(k,): v.bytes_up for k, v in kinds.items()})
        yield _counter("fal_proxy_bytes_down_total", {(k,): v.bytes_down for k, v in kinds.items()})
        yield _counter("fal_proxy_cost_microusd_total", {(plan,): cost for plan, cost in self.costs.items()})
        lowered: dict[Labels, float] = {(plan,): cost for plan, cost in self.lowered.items()}
        yield _counter("fal_proxy_cost_lowered_microusd_total", lowered)


class Metrics:
    """Counts exchanges as they end; what is in progress is counted when somebody looks."""

    def __init__(
        self,
        plans: Collection[str],
        upstream: Upstream,
        in_progress: Collection[Exchange],
        keys: Keys | None = None,
        catch_up: Callable[[], None] = lambda: None,
    ) -> None:
        """Take what lets everything be counted that has ended."""
        self._catch_up = catch_up
        self._upstream = upstream
        self._keys = keys
        self._in_progress = in_progress
        self._registry = CollectorRegistry(auto_describe=False)
        self._exchanges = _Exchanges()
        self._exchanges.know_plans(plans)
        self._registry.register(self._exchanges)
        self.count = self._exchanges.count  # an exchange that has ended
        self._in_flight = self._gauge("fal_proxy_in_flight")
        self._idle = self._gauge("fal_proxy_upstream_idle_connections")
        self._calls = self._gauge("fal_proxy_upstream_open_calls")
        self._usable = self._gauge("fal_proxy_usable_keys")
        self._resting = self._gauge("fal_proxy_resting_keys")
        self._refused = self._counter("fal_proxy_key_refusals_total")
        self._file_faults = self._counter("fal_proxy_key_file_faults_total")
        self._told = (0, 0)  # of the two above, as they stood at the last scrape
        self._cuts = self._counter("fal_proxy_key_guard_cuts_total")
        self._feed: FetchedPrices | None = None
        self._prices = self._gauge("fal_proxy_fetched_prices")
        self._prices_age = self._gauge("fal_proxy_fetched_prices_age_seconds")
        self._lookups = self._counter("fal_proxy_price_lookups_total")
        self._lookup_failures = self._counter("fal_proxy_price_lookup_failures_total")
        self._asked = (0, 0)  # of these two, as they stood at the last scrape
        self._webhooks = self._counter("fal_proxy_webhooks_total")
        self._deliveries = self._counter("fal_proxy_deliveries_total")
        self._kept = [self._gauge(f"fal_proxy_{name}") for name in ("events", "waiting_deliveries", "dead_letters")]
        self._reloads = self._counter("fal_proxy_reloads_total")
        self._settings = [
            self._gauge(f"fal_proxy_settings_{name}") for name in ("current", "timestamp_seconds", "waiting")
        ]
        self._settings[0].set(1)
        self._settings[1].set(time.time())

    def know_plans(self, plans: Collection[str]) -> None:
        """Count by these plans too; a plan that is no longer there keeps what was counted."""
        self._exchanges.know_plans(plans)

    def watch_prices(self, feed: FetchedPrices | None) -> None:
        """Look at this feed from now on; what another one counted stays counted."""
        if feed is not self._feed:
            self._look_at_prices()
            self._feed, self._asked = feed, (0, 0)
            self._prices.set(0)
            self._prices_age.set(0)

    def reread(self, outcome: Reload, waiting: int = 0) -> None:
        """Count settings that were read anew; `waiting` of them wait for a restart."""
        current, timestamp, waits = self._settings
        self._reloads.labels(outcome.value).inc()
        current.set(outcome is not Reload.REFUSED)
        if outcome is not Reload.REFUSED:
            timestamp.set(time.time())
            waits.set(waiting)

    def cut_for_key(self) -> None:
        """Count an answer that held one of our keys."""
        self._cuts.inc()

    def received(self, receipt: Receipt) -> None:
        """Count a webhook."""
        self._webhooks.labels(receipt.value).inc()

    def attempted(self, attempt: Attempt) -> None:
        """Count an attempt to deliver an event."""
        self._deliveries.labels(attempt.value).inc()

    def kept(self, *counts: int) -> None:
        """Take how many events, waiting deliveries and dead letters there are."""
        for gauge, count in zip(self._kept, counts, strict=True):
            gauge.set(count)

    def in_flight(self) -> dict[str, int]:
        """Return how many exchanges of each kind are in progress."""
        tally = Tally(exchange.kind_shown for exchange in self._in_progress)
        return {kind: tally[kind] for kind in KINDS}

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format, version 0.0.4."""
        self._catch_up()
        for kind, count in self.in_flight().items():
            self._in_flight.labels(kind).set(count)
        self._idle.set(self._upstream.idle)
        self._calls.set(self._upstream.open_calls)
        if self._keys is not None:
            self._usable.set(self._keys.usable())
            self._resting.set(self._keys.resting())
            told, self._told = self._told, (self._keys.refused, self._keys.file_faults)
            self._refused.inc(self._told[0] - told[0])
            self._file_faults.inc(self._told[1] - told[1])
        self._look_at_prices()
        return generate_latest(_WithoutCreated(self._registry))

    def _look_at_prices(self) -> None:
        if self._feed is not None:
            self._prices.set(self._feed.known)
            self._prices_age.set(self._feed.age_seconds())
            asked, self._asked = self._asked, (self._feed.lookups, self._feed.failures)
            self._lookups.inc(self._asked[0] - asked[0])
            self._lookup_failures.inc(self._asked[1] - asked[1])

    def _counter(self, name: str) -> Counter:
        row = METRICS[name]
        return Counter(row.name, row.meaning, row.labels, registry=self._registry)

    def _gauge(self, name: str) -> Gauge:
        row = METRICS[name]
        return Gauge(row.name, row.meaning, row.labels, registry=self._registry)


def _counter(name: str, values: Mapping[Labels, float]) -> Metric:
    row = METRICS[name]
    family = CounterMetricFamily(row.name, row.meaning, labels=row.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _histogram(name: str, values: Mapping[str, tuple[list[int], float]]) -> Metric:
    row = METRICS[name]
    family = HistogramMetricFamily(row.name, row.meaning, labels=row.labels)
    for label, (counts, total) in values.items():
        family.add_metric([label], list(zip(_EDGES, accumulate(counts), strict=True)), total)
    return family


class _WithoutCreated(Collector):
    """Leave out when each series was created: the library's switch for that is global, and it doubles every answer."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
