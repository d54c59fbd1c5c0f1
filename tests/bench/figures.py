"""Figures as they come in, and what becomes of them: one table with medians, ranges and ratios, and one of goals."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.load import Measured
from bench.subjects import BARE, EXPRESS, HONO, NGINX, OURS, Subject

RATE, COST, SHARE, ADDED = "requests/s", "µs of processor each", "% of its core", "µs, p50"
SPEED, GROWTH, IDLE = "MB/s", "MiB more memory", "bytes per idle connection"
PER_SECOND = "MB per processor second"
MESSAGES, DELAY = "messages/s", "ms from source to caller, p50"
COLUMNS = (NGINX, EXPRESS, HONO, BARE, OURS)
Row = tuple[str, str]  # a case and what was measured of it


@dataclass
class Figures:
    """Every figure of every round, by row and subject."""

    rows: dict[Row, dict[str, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)  # microseconds by stage and load

    def add(self, case: str, what: str, subject: str, value: float) -> None:
        """Take one figure of one round."""
        self.rows.setdefault((case, what), {}).setdefault(subject, []).append(value)

    def requests(self, case: str, subject: Subject, measured: Measured) -> None:
        """Take a round of requests."""
        self.add(case, RATE, subject.name, measured.rate)
        self.add(case, COST, subject.name, measured.cost_seconds * 1e6)
        self.add(case, SHARE, subject.name, measured.busy * 100)

    def speed(self, case: str, subject: Subject, measured: Measured) -> None:
        """Take a round of one large transfer."""
        self.add(case, SPEED, subject.name, measured.rate / 1e6)
        self.add(case, PER_SECOND, subject.name, 1e-6 / measured.cost_seconds)

    def median(self, case: str, what: str, subject: str = OURS) -> float | None:
        """Return a row's median for a subject, None where it was not measured."""
        values = self.rows.get((case, what), {}).get(subject)
        return statistics.median(values) if values else None

    def ratio(self, case: str, what: str, to: str) -> float | None:
        """Return ours to another subject's."""
        ours, other = self.median(case, what), self.median(case, what, to)
        return None if ours is None or not other else ours / other

    def effort(self, case: str, what: str, to: str) -> float | None:
        """Return the same ratio by processor time, which others on the machine hardly change; None without one."""
        if what == SPEED:
            return self.ratio(case, PER_SECOND, to)
        cost = self.ratio(case, COST, to) if what in (RATE, MESSAGES) else None
        return 1 / cost if cost else None

    def table(self) -> list[str]:
        """Return all rows as a table: medians, ranges, and ours to the others'."""
        lines = [
            f"| case | what | {' | '.join(COLUMNS)} | to nginx | to Express | to bare |",
            "|---|---|" + "---|" * (len(COLUMNS) + 3),
        ]
        for (case, what), by_subject in self.rows.items():
            cells = [_cell(by_subject.get(name)) for name in COLUMNS]
            ratios = [_number(self.ratio(case, what, name)) for name in (NGINX, EXPRESS, BARE)]
            lines.append(f"| {case} | {what} | {' | '.join(cells)} | {' | '.join(ratios)} |")
        return lines

    def profile(self) -> list[str]:
        """Return the stages as a table, those that nobody entered left out."""
        loads = sorted({load for by_load in self.stages.values() for load in by_load})
        lines = [f"| stage | {' | '.join(loads)} |", "|---|" + "---|" * len(loads)]
        for stage, by_load in self.stages.items():
            if any(value >= 0.05 for value in by_load.values()):
                lines.append(f"| {stage} | {' | '.join(f'{by_load[load]:.1f}' for load in loads)} |")
        sums = [sum(by_load[load] for by_load in self.stages.values()) for load in loads]
        return [*lines, f"| all | {' | '.join(f'{value:.0f}' for value in sums)} |"] if loads else []


def _cell(values: list[float] | None) -> str:
    if not values:
        return ""
    low, high = _number(min(values)), _number(max(values))
    middle = _number(statistics.median(values))
    return middle if low == high else f"{middle} ({low} to {high})"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


class Goal(NamedTuple):
    """One figure of ours, next to what it shall reach."""

    case: str
    what: str
    to: str | None  # another subject, or None: the figure itself
    least: float | None = None
    most: float | None = None

    def line(self, figures: Figures) -> str | None:
        """Return the goal's row, None where it was not measured."""
        value = (
            figures.median(self.case, self.what) if self.to is None else figures.ratio(self.case, self.what, self.to)
        )
        if value is None:
            return None
        reached = value >= self.least if self.least is not None else value <= (self.most or 0)
        bound = f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"
        unit = f" of {self.to}'s" if self.to else ""
        verdict = "reached" if reached else "**not reached**"
        effort = "" if self.to is None else _number(figures.effort(self.case, self.what, self.to))
        return f"| {self.case}, {self.what} | {bound}{unit} | {_number(value)} | {verdict} | {effort} |"
