"""The rollup as people and spreadsheets read it. Knows no store and no route."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from fal_proxy.telemetry.rollup import DIMENSIONS, OTHER, Names, Span, Tally, total

SHOWN = 20  # names per dimension; an export has all of them
CSV = b"text/csv; charset=utf-8"
COLUMNS = ("hour", "by", "name", "requests", "paid", "refused", "spend_usd")
# What a spreadsheet would take for a formula: its first letter, or a control that hides it.
_FORMULA = re.compile(r"[=+\-@\t\r\n|%\uff1d\uff0b\uff0d\uff20]")


def summary(spans: Sequence[Span]) -> dict[str, Any]:
    """Return the spans as points, their sum, and who and what it is made of."""
    whole = total(spans)
    return {
        "points": [{"start": span.start, **msgspec.structs.asdict(span.total)} for span in spans],
        "total": msgspec.structs.asdict(whole.total),
        **{dimension: _rows(getattr(whole, dimension)) for dimension in DIMENSIONS},
        "refusals": dict(sorted(whole.refusals.items(), key=lambda item: -item[1])),
    }


def tally_of(span: Span, caller: str) -> dict[str, Any]:
    """Return one caller's point of a span."""
    return {"start": span.start, **msgspec.structs.asdict(span.callers.get(caller) or Tally())}


def as_csv(spans: Iterable[Span]) -> bytes:
    """Return every hour that had something, with all names that are known. No cell of text can begin a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for span in spans:
        if not span.total.requests and not span.total.microusd:
            continue
        hour = datetime.fromtimestamp(span.start, UTC).strftime("%Y-%m-%dT%H:%MZ")
        writer.writerow([hour, "total", "", *_cells(span.total)])
        for dimension in DIMENSIONS:
            for name, tally in _ranked(getattr(span, dimension)):
                writer.writerow([hour, dimension.removesuffix("s"), _plain(name), *_cells(tally)])
    return text.getvalue().encode("utf-8")


def _rows(names: Names) -> list[dict[str, Any]]:
    """Return the first SHOWN names, and the others as one."""
    ranked = _ranked(names)
    rows = ranked[:SHOWN]
    if rest := ranked[SHOWN:]:
        others = Tally()
        for _, tally in [*rest, *[row for row in rows if row[0] == OTHER]]:
            others.add(tally)
        rows = [*[row for row in rows if row[0] != OTHER], (OTHER, others)]
    return [{"name": _printable(name), **msgspec.structs.asdict(tally)} for name, tally in rows]


def _ranked(names: Names) -> list[tuple[str, Tally]]:
    return sorted(names.items(), key=lambda item: (item[0] == OTHER, -item[1].microusd, -item[1].requests, item[0]))


def _cells(tally: Tally) -> list[object]:
    sign, (whole, rest) = "-" if tally.microusd < 0 else "", divmod(abs(tally.microusd), 1_000_000)
    return [tally.requests, tally.paid, tally.refused, f"{sign}{whole}.{rest:06d}"]


def _plain(name: str) -> str:
    shown = _printable(name)
    return "'" + shown if _FORMULA.match(name.lstrip()) else shown


def _printable(name: str) -> str:
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)
