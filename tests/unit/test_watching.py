"""The dashboard and the alert rules ask for metrics that exist, with labels and values that they have; all are watched."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fal_proxy.telemetry.catalogue import METRICS, label_values
from support.documents import README
from support.promql import Asked, grouped, metric_of, selected

DEPLOY = README.parent / "deploy"
DASHBOARD = DEPLOY / "grafana-dashboard.json"
ALERTS = DEPLOY / "alerts.yaml"
NOT_IN_A_PANEL: set[str] = set()  # each with its reason; today every metric is in one
ANY_PLAN = "default"


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return found


def shown() -> Iterator[tuple[str, str]]:
    """Yield each panel's expressions with their legends."""
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]


def rules() -> dict[str, str]:
    """Return the expression of each alert."""
    [group] = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    found = {str(rule["alert"]): str(rule["expr"]) for rule in group["rules"]}
    assert len(found) == len(group["rules"])
    return found


EXPRESSIONS = [*rules().values(), *(expression for expression, _ in shown())]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_asks_for_what_there_is(expression: str) -> None:
    values = label_values([ANY_PLAN])
    series = list(selected(expression))
    assert series
    known: set[str] = {"le"} if "_bucket" in expression else set()
    for name, matchers in series:
        row = metric_of(name)
        assert row is not None, name
        known |= set(row.labels)
        for label, wanted in matchers:
            assert label in row.labels
            assert set(wanted) <= values[label], f"{label} never has such a value"
    assert grouped(expression) <= known


def test_a_legend_names_labels_that_are_left() -> None:
    for expression, legend in shown():
        assert set(re.findall(r"\{\{(\w+)\}\}", legend)) == grouped(expression) - {"le"}, legend


def test_every_metric_is_in_a_panel() -> None:
    names = {name for expression, _ in shown() for name, _ in selected(expression)}
    seen = {row.name for name in names if (row := metric_of(name)) is not None}
    assert seen | NOT_IN_A_PANEL == set(METRICS)
    assert not seen & NOT_IN_A_PANEL


def test_counters_are_looked_at_as_rates_and_gauges_as_they_are() -> None:
    for expression in EXPRESSIONS:
        for name, _ in selected(expression):
            row = metric_of(name)
            assert row is not None
            as_rate = re.search(rf"(?:rate|increase)\({name}\b[^\[\]]*\[", expression)
            against_before = re.search(rf"{name}\{{[^}}]*\}} offset", expression)
            assert bool(as_rate or against_before) is (row.type != "gauge"), expression


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels()) == len({panel["title"] for panel in panels()})


NONSENSE = [
    ("rate(fal_proxy_requests_total[5m])", [("fal_proxy_requests_total", [])], "a metric that was renamed"),
    ('sum(fal_proxy_in_flight{kind="run"})', [("fal_proxy_in_flight", [Asked("kind", ("run",))])], "a matcher"),
    ('a{b=~"x|y"} offset 10m or vector(0) > 1e6', [("a", [Asked("b", ("x", "y"))])], "several values, numbers, words"),
    ("sum by (kind, le) (rate(a_bucket[$__rate_interval])) / 2", [("a_bucket", [])], "grouping and Grafana's variable"),
]


@pytest.mark.parametrize(("expression", "found", "why"), NONSENSE, ids=[row[-1] for row in NONSENSE])
def test_expressions_are_understood(expression: str, found: list[tuple[str, list[Asked]]], why: str) -> None:
    assert list(selected(expression)) == found, why


def test_what_is_not_ours_is_not_taken_for_ours() -> None:
    assert [metric_of(name) for name in ("fal_proxy_requests_total", "fal_proxy_exchange_seconds", "up")] == [None] * 3
    assert metric_of("fal_proxy_exchange_seconds_count") is METRICS["fal_proxy_exchange_seconds"]
    with pytest.raises(ValueError, match="not understood"):
        list(selected("a{b='c'}"))


# What Prometheus would have scraped, and when which alert is on: the first event of a counter that did not exist, too.
SCRAPED = {
    'fal_proxy_exchanges_total{kind="run",decision="internal_error",ending="fault"}': "_x5 1x30",
    "fal_proxy_usable_keys": "1x10 0x30",
}
ON = {"FalProxyFault": (4, [7], 25), "FalProxyNoUsableKey": (10, [13, 30], None)}


def test_prometheus_itself_accepts_the_rules_and_the_first_event_fires(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool not found (Debian: prometheus)")
    _promtool("check", "rules", str(ALERTS))
    [group] = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    said = {
        rule["alert"]: {"exp_labels": rule["labels"], "exp_annotations": rule["annotations"]} for rule in group["rules"]
    }
    asked = [
        {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": [said[alert]] if minute in on else []}
        for alert, (before, on, after) in ON.items()
        for minute in [before, *on, *([] if after is None else [after])]
    ]
    series = [{"series": name, "values": values} for name, values in SCRAPED.items()]
    tests = [{"interval": "1m", "input_series": series, "alert_rule_test": asked}]
    case = tmp_path / "case.json"  # which is YAML
    case.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    _promtool("test", "rules", str(case))
    for expression, _ in shown():
        _promtool("check", "rules", str(_rule(tmp_path, expression.replace("$__rate_interval", "5m"))))


def _rule(folder: Path, expression: str) -> Path:
    path = folder / "rule.json"  # which is YAML
    path.write_text(json.dumps({"groups": [{"name": "x", "rules": [{"record": "x", "expr": expression}]}]}))
    return path


def _promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
