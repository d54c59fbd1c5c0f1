"""Prometheus metrics of one app, in a registry of its own. `METRICS` is the one list of them.

Label values come from closed sets of ours (kinds, error types, endings, the settings' plans): no request can add one,
so no caller can grow the registry.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Collection, Iterable
from typing import Literal, NamedTuple, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.registry import Collector

from fal_proxy.errors import ERROR_TYPES
from fal_proxy.exchange import ADMITTED, NO_KIND, PREFLIGHT, SETTLED, Ending, Exchange, Kind

__all__ = ["CONTENT_TYPE", "METRICS", "Metrics", "Upstream", "label_values"]

KINDS = (*(kind.value for kind in Kind), PREFLIGHT, SETTLED, NO_KIND)
# A status answers in milliseconds, a video in half an hour.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class Row(NamedTuple):
    """One metric: name, type, labels, meaning."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str


METRICS = {
    row.name: row
    for row in (
        Row(
            "fal_proxy_exchanges_total",
            "counter",
            ("kind", "decision", "ending"),
            "requests below the mount, ended; and jobs that the settler settled",
        ),
        Row("fal_proxy_exchange_seconds", "histogram", ("kind",), "how long they took, to the last byte"),
        Row("fal_proxy_first_byte_seconds", "histogram", ("kind",), "until fal's answer began"),
        Row("fal_proxy_bytes_up_total", "counter", ("kind",), "bytes of request bodies sent to fal"),
        Row("fal_proxy_bytes_down_total", "counter", ("kind",), "bytes of answers' bodies sent to callers"),
        Row(
            "fal_proxy_cost_microusd_total",
            "counter",
            ("plan",),
            "what callers were charged, in millionths of a dollar",
        ),
        Row(
            "fal_proxy_cost_lowered_microusd_total",
            "counter",
            ("plan",),
            "by how much earlier charges were lowered, when fal billed less; the books are the difference",
        ),
        Row("fal_proxy_in_flight", "gauge", ("kind",), "requests in progress"),
        Row("fal_proxy_upstream_idle_connections", "gauge", (), "open connections to fal that wait for a request"),
        Row("fal_proxy_upstream_open_calls", "gauge", (), "requests to fal in progress"),
        Row("fal_proxy_usable_keys", "gauge", (), "fal keys that take new work"),
        Row("fal_proxy_resting_keys", "gauge", (), "fal keys set aside, because fal calls them invalid or locked"),
        Row(
            "fal_proxy_key_refusals_total", "counter", (), "answers of fal that call one of our keys invalid or locked"
        ),
        Row("fal_proxy_key_file_faults_total", "counter", (), "changes of FAL_KEY_FILE that could not be read"),
        Row("fal_proxy_key_guard_cuts_total", "counter", (), "answers cut because they held a fal key of ours"),
        Row("fal_proxy_fetched_prices", "gauge", (), "prices that fal itself named (`price_feed`)"),
        Row("fal_proxy_fetched_prices_age_seconds", "gauge", (), "how long ago it last named one; 0 before the first"),
        Row("fal_proxy_price_lookups_total", "counter", (), "questions to fal about prices"),
        Row("fal_proxy_price_lookup_failures_total", "counter", (), "of these, without a usable answer"),
    )
}


def label_values(plans: Collection[str]) -> dict[str, frozenset[str]]:
    """Return every value that a label can ever have."""
    return {
        "kind": frozenset(KINDS),
        "decision": frozenset([ADMITTED, *ERROR_TYPES]),
        "ending": frozenset(ending.value for ending in Ending),
        "plan": frozenset(plans),
    }


class Upstream(Protocol):
    """What is asked of the engine at each scrape."""

    @property
    def idle(self) -> int:
        """Return the number of idle connections."""

    @property
    def open_calls(self) -> int:
        """Return the number of calls in progress."""


class Keys(Protocol):
    """What is asked of the pool of fal keys at each scrape."""

    @property
    def refused(self) -> int:
        """Return how many answers called a key invalid or locked."""

    @property
    def file_faults(self) -> int:
        """Return how many changes of the file could not be read."""

    def usable(self) -> int:
        """Return the number of keys that take new work."""

    def resting(self) -> int:
        """Return the number of keys that are set aside."""


class FetchedPrices(Protocol):
    """What is asked of the price feed at each scrape."""

    @property
    def known(self) -> int:
        """Return how many prices are fetched."""

    @property
    def lookups(self) -> int:
        """Return how many questions were asked."""

    @property
    def failures(self) -> int:
        """Return how many of them had no usable answer."""

    def age_seconds(self) -> float:
        """Return how long ago fal last named a price."""


class _OfKind(NamedTuple):
    """The series of one kind, looked up once."""

    seconds: Histogram
    first_byte: Histogram
    bytes_up: Counter
    bytes_down: Counter


