"""Every scenario runs twice: as an anonymous caller without cookies, and with a user key."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from client.stage import SetStage, Stage, judge, staged
from fal_proxy.admission import settler
from fal_proxy.settings import Settings
from support.node import Node, NodeMissing, install
from support.proxied import open_settings as proxied_settings


@pytest.fixture(scope="session")
def node() -> Node:
    """Return Node with the official client, or skip."""
    try:
        return install(Path(__file__).parent)
    except NodeMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session", autouse=True)
def quiet_settler() -> Iterator[None]:
    """Keep the proxy from asking about jobs by itself: the journal is to hold what the client made it say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settler, "TICK_SECONDS", 3600.0)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_stage(node: Node, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Run one stage where everything works for a whole module: starting and stopping takes longer than most tests."""
    async with staged(node, tmp_path_factory.mktemp("proxy"), anonymous=True) as ready:
        yield ready


@pytest.fixture(params=["anonymous", "key"])
def caller(request: pytest.FixtureRequest) -> str:
    """Say who calls."""
    return str(request.param)


@pytest.fixture
def stage(shared_stage: Stage, caller: str) -> Iterator[Stage]:
    """Return the module's stage with an empty journal, and judge the journal afterwards."""
    shared_stage.emulated.app.journal.clear()
    yield shared_stage.for_caller(anonymous=caller == "anonymous")
    judge(shared_stage.emulated.app.journal, shared_stage.proxy.user_key)


@pytest.fixture
def set_stage(node: Node, caller: str, tmp_path: Path) -> SetStage:
    """Return a function that starts a stage of the test's choice."""
    return functools.partial(staged, node, tmp_path, anonymous=caller == "anonymous")


@pytest.fixture
def open_settings(tmp_path: Path) -> Settings:
    """Return the settings of an ordinary stage, to start from."""
    return proxied_settings(tmp_path)
