"""The admin page as an operator uses it: a browser, a proxy that counts, the offline fal behind it."""

from __future__ import annotations

import asyncio
import csv
from pathlib import Path
from typing import Any

import pytest

from browser.chromium import Browser
from browser.operating import Office, office
from fal_proxy.admin import Admin

SCREENSHOTS = Path(__file__).parent / "screenshots"
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "hasTouch": True}
PATIENCE_SECONDS = 30.0


async def marked(mark: Path) -> None:
    """Wait until the page has got so far."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not mark.exists():  # noqa: ASYNC110, ASYNC240 -- another process writes it, and a stat() is quick
            await asyncio.sleep(0.05)


async def test_page_shows_what_happened_by_endpoint_plan_and_caller(browser: Browser, tmp_path: Path) -> None:
    async with office(tmp_path) as here:
        ada = await here.on.shown(here.on.limited.ada)
        assert [await here.run() for _ in range(2)] == [200, 200]
        assert (await here.on.limited.ask(("POST", "/fal.run/x/../y"), here.on.limited.ada)).status == 400
        visit = await browser.play("operator.mjs", "shown", url=here.url, caller=ada)
    for span in ("hour", "day"):
        seen = visit.result[span]
        assert (seen["spend"], seen["requests"], seen["bars"]) == ("$0.05", "4", 1), span
        assert seen["endpoint"] == ["fal-ai/flux/dev", "2", "0", "$0.05"]
        assert seen["plan"] == ["default", "4", "1", "$0.05"]
        assert seen["caller"] == [ada, "4", "1", "$0.05"]
        assert seen["refusal"] == ["invalid_target", "1"]
        assert seen["last"].endswith(": $0.05")
    assert visit.result["health"] == {"fal keys": "", "store": "", "settler": "", "webhooks": ""}


async def test_kill_switch_stops_a_paid_call_and_lets_it_go_on_again(browser: Browser, tmp_path: Path) -> None:
    async with office(tmp_path) as here:
        mark = tmp_path / "mark"
        playing = asyncio.create_task(
            browser.play("operator.mjs", "stop", url=here.url, token=here.token, mark=str(mark))
        )
        await marked(mark)
        assert await here.run() == 403
        visit = await playing
        assert await here.run() == 200
    assert visit.result == {"asked": "Stop all paid calls?", "kept": True, "gone": True}
    posts = [asked for asked in visit.requests if asked.method == "POST"]
    assert [asked.path for asked in posts] == ["/paid/stop", "/paid/resume"]
    assert {asked.headers["authorization"] for asked in posts} == {f"Bearer {here.token}"}


async def test_caller_is_blocked_and_unblocked(browser: Browser, tmp_path: Path) -> None:
    async with office(tmp_path) as here:
        ada, bea = here.on.limited.ada, here.on.limited.user("bea")
        shown = await here.on.shown(ada)
        assert await here.run(ada) == 200
        mark = tmp_path / "mark"
        playing = asyncio.create_task(
            browser.play("operator.mjs", "block", url=here.url, token=here.token, caller=shown, mark=str(mark))
        )
        await marked(mark)
        assert (await here.run(ada), await here.run(bea)) == (403, 200)
        visit = await playing
        assert await here.run(ada) == 200
    assert visit.result["facts"] == "On plan “default”, known by “key”."
    assert visit.result["limits"][:2] == ["budget", "$0.025 of $5.00"]


async def test_limits_of_a_caller_are_reset(browser: Browser, tmp_path: Path) -> None:
    async with office(tmp_path) as here:
        shown = await here.on.shown(here.on.limited.ada)
        assert await here.run() == 200
        visit = await browser.play("operator.mjs", "reset", url=here.url, token=here.token, caller=shown)
    assert visit.result["before"][1] == "$0.025 of $5.00"
    assert visit.result["after"][1] == "$0.00 of $5.00"


async def test_last_day_is_saved_as_a_table(browser: Browser, tmp_path: Path) -> None:
    async with office(tmp_path) as here:
        assert await here.run() == 200
        file = tmp_path / "usage.csv"
        visit = await browser.play("operator.mjs", "exported", url=here.url, target=str(file))
    assert visit.result.startswith("fal-proxy-usage-")
    rows = list(csv.DictReader(file.read_text("utf-8").splitlines()))
    assert [(row["by"], row["spend_usd"]) for row in rows][:3] == [
        ("total", "0.025000"),
        ("plan", "0.025000"),
        ("endpoint", "0.025000"),
    ]


async def test_nothing_changes_without_the_token_and_it_is_kept_nowhere(browser: Browser, tmp_path: Path) -> None:
    async with office(tmp_path) as here:
        visit = await browser.play("operator.mjs", "uninvited", hostile=True, url=here.url)
        assert await here.run() == 200
    assert visit.result["words"] == [
        "Give the admin token first: nothing is changed without it.",
        "That is not the admin token.",
    ]
    assert visit.result["kept"] == [0, 0, "", ""]
    assert visit.result["hidden"] is True
    assert [asked.status for asked in visit.requests if asked.method == "POST"] == [401]


async def test_off_loopback_the_page_shows_nothing_before_the_token(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with office(tmp_path) as here:
        admin: Admin = here.on.limited.proxy.app.admin
        monkeypatch.setattr(admin, "_needs_token", True)
        visit = await browser.play("operator.mjs", "signIn", hostile=True, url=here.url, token=here.token)
    assert visit.result["before"] == 0
    assert next(asked.status for asked in visit.requests if asked.path == "/usage") == 401
    assert all("authorization" not in asked.headers for asked in visit.requests if asked.path.startswith("/page/"))


async def test_keyboard_reaches_reads_and_works_everything(browser: Browser, tmp_path: Path) -> None:
    async with office(tmp_path) as here:
        shown = await here.on.shown(here.on.limited.ada)
        assert await here.run() == 200
        visit = await browser.play("operator.mjs", "keyboard", url=here.url, token=here.token, caller=shown)
    stops = visit.result["stops"]
    assert not [stop for stop in stops if stop.endswith("unseen")]
    wanted = ["token", "hour", "day", "csv", "stop", "plot Spend", "plot Requests", f"caller {shown}"]
    assert [stop for stop in stops if stop in wanted] == wanted
    (end, left, home) = visit.result["read"]
    assert (end[0], left[0], home[0]) == ("59", "58", "0")
    assert home[1].endswith(": $0.00")
    assert visit.result["still"] == "plot Spend", "a refresh leaves the focus where it was"
    assert visit.result["first"] == "no", "the question's first answer is the harmless one"
    assert visit.result["kept"] is True


STATES = ["hour", "day", "caller", "sure", "stopped"]


async def _arranged(here: Office) -> dict[str, Any]:
    shown = await here.on.shown(here.on.limited.ada)
    await here.run()
    return {"url": here.url, "token": here.token, "caller": shown}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", STATES)
async def test_axe_finds_nothing_serious(browser: Browser, tmp_path: Path, state: str, scheme: str) -> None:
    async with office(tmp_path, past=True) as here:
        given = await _arranged(here)
        options = {"colorScheme": scheme}
        visit = await browser.play("operator.mjs", "accessible", options=options, state=state, **given)
    assert visit.result == []


@pytest.mark.parametrize("width", [320, 360, 768])
async def test_nothing_is_wider_than_the_window(browser: Browser, tmp_path: Path, width: int) -> None:
    async with office(tmp_path, past=True) as here:
        given = await _arranged(here)
        for state in ("hour", "caller", "stopped"):
            options = {"viewport": {"width": width, "height": 740}}
            visit = await browser.play("operator.mjs", "narrow", options=options, state=state, **given)
            assert visit.result == {"over": 0, "small": []}, state
            await here.on.act("/paid/resume")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("light", {"colorScheme": "light"}),
        ("dark", {"colorScheme": "dark"}),
        ("phone", {"colorScheme": "dark", **PHONE}),
    ],
)
async def test_screenshots_are_taken(browser: Browser, tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    async with office(tmp_path, past=True) as here:
        given = await _arranged(here)
        for state in STATES:
            file = SCREENSHOTS / f"admin-{name}-{state}.png"
            await browser.play("operator.mjs", "screenshot", options=options, state=state, target=str(file), **given)
            assert file.stat().st_size > 10_000
            await here.on.act("/paid/resume")