class Metrics:
    """Counts exchanges as they end; what is in progress is counted when somebody looks."""

    def __init__(
        self, plans: Collection[str], upstream: Upstream, in_progress: Collection[Exchange], keys: Keys | None = None
    ) -> None:
        self._upstream = upstream
        self._keys = keys
        self._in_progress = in_progress
        self._registry = CollectorRegistry(auto_describe=False)
        self._plans = frozenset(plans)
        self._exchanges = self._counter("fal_proxy_exchanges_total")
        self._seconds = self._histogram("fal_proxy_exchange_seconds")
        self._first_byte = self._histogram("fal_proxy_first_byte_seconds")
        self._bytes_up = self._counter("fal_proxy_bytes_up_total")
        self._bytes_down = self._counter("fal_proxy_bytes_down_total")
        self._cost = self._counter("fal_proxy_cost_microusd_total")
        self._lowered = self._counter("fal_proxy_cost_lowered_microusd_total")
        self._in_flight = self._gauge("fal_proxy_in_flight")
        self._idle = self._gauge("fal_proxy_upstream_idle_connections")
        self._calls = self._gauge("fal_proxy_upstream_open_calls")
        self._usable = self._gauge("fal_proxy_usable_keys")
        self._resting = self._gauge("fal_proxy_resting_keys")
        self._refused = self._counter("fal_proxy_key_refusals_total")
        self._file_faults = self._counter("fal_proxy_key_file_faults_total")
        self._told = (0, 0)  # of the two above, as they stood at the last scrape
        self._cuts = self._counter("fal_proxy_key_guard_cuts_total")
        self.prices: FetchedPrices | None = None
        self._prices = self._gauge("fal_proxy_fetched_prices")
        self._prices_age = self._gauge("fal_proxy_fetched_prices_age_seconds")
        self._lookups = self._counter("fal_proxy_price_lookups_total")
        self._lookup_failures = self._counter("fal_proxy_price_lookup_failures_total")
        self._asked = (0, 0)  # of these two, as they stood at the last scrape
        self._outcomes: dict[tuple[str, str, Ending], Counter] = {}
        self._kinds: dict[str, _OfKind] = {}
        for plan in plans:
            self._cost.labels(plan)
            self._lowered.labels(plan)

    def count(self, exchange: Exchange) -> None:
        """Count an exchange that has ended."""
        kind = exchange.kind_shown
        outcome = (kind, exchange.decision, exchange.ending)
        if outcome not in self._outcomes:
            self._outcomes[outcome] = self._exchanges.labels(kind, exchange.decision, exchange.ending.value)
        self._outcomes[outcome].inc()
        series = self._kinds.get(kind) or self._of_kind(kind)
        series.seconds.observe(exchange.ended_seconds or 0.0)
        if exchange.first_byte_seconds is not None:
            series.first_byte.observe(exchange.first_byte_seconds)
        series.bytes_up.inc(exchange.bytes_up)
        series.bytes_down.inc(exchange.bytes_down)
        if exchange.cost_microusd is not None and exchange.plan in self._plans:
            counter = self._cost if exchange.cost_microusd >= 0 else self._lowered
            counter.labels(exchange.plan).inc(abs(exchange.cost_microusd))

    def cut_for_key(self) -> None:
        """Count an answer that held one of our keys."""
        self._cuts.inc()

    def in_flight(self) -> dict[str, int]:
        """Return how many exchanges of each kind are in progress."""
        tally = Tally(exchange.kind_shown for exchange in self._in_progress)
        return {kind: tally[kind] for kind in KINDS}

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format, version 0.0.4."""
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
        if self.prices is not None:
            self._prices.set(self.prices.known)
            self._prices_age.set(self.prices.age_seconds())
            asked, self._asked = self._asked, (self.prices.lookups, self.prices.failures)
            self._lookups.inc(self._asked[0] - asked[0])
            self._lookup_failures.inc(self._asked[1] - asked[1])
        return generate_latest(_WithoutCreated(self._registry))

    def _of_kind(self, kind: str) -> _OfKind:
        series = self._kinds[kind] = _OfKind(
            self._seconds.labels(kind),
            self._first_byte.labels(kind),
            self._bytes_up.labels(kind),
            self._bytes_down.labels(kind),
        )
        return series

    def _counter(self, name: str) -> Counter:
        row = METRICS[name]
        return Counter(row.name, row.meaning, row.labels, registry=self._registry)

    def _gauge(self, name: str) -> Gauge:
        row = METRICS[name]
        return Gauge(row.name, row.meaning, row.labels, registry=self._registry)

    def _histogram(self, name: str) -> Histogram:
        row = METRICS[name]
        return Histogram(row.name, row.meaning, row.labels, registry=self._registry, buckets=SECONDS)


class _WithoutCreated(Collector):
    """Leave out when each series was created: the library's switch for that is global, and it doubles every answer."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
