"""The unmodified client on the proxy's own origin: browsers send no Origin on GET there, and their cookie all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from browser.app import CLIENT, WAYS, judge_use
from browser.chromium import Browser
from browser.sites import site
from browser.stage import AMBIENT, SESSION, stage
from support.proxied import MOUNT


@pytest.mark.parametrize("identity", AMBIENT)
async def test_everything_works_with_the_cookie_alone(browser: Browser, tmp_path: Path, identity: str) -> None:
    async with site({"/fal-client.js": CLIENT}) as files, stage(tmp_path, identity) as running:
        visit = await browser.play(
            "app.mjs",
            "use",
            hostile=True,
            at=running.own_page,
            bundle=files.at(path="/fal-client.js"),
            proxyUrl=MOUNT,
            shim=f"{running.proxy.url}/client.js",
            mount=running.proxy.url,
            session=running.session,
            ways=["me", *WAYS],
        )

        judge_use(visit.result["seen"])
        # A text document has no icon.
        assert [line for line in visit.errors if "/favicon.ico" not in line] == []
        assert visit.result["seen"]["me"]["source"] == identity
        polls = [each for each in visit.requests if each.method == "GET" and "x-fal-target-url" in each.headers]
        assert {each.headers["x-fal-target-url"].rpartition("/")[2].partition("?")[0] for each in polls} >= {
            "status",
            "stream",
        }
        cookie = f"session={SESSION}" if running.session else "fal_proxy_anon="
        for poll in polls:
            assert "origin" not in poll.headers
            assert poll.headers["sec-fetch-site"] == "same-origin"
            assert cookie in poll.headers["cookie"]
            assert poll.status in (200, 202)
        assert len(polls) >= 4
