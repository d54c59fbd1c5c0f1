"""What the page looks like: pictures of every panel, to be looked at, and what axe makes of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from browser.chromium import Browser
from browser.playing import Played

SCREENSHOTS = Path(__file__).parent / "screenshots"
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "hasTouch": True}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("moment", ["idle", "running", "done", "failed"])
async def test_axe_finds_nothing_serious(browser: Browser, mended: Played, moment: str, scheme: str) -> None:
    options = {"colorScheme": scheme}
    visit = await browser.play("page.mjs", "accessible", hostile=True, options=options, url=mended.url, moment=moment)
    assert visit.result == []


@pytest.mark.parametrize(("part", "pictures"), [("first", 3), ("played", 5), ("limits", 1), ("trouble", 1)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("light", {"colorScheme": "light"}),
        ("dark", {"colorScheme": "dark"}),
        ("phone", {"colorScheme": "dark", **PHONE}),
    ],
)
async def test_screenshots_are_made_to_be_looked_at(
    browser: Browser, mended: Played, name: str, options: dict[str, Any], part: str, pictures: int
) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    given = {"url": mended.url, "folder": str(SCREENSHOTS), "name": name, "part": part}
    visit = await browser.play("screenshots.mjs", "screenshots", hostile=True, options=options, **given)
    assert all((SCREENSHOTS / file).stat().st_size > 10_000 for file in visit.result)
    assert len(visit.result) == pictures
