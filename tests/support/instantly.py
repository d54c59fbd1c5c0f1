"""Coroutines that answer from memory, called from plain code."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def instantly(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns that never waits; fail if it does."""
    try:
        coroutine.send(None)
    except StopIteration as finished:
        result: T = finished.value
        return result
    coroutine.close()
    raise AssertionError("this was not to wait for anything")
