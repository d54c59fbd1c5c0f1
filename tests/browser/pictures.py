"""The README's pictures: `./run env PYTHONPATH=tests python -m browser.pictures` takes them anew.

They are screenshots of the tests' own browser, with 256 colours so that they stay small.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from browser.chromium import Browser, installed, launched
from browser.operating import office
from browser.playing import playing

DOCS = Path(__file__).parents[2] / "docs"
# The file, what the page looks like, and the panel.
PICTURES = (("page-light.png", "light", "realtime"), ("page-dark.png", "dark", "key"))


async def take(browser: Browser, url: str, folder: Path) -> None:
    """Write every picture to `folder`."""
    for file, scheme, panel in PICTURES:
        options = {"colorScheme": scheme}
        await browser.play(
            "screenshots.mjs", "panel", options=options, url=url, folder=str(folder), name=file, panel=panel
        )
        with Image.open(folder / file) as picture:
            picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(folder / file, optimize=True)


async def take_admin(browser: Browser, folder: Path, temporary: Path) -> None:
    """Write the operator's picture to `folder`."""
    target = folder / "admin.png"
    async with office(temporary, past=True) as here:
        options = {"viewport": {"width": 1200, "height": 915}}
        given: dict[str, Any] = {
            "url": here.url,
            "token": "",
            "caller": "",
            "state": "day",
            "target": str(target),
            "whole": False,
        }
        await browser.play("operator.mjs", "screenshot", options=options, **given)
    with Image.open(target) as picture:
        picture.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(target, optimize=True)


def main() -> None:
    """Take the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        node, chromium = installed()
        with launched(node, chromium, Path(folder)) as browser, playing(Path(folder)) as dev:
            DOCS.mkdir(exist_ok=True)
            asyncio.run(take(browser, dev.url, DOCS))
            asyncio.run(take_admin(browser, DOCS, Path(folder)))


if __name__ == "__main__":
    main()
