"""Settings changed under a proxy that serves, and what its metrics say then."""

from __future__ import annotations

from typing import Any

import msgspec

from fal_proxy.app import App
from fal_proxy.settings import Plan
from support.limited import Limited


async def change(limited: Limited, plan: Plan | None = None, **changes: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Put other settings in force; return what changed, and what waits."""
    app = limited.proxy.app
    if plan is not None:
        changes["plans"] = {"default": plan}
    reloaded = await app.reload(msgspec.structs.replace(app.settings, **changes))
    return reloaded.changed, reloaded.waiting


def metric(app: App, name: str) -> float:
    """Return the value of one series."""
    [line] = [line for line in app.metrics.exposition().decode().splitlines() if line.startswith(name + " ")]
    return float(line.rpartition(" ")[2])
