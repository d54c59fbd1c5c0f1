"""One Chromium for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from browser.chromium import Browser, installed, launched
from support.node import NodeMissing


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Return a running Chromium, or skip."""
    try:
        node, chromium = installed()
    except NodeMissing as missing:
        pytest.skip(str(missing))
    with launched(node, chromium, tmp_path_factory.mktemp("chromium")) as running:
        yield running
