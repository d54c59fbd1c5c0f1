"""The grammar of rates, which is that of the `limits` library: `20/minute; 200/day`."""

from __future__ import annotations

from typing import NamedTuple

from limits import parse_many


class RatePerWindow(NamedTuple):
    """At most `limit` in any interval of `window_seconds`; `text` is the operator's own spelling."""

    limit: int
    window_seconds: int
    text: str


def parse_rates(text: str) -> tuple[RatePerWindow, ...]:
    """Return the rates, none for an empty text. Raises ValueError with one sentence for a malformed one."""
    if not text.strip():
        return ()
    try:
        items = parse_many(text)
    except ValueError:
        raise ValueError(f"{text!r} is no list of rates such as 20/minute; 200/day") from None
    rates = [RatePerWindow(item.amount, item.get_expiry(), f"{item.amount}/{_window(item)}") for item in items]
    if any(rate.limit < 1 for rate in rates):
        raise ValueError(f"{text!r}: a rate admits at least 1")
    return tuple(rates)


def _window(item: object) -> str:
    multiples: int = getattr(item, "multiples", 1)
    name = type(item).__name__.removeprefix("RateLimitItemPer").lower()
    return name if multiples == 1 else f"{multiples} {name}s"
