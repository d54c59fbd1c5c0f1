"""Budget periods in UTC: which one a moment lies in, and when it ends. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from fal_proxy.stores import Period


def label(period: Period, now: float) -> str:
    """Return the name of the running period, e.g. `2026-11` or `2026-W47`."""
    moment = datetime.fromtimestamp(now, UTC)
    if period == "total":
        return "total"
    if period == "week":
        year, week, _ = moment.isocalendar()
        return f"{year}-W{week:02d}"
    return moment.strftime({"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m"}[period])


def resets_at(period: Period, now: float) -> float | None:
    """Return when the running period ends, None for `total`."""
    moment = datetime.fromtimestamp(now, UTC).replace(minute=0, second=0, microsecond=0)
    if period == "total":
        return None
    if period == "hour":
        return (moment + timedelta(hours=1)).timestamp()
    midnight = moment.replace(hour=0)
    if period == "day":
        return (midnight + timedelta(days=1)).timestamp()
    if period == "week":
        return (midnight + timedelta(days=7 - midnight.weekday())).timestamp()
    return (midnight.replace(day=1) + timedelta(days=32)).replace(day=1).timestamp()


class Calendar:
    """The running periods, looked up once per hour instead of once per request."""

    def __init__(self) -> None:
        self._until = 0.0
        self._current: dict[Period, tuple[str, float | None]] = {}

    def at(self, period: Period, now: float) -> tuple[str, float | None]:
        """Return the running period's label and end; `now` never runs backwards."""
        if now >= self._until:
            self._current.clear()
            self._until = (now // 3600 + 1) * 3600
        found = self._current.get(period)
        if found is None:
            found = self._current[period] = (label(period, now), resets_at(period, now))
        return found
