"""What an operator does to the embedded store's state: names are marked, and counters begin anew."""

from __future__ import annotations

from collections.abc import Iterable

from fal_proxy.stores import Rate
from fal_proxy.stores.holdings import Name
from fal_proxy.stores.state import State


def mark(state: State, name: str, since: float) -> None:
    """Mark a name; what is marked already stays so since then."""
    if name not in state.marks:
        state.marks[name] = since
        state._put("mark", name, since)


def unmark(state: State, name: str) -> None:
    """Take a mark away."""
    if state.marks.pop(name, None) is not None:
        state._put("no mark", name)


def forget(state: State, rates: Iterable[Rate], purses: Iterable[Name]) -> None:
    """Drop the hits of rates, and what purses have spent."""
    for rate in rates:
        drop_window(state, rate.key, rate.window_seconds)
        state._put("no window", rate.key, rate.window_seconds)
    for name in purses:
        if (purse := state.purses.get(name)) is not None:
            purse.spent = 0
            state._put_purse(name, purse)


def drop_window(state: State, key: str, seconds: int) -> None:
    """Forget a key's hits."""
    if (windows := state.windows.get(seconds)) is not None:
        windows.pop(key, None)
