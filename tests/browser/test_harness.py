"""What the harness notices: a test that cannot fail would be worth nothing."""

from __future__ import annotations

import pytest

from browser.chromium import Browser, paths
from browser.sites import html, site
from support.node import ScriptFailed
from support.proxied import FAL_KEY, FAL_KEY_SECRET

PLAIN = "<!doctype html><html lang=en><meta charset=utf-8><link rel=icon href=data:,><title>t</title><main><h1>t</h1>{}</main>"


async def test_a_quiet_page_passes_and_its_requests_are_known(browser: Browser) -> None:
    async with site() as ours:
        visit = await browser.play("harness.mjs", "open", url=ours.at())
        again = await browser.play("harness.mjs", "open", url=ours.at("app.localhost"))

    assert visit.result == again.result == "a page"
    assert paths(visit.requests) == ["GET /"]
    assert visit.requests[0].status == 200
    assert visit.requests[0].headers["sec-fetch-mode"] == "navigate"
    assert [asked.values(b"host") for asked in ours.service.asked] == [
        [f"{name}:{ours.port}".encode()] for name in ("127.0.0.1", "app.localhost")
    ]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("console.error('red')", "red"),
        (
            "setTimeout(() => { throw new Error('thrown late') }); new Promise((done) => setTimeout(done, 50))",
            "thrown late",
        ),
        ("void Promise.reject(new Error('unheard')); new Promise((done) => setTimeout(done, 50))", "unheard"),
        ("fetch('/missing').then(() => null)", "404"),
        ("fetch('http://stranger.example/').catch(() => null)", "strangers"),
        (f"console.log('{FAL_KEY_SECRET}')", "the console"),
        (f"fetch('/?{FAL_KEY_SECRET}').then((answer) => answer.text())", "GET http"),
        (f"fetch('/', {{ headers: {{ a: '{FAL_KEY.reveal()}' }} }}).then((answer) => answer.text())", "the fields of"),
        (f"fetch('/', {{ method: 'POST', body: '{FAL_KEY.reveal()}' }}).then((answer) => answer.text())", "POST http"),
        ("fetch('/leak').then((answer) => answer.text())", "the answer to"),
        ("fetch('/other').then((answer) => answer.text())", "the answer to"),
    ],
)
async def test_what_no_page_of_ours_may_do_fails_its_test(browser: Browser, script: str, reason: str) -> None:
    leak, other = html(FAL_KEY_SECRET), html("Key 0aae3c1e-0000-4000-8000-000000000001:" + "ab" * 16)
    async with site({"/": html(), "/leak": leak, "/other": other}) as ours:
        with pytest.raises(AssertionError, match=reason):
            await browser.play("harness.mjs", "open", url=ours.at(), script=script)


async def test_a_scenario_that_throws_fails_its_test_and_not_the_next(browser: Browser) -> None:
    async with site() as ours:
        with pytest.raises(ScriptFailed, match="on purpose"):
            await browser.play("harness.mjs", "open", url=ours.at(), script="throw new Error('on purpose')")
        visit = await browser.play(
            "harness.mjs", "open", url=ours.at(), script="document.cookie = 'a=1'; document.cookie"
        )
        assert visit.result == "a=1"
        visit = await browser.play("harness.mjs", "open", url=ours.at(), script="document.cookie")
        assert visit.result == "", "the next scenario has a browser of its own"


async def test_axe_finds_what_is_serious_under_a_strict_policy(browser: Browser) -> None:
    policy = {"content_security_policy": "default-src 'none'; img-src data:"}
    sound, faint = PLAIN.format("<p>text</p>"), PLAIN.format("<p><img src='data:,'></p>")
    async with site({"/": html(sound, **policy), "/faint": html(faint, **policy)}) as ours:
        visit = await browser.play("harness.mjs", "findings", url=ours.at())
        assert visit.result == []
        visit = await browser.play("harness.mjs", "findings", url=ours.at(path="/faint"))
        assert [finding["id"] for finding in visit.result] == ["image-alt"]


async def test_pages_are_drawn_in_the_same_fonts_everywhere(browser: Browser) -> None:
    families = ("system-ui", "sans-serif", "Helvetica", "monospace", "ui-monospace, monospace")
    text = "".join(f"<p style='font-family: {family}'>Text</p>" for family in families)
    async with site({"/": html(PLAIN.format(text))}) as ours:
        visit = await browser.play("harness.mjs", "fonts", url=ours.at())

    assert visit.result == ["Inter", "Inter", "Inter", "JetBrains Mono", "JetBrains Mono"]
