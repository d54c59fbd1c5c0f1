"""What an expression of Prometheus' language asks for: its metrics, its labels and their values. No evaluation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from fal_proxy.telemetry.catalogue import METRICS, Row

_SUFFIXES = ("_bucket", "_sum", "_count")
_WORDS = frozenset(
    ["by", "without", "offset", "or", "and", "unless", "on", "ignoring", "bool", "group_left", "group_right"]
)
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{([^}]*)\})?(\s*\()?")
_MATCHER = re.compile(r'\s*([a-z_]+)\s*(=~|!~|!=|=)\s*"([^"]*)"\s*(?:,|$)')


class Asked(NamedTuple):
    """One label that an expression names; `values` are those that it is compared with."""

    label: str
    values: tuple[str, ...]


def metric_of(name: str) -> Row | None:
    """Return the metric that a series of this name belongs to; None: it is none of ours."""
    if name in METRICS:
        return METRICS[name] if METRICS[name].type != "histogram" else None
    base = next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)
    row = METRICS.get(base)
    return row if row is not None and row.type == "histogram" else None


def selected(expression: str) -> Iterator[tuple[str, list[Asked]]]:
    """Yield the name of each series that is asked for, with its matchers. Raises ValueError for what is not understood."""
    bare = re.sub(r"\[[^\]]*\]", " ", _GROUPING.sub(" ", expression))
    bare = re.sub(r"\b\d+(?:\.\d+)?(?:e\d+|[smhdwy])?\b", " ", bare)
    for name, matchers, call in _SELECTOR.findall(bare):
        if call or name in _WORDS:
            continue
        asked = _MATCHER.findall(matchers)
        if _MATCHER.sub("", matchers).strip():
            raise ValueError(f"{matchers!r} is not understood")
        yield name, [Asked(label, tuple(value.split("|")) if "~" in sign else (value,)) for label, sign, value in asked]


def grouped(expression: str) -> set[str]:
    """Return the labels that an expression groups by."""
    return {label.strip() for inside in _GROUPING.findall(expression) for label in inside.split(",") if label.strip()}
