"""Large transfers cost the proxy buffers, not bodies. The 1 GiB figures are in tests/bench/RESULTS.md."""

from __future__ import annotations

import pytest

from support.memory import measure


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_large_transfer_grows_memory_by_at_most_16_mib(direction: str) -> None:
    growth = await measure(direction, 128)
    assert growth.grown_kib <= 16 * 1024
