"""How long the machine has kept this process waiting: what a busy machine costs is no fault of the code under test."""

from __future__ import annotations

from pathlib import Path

_SCHEDULED = Path("/proc/self/schedstat")


def kept_waiting_seconds() -> float:
    """Return how long the main thread has been ready to run without a processor, so far; 0 where nobody counts it."""
    return int(_SCHEDULED.read_text().split()[1]) / 1e9 if _SCHEDULED.exists() else 0.0
