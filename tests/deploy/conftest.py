"""One deployment per front, and the official client in Node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from support.node import Node, NodeMissing, install
from support.replicas import Deployment, deployed


@pytest.fixture(scope="session")
def node() -> Node:
    """Return Node with the official client, or skip."""
    try:
        return install(Path(__file__).resolve().parents[1] / "client")
    except NodeMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session", params=["nginx", "caddy"])
def front_name(request: pytest.FixtureRequest) -> str:
    """Say what stands in front."""
    return str(request.param)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def site(front_name: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    """Run one deployment in which nothing is killed, for all tests that leave it whole."""
    async with deployed(front_name, tmp_path_factory.mktemp("site")) as running:
        yield running
