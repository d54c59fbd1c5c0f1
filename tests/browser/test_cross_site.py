"""Pages of strangers that make a visitor's browser ask the proxy for things, with the visitor's own cookies.

Every attack is also made by a page of the proxy's own origin, where it must succeed: what is refused elsewhere is an
attack, and not a request that nobody could have answered.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from browser.chromium import Browser
from browser.stage import AMBIENT, CROSS_SITE, SAME_SITE, Stage, stage

# Who is not believed on our own page either.
NOBODY_AT_HOME = {
    "form_sandboxed": "a sandboxed frame is no page of ours",
    "fetch_sandboxed": "the same",
    "fetch_redirected": "strangers led there",
    "image_redirected": "strangers led there, in a picture of our page's",
    "report": "what reports is a frame of strangers",
}
WITHOUT_COOKIES = {"fetch_without_credentials", "events", "module", "report"}
# `SameSite=Lax`, which the anonymous cookie is: other sites have it in a window that they open, and only for GET. (In one
# that they can go on talking to, Chromium does not always send it.)
LAX, OFTEN_LAX = {"window_unsaid"}, {"window"}


def cookies_expected(identity: str, host: str, delivered: set[str]) -> set[str]:
    """Return which attacks come with the visitor's cookie."""
    if identity != "anonymous":
        return delivered - WITHOUT_COOKIES
    return LAX if host == CROSS_SITE else delivered - WITHOUT_COOKIES - {"form_sandboxed", "fetch_sandboxed"}


def names_at_fal(running: Stage) -> set[str]:
    """Return the attacks whose endpoints were asked of fal."""
    paths = [entry.target.decode().partition("?")[0].removesuffix("/realtime") for entry in running.fal.app.journal]
    return {path.rpartition("/")[2] for path in paths}


@pytest.mark.parametrize("host", [SAME_SITE, CROSS_SITE])
@pytest.mark.parametrize("identity", AMBIENT)
async def test_no_page_of_strangers_can_spend_or_read_with_a_visitors_cookie(
    browser: Browser, tmp_path: Path, identity: str, host: str
) -> None:
    async with stage(tmp_path, identity) as running:
        at = running.site.at(host)
        given: dict[str, Any] = {"at": at, "site": at, "mount": running.proxy.url, "session": running.session}
        visit = await browser.play("hostile.mjs", "attack", hostile=True, **given)

        assert {name for name, seen in visit.result["seen"].items() if seen is not None} == set()
        assert running.reached_fal() == []
        arrivals = {arrival.name: arrival for arrival in running.arrivals}
        delivered = set(visit.result["delivered"])
        assert {arrivals[name].status for name in delivered} <= {401, 403}
        with_cookie = {name for name in delivered if arrivals[name].with_cookie}
        assert with_cookie - OFTEN_LAX == cookies_expected(identity, host, delivered) - OFTEN_LAX
        assert {arrivals[name].status for name in with_cookie} == {403}


@pytest.mark.parametrize("identity", AMBIENT)
async def test_the_same_requests_reach_fal_from_a_page_of_ours(browser: Browser, tmp_path: Path, identity: str) -> None:
    async with stage(tmp_path, identity) as running:
        given: dict[str, Any] = {"at": running.own_page, "site": running.site.at(), "mount": running.proxy.url}
        visit = await browser.play("hostile.mjs", "attack", hostile=True, session=running.session, **given)

        expected = set(visit.result["seen"]) - set(NOBODY_AT_HOME)
        if identity != "anonymous":
            expected -= {"fetch_without_credentials"}  # nobody in particular may call
        assert names_at_fal(running) == expected
        for name in ("fetch_credentials", "fetch_get", "xhr", "fetch_json", "fetch_target", "fetch_put"):
            assert f"emulator/echo/{name}" in visit.result["seen"][name]
        assert visit.result["seen"]["socket"] == "open"


WAYS = ["fetch_get", "fetch_get_simple", "image", "frame", "script", "style", "events_credentials"]
JOB = "/queue.fal.run/emulator/echo/requests/{id}"
READS = {
    f"{JOB}/status": "fetch_get",
    f"{JOB}/status/stream": "events_credentials",
    JOB: "fetch_get",
    "/me": "fetch_get",
}


@pytest.mark.parametrize(
    ("identity", "host"), [("anonymous", SAME_SITE), ("forward", CROSS_SITE), ("header", SAME_SITE)]
)
async def test_no_page_of_strangers_can_read_a_visitors_job_or_standing(
    browser: Browser, tmp_path: Path, identity: str, host: str
) -> None:
    async with stage(tmp_path, identity) as running:
        given: dict[str, Any] = {
            "mount": running.proxy.url,
            "session": running.session,
            "ways": WAYS,
            "paths": [*READS, "/events"],
        }
        visit = await browser.play("hostile.mjs", "snoop", hostile=True, at=running.site.at(host), **given)

        assert {
            name for seen in visit.result["seen"].values() for name, read in seen.items() if read is not None
        } == set()
        assert running.reached_fal() == ["POST queue.fal.run/emulator/echo"], "the visitor's own"
        about = [arrival for arrival in running.arrivals if visit.result["id"] in arrival.path]
        assert len(about) >= 3 * len(WAYS)
        assert {arrival.status for arrival in about} == {403}


async def test_a_page_of_ours_can_read_them(browser: Browser, tmp_path: Path) -> None:
    async with stage(tmp_path) as running:
        given: dict[str, Any] = {
            "mount": running.proxy.url,
            "session": running.session,
            "ways": WAYS,
            "paths": list(READS),
        }
        visit = await browser.play("hostile.mjs", "snoop", hostile=True, at=running.own_page, **given)

        for path, way in READS.items():
            assert visit.result["seen"][path][way], path
