"""The page of `dev`, panel by panel, as people use it: a browser, the real command, the offline fal behind it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from browser.chromium import Browser
from browser.playing import Played, by_target
from fal_proxy import demo

CALLS = Path(demo.__file__).parent / "page" / "calls"


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_generate_shows_queue_log_time_and_the_picture(browser: Browser, dev: Played, name: str) -> None:
    visit = await browser.play("page.mjs", "generate", url=dev.url.replace("127.0.0.1", name))

    states = [state for state, _ in visit.result["seen"]]
    assert states.index("waiting") < states.index("running") < states.index("done")
    said = [text for _, text in visit.result["seen"]]
    assert any(re.fullmatch(r"\d ahead in the queue|Next in the queue", text) for text in said), said
    assert any(re.fullmatch(r"\d+ %", text) for text in said), said
    assert "28/28" in visit.result["log"]
    assert re.fullmatch(r"\d+\.\d s", visit.result["elapsed"])
    assert (visit.result["alt"], visit.result["width"]) == ("A fox in the snow", 512)
    [submit] = by_target(visit, "https://queue.fal.run/fal-ai/flux/dev")
    assert json.loads(submit.body or "") == {"prompt": "A fox in the snow", "image_size": "square", "seed": 11}
    polls = [asked for asked in visit.requests if asked.headers.get("x-fal-target-url", "").endswith("/status?logs=1")]
    assert {asked.status for asked in polls} <= {200, 202}
    assert {("origin" in asked.headers, "fal_proxy_anon" in asked.headers["cookie"]) for asked in polls} == {
        (False, True)
    }


async def test_cancel_reaches_fal_and_the_panel_goes_on(browser: Browser, dev: Played) -> None:
    visit = await browser.play("page.mjs", "cancelled", url=dev.url)

    assert visit.result == {"said": "Cancelled.", "width": 1024}
    cancels = [asked for asked in visit.requests if asked.method == "PUT"]
    assert [asked.headers["x-fal-target-url"].endswith("/cancel") for asked in cancels] == [True]
    assert cancels[0].status == 202


async def test_stream_replaces_a_picture_with_every_event(browser: Browser, dev: Played) -> None:
    visit = await browser.play("page.mjs", "stream", url=dev.url)
    assert visit.result == [256, 256, 256, 256, 1024]


@pytest.mark.parametrize("mode", ["relay", "token"])
async def test_realtime_follows_the_pen(browser: Browser, dev: Played, mode: str) -> None:
    visit = await browser.play("page.mjs", "realtime", url=dev.url, mode=mode)

    ways = {"relay": "through the proxy", "token": "straight to fal"}
    assert re.fullmatch(rf"\d+ ms from pen to picture, {ways[mode]}", visit.result["said"])
    assert visit.result["width"] == 512
    [socket] = visit.sockets
    own = dev.url.replace("http", "ws") + "/api/fal/proxy/fal.run/fal-ai/lcm-sd15-i2i/realtime?"
    assert socket["url"].startswith(own) is (mode == "relay")
    assert socket["sent"] > 1
    assert socket["received"] > 1
    mount = "/api/fal/proxy" if mode == "relay" else "/api/fal/tokens"
    [token] = by_target(visit, "https://rest.fal.ai/tokens/realtime")
    assert (token.path, token.status) == (mount, 201)


@pytest.mark.parametrize("by", ["choice", "drop"])
async def test_upload_goes_up_and_is_painted_over(browser: Browser, dev: Played, tmp_path: Path, by: str) -> None:
    file = None
    if by == "choice":
        file = tmp_path / "harbour.png"
        Image.effect_noise((1200, 900), 80).save(file)
    visit = await browser.play("page.mjs", "upload", url=dev.url, chosen=str(file) if file else None)

    assert visit.result["before"] == "true", "nothing can be repainted before something is up"
    said = [text for _, text in visit.result["seen"]]
    assert any(re.fullmatch(r"[\d.]+ [kM]B of [\d.]+ [kM]B", text) for text in said), said
    assert visit.result["said"].endswith("from your file")
    assert visit.result["width"] > 0
    [put] = [asked for asked in visit.requests if asked.method == "PUT"]
    assert put.url.startswith(f"{dev.url}/api/fal/proxy/uploads/")
    assert put.status == 200
    [submit] = by_target(visit, "https://queue.fal.run/fal-ai/flux/dev/image-to-image")
    assert "v3b.fal.media" in json.loads(submit.body or "")["image_url"]


async def test_burst_runs_into_the_limit_and_waits_as_it_is_told(browser: Browser, dev: Played) -> None:
    visit = await browser.play("page.mjs", "burst", hostile=True, url=dev.url, user="Guest")

    assert "“default”" in visit.result["plan"]
    assert visit.result["pictures"] == [512] * 8
    assert {"wait 5 s", "wait 1 s", "again…", "done"} <= set(visit.result["tiles"])
    assert visit.result["bars"]["bar-concurrent"] == 1
    assert visit.result["bars"]["bar-submit"] >= 8 / 60 - 1e-9
    assert visit.result["bars"]["bar-budget"] > 0
    runs = by_target(visit, "https://fal.run/fal-ai/flux/schnell")
    refused = [asked for asked in runs if asked.status == 429]
    assert {asked.answered["x-fal-error-type"] for asked in refused} == {"concurrency_limited"}
    assert all("retry-after" in asked.answered for asked in refused)
    # Chromium says of every refused request that it was refused; of nothing else.
    assert len(visit.errors) == len(refused) > 0
    assert all("429" in error for error in visit.errors)


async def test_another_user_has_another_plan(browser: Browser, dev: Played) -> None:
    visit = await browser.play("page.mjs", "burst", url=dev.url, user="Ada")

    assert "“studio”" in visit.result["plan"]
    assert visit.result["pictures"] == [512] * 8
    assert not any(note.startswith("wait") for note in visit.result["tiles"])
    assert visit.result["spend"].endswith("of $100.00")
    runs = by_target(visit, "https://fal.run/fal-ai/flux/schnell")
    assert [asked.status for asked in runs] == [200] * 8


@pytest.mark.parametrize("user", ["Guest", "Ada"])
async def test_key_is_where_fal_is_and_nowhere_else(browser: Browser, dev: Played, user: str) -> None:
    visit = await browser.play("page.mjs", "key", url=dev.url, user=user)

    lines, browser_side, fal_side = (visit.result[name] for name in ("lines", "browser", "fal"))
    assert lines == ["POST /api/fal/proxy", "POST /fal-ai/flux/dev"]
    assert browser_side["x-fal-target-url"] == ["stays", "https://queue.fal.run/fal-ai/flux/dev"]
    assert browser_side["cookie"] == ["stays", "fal_proxy_anon=••••••••"]
    if user == "Guest":
        assert "authorization" not in browser_side
    else:
        assert browser_side["authorization"] == ["stays", "Key fpk_••••••••"]
    assert fal_side["authorization"] == ["added", "Key ••••••••"]
    assert "cookie" not in fal_side
    assert fal_side["content-type"] == ["passes", "application/json"]
    assert not re.search(r"fpk_\w|Key [0-9a-f]{8}-", visit.result["trace"])


async def test_what_the_proxy_refuses_never_reaches_fal(browser: Browser, dev: Played) -> None:
    visit = await browser.play("page.mjs", "refused", hostile=True, url=dev.url)
    assert "It never reached fal: the proxy answered 429 by itself." in visit.result


async def test_each_panel_shows_the_file_that_runs_and_copies_it(browser: Browser, dev: Played) -> None:
    visit = await browser.play("page.mjs", "code", url=dev.url)

    files = {path.stem: path.read_text("utf-8").rstrip("\n") for path in CALLS.glob("*.js")}
    assert visit.result["shown"] == files
    assert visit.result["copied"] == files
    assert visit.result["names"] == ["setup", "generate", "stream", "realtime", "upload", "limits", "key"]
    fetched = {asked.path for asked in visit.requests if asked.type == "script"}
    assert {f"/demo/calls/{name}.js" for name in files} <= fetched
    for name, code in files.items():
        assert len(code.splitlines()) <= 10, name
        assert max(map(len, code.splitlines())) <= 88, f"{name}: too wide to be read without scrolling"


async def test_changing_the_shown_code_changes_what_runs(browser: Browser, dev: Played) -> None:
    visit = await browser.play("page.mjs", "changedCode", url=dev.url)

    assert '"fal-ai/flux/schnell"' in visit.result
    assert len(by_target(visit, "https://queue.fal.run/fal-ai/flux/schnell")) == 1
    assert by_target(visit, "https://queue.fal.run/fal-ai/flux/dev") == []
