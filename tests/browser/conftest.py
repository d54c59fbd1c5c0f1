"""One Chromium for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from browser.chromium import Browser, installed, launched
from browser.playing import Played, playing
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


@pytest.fixture(scope="session")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Return a running `dev`; the page's tests share it, each as a guest of its own."""
    with playing(tmp_path_factory.mktemp("dev")) as played:
        yield played


@pytest.fixture
def mended(dev: Played) -> Iterator[Played]:
    """Return `dev` for a test that breaks its fal, and mend it however the test ends."""
    yield dev
    dev.mend()
