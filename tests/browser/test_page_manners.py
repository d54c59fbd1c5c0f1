"""How the page behaves: when fal fails, for the keyboard, for small windows, for people who see or move differently."""

from __future__ import annotations

import re

import pytest

from browser.chromium import Browser
from browser.playing import Played

BUSY = ("fal is busy", "429 concurrent_requests_limit, said by fal")
REFUSED = ("fal refuses this input", "422 content_policy_violation, said by fal")
UNKNOWN = ("Nobody knows how this ended", "500 upstream_outcome_unknown, said by fal-proxy")
NO_SOCKET = ("The socket was not opened", "no handshake")
CUT = ("The line was cut", "connection lost")
CUT_SOCKET = ("The socket was cut", "close code 1006")
SILENT = ("Nothing heard from fal for a while.", "you can also cancel")


# Under each fault, what every panel says, and why.
TROUBLE = {
    "429": [
        ("generate", BUSY, "after the client has repeated it three times"),
        ("stream", BUSY, "a stream is not repeated by the client"),
        ("realtime", NO_SOCKET, "a browser is not told why a handshake failed"),
        ("upload", BUSY, "the upload is fine, the model is not"),
        ("limits", BUSY, "fal's own 429 names no time to wait"),
    ],
    "422": [
        ("generate", REFUSED, "fal's list of problems, as a sentence"),
        ("stream", REFUSED, "the same, before the stream begins"),
        ("realtime", NO_SOCKET, "a browser is not told why a handshake failed"),
        ("upload", REFUSED, "the same, of an input that names a file"),
        ("limits", REFUSED, "the same, of eight runs"),
    ],
    "stall": [
        ("generate", SILENT, "nobody answers; cancelling ends it"),
        ("stream", SILENT, "a head and nothing behind it"),
        ("realtime", SILENT, "a socket on which nothing comes any more"),
        ("upload", SILENT, "as any submit"),
        ("limits", SILENT, "as any run"),
    ],
    "cut": [
        ("generate", UNKNOWN, "a submit that was sent may be paid for"),
        ("stream", CUT, "what came before the cut stays on the stage"),
        ("realtime", CUT_SOCKET, "an end without a close frame"),
        ("upload", UNKNOWN, "as any submit"),
        ("limits", UNKNOWN, "as any run"),
    ],
}


@pytest.mark.parametrize("fault", TROUBLE)
async def test_every_panel_says_what_went_wrong_and_recovers(browser: Browser, mended: Played, fault: str) -> None:
    visit = await browser.play("page.mjs", "broken", hostile=True, url=mended.url, fault=fault)

    for panel, said, reason in TROUBLE[fault]:
        for words in said:
            assert words in visit.result["said"][panel], (panel, reason)
    assert visit.result["trouble"] == 0, "what went wrong is gone once it works"
    # The browser's own words about answers and sockets that failed, and nothing of the page's.
    assert visit.faults == []
    assert all(re.match("Failed to load resource|WebSocket connection", line) for line in visit.errors), visit.errors


async def test_every_control_is_reached_by_tab_and_shows_that_it_is(browser: Browser, dev: Played) -> None:
    visit = await browser.play("page.mjs", "walk", url=dev.url)

    reached = visit.result["reached"]
    assert visit.result["unseen"] == []
    assert reached[0].endswith("Skip to the panels")
    assert visit.result["again"] == [], "nothing traps the focus"
    # Of each group of choices Tab reaches the chosen one; arrows reach the others.
    groups = {"Guest/Ada": 1, "relay/token": 1, "three pens": 2}
    assert len(reached) == visit.result["focusable"] - sum(groups.values())


async def test_all_panels_are_played_with_the_keyboard_alone(browser: Browser, dev: Played) -> None:
    visit = await browser.play("page.mjs", "keyboard", url=dev.url)

    assert visit.result["pen"], "whoever draws with arrows sees where the pen is"
    assert visit.result["pressed"] == "true"
    assert visit.result["widths"] == [1024, 1024, 512, 960]


@pytest.mark.parametrize("width", [360, 320, 768])
async def test_nothing_is_wider_than_the_window(browser: Browser, dev: Played, width: int) -> None:
    options = {"viewport": {"width": width, "height": 740}}
    visit = await browser.play("page.mjs", "narrow", options=options, url=dev.url)
    assert visit.result == {"over": 0, "small": []}


async def test_nothing_moves_for_whoever_asked_for_that(browser: Browser, dev: Played) -> None:
    moving = await browser.play("page.mjs", "motion", url=dev.url)
    still = await browser.play("page.mjs", "motion", options={"reducedMotion": "reduce"}, url=dev.url)
    assert moving.result[0] > 0
    assert moving.result[1] == "smooth"
    assert still.result == [0, "auto"]
