"""What is measured: `METRICS`, the one list of metrics, and every value that a label of theirs can have.

Label values come from closed sets of ours (kinds, error types, endings, the settings' plans): no request can add one,
so no caller can grow the registry.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

from fal_proxy.errors import ERROR_TYPES
from fal_proxy.exchange import ADMITTED, NO_KIND, PREFLIGHT, SETTLED, Attempt, Ending, Kind, Receipt, Reload

OTHER_PLAN = "(other)"  # what is settled of a plan that the settings no longer name
KINDS = (*(kind.value for kind in Kind), PREFLIGHT, SETTLED, NO_KIND)


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
            "requests below the mount, ended; and charges without one (`settled`)",
        ),
        Row("fal_proxy_exchange_seconds", "histogram", ("kind",), "how long they took, to the last byte"),
        Row("fal_proxy_first_byte_seconds", "histogram", ("kind",), "until fal's answer began"),
        Row("fal_proxy_bytes_up_total", "counter", ("kind",), "bytes of request bodies sent to fal"),
        Row("fal_proxy_bytes_down_total", "counter", ("kind",), "bytes of answers' bodies sent to callers"),
        Row(
            "fal_proxy_cost_microusd_total",
            "counter",
            ("plan",),
            "by how much charges were raised, in millionths of a dollar; counted when they are settled",
        ),
        Row(
            "fal_proxy_cost_lowered_microusd_total",
            "counter",
            ("plan",),
            "by how much charges were lowered, when fal billed less than was charged; the books are the difference",
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
        Row("fal_proxy_webhooks_total", "counter", ("receipt",), "webhooks received, and what became of them"),
        Row(
            "fal_proxy_deliveries_total", "counter", ("attempt",), "attempts to deliver events to the app's own server"
        ),
        Row("fal_proxy_events", "gauge", (), "events of webhooks that are kept, as of the last ten seconds"),
        Row("fal_proxy_waiting_deliveries", "gauge", (), "of these, waiting to be delivered to the app's own server"),
        Row("fal_proxy_dead_letters", "gauge", (), "of these, given up: see `/webhooks/dead-letters`"),
        Row("fal_proxy_reloads_total", "counter", ("outcome",), "settings read anew, and what became of them"),
        Row("fal_proxy_settings_current", "gauge", (), "1; 0 while newer settings are refused and older ones in force"),
        Row(
            "fal_proxy_settings_timestamp_seconds",
            "gauge",
            (),
            "when settings were last read and found good, Unix time",
        ),
        Row("fal_proxy_settings_waiting", "gauge", (), "settings that changed and wait for a restart"),
    )
}


def label_values(plans: Collection[str]) -> dict[str, frozenset[str]]:
    """Return every value that a label can ever have."""
    return {
        "kind": frozenset(KINDS),
        "decision": frozenset([ADMITTED, *ERROR_TYPES]),
        "ending": frozenset(ending.value for ending in Ending),
        "plan": frozenset([*plans, OTHER_PLAN]),
        "receipt": frozenset(receipt.value for receipt in Receipt),
        "attempt": frozenset(attempt.value for attempt in Attempt),
        "outcome": frozenset(outcome.value for outcome in Reload),
    }
