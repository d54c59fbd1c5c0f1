"""An app on one origin, the proxy on another: the client, the shim, CORS and cookies, under the README's strict policy."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from browser.app import CLIENT, WAYS, judge_use
from browser.chromium import Browser
from browser.sites import Site, html, site
from browser.stage import CROSS_SITE, SAME_SITE, SESSION, ambient_settings, whoami
from fal_proxy.emulator import Entry
from fal_proxy.settings import Cors, Realtime
from support.documents import README
from support.emulated import Emulated, emulated
from support.proxied import OPEN_PLAN, Proxy, proxied
from support.services import Service, served

APP = "app.localhost"  # the page's name
# What the README gives pages: the tag with its hash, and the policy.
[TAG] = re.findall(r"<script type=\"module\".*?</script>", README.read_text("utf-8"), re.DOTALL)
[POLICY] = re.findall(r"Under a strict CSP: `(.*?)`", README.read_text("utf-8"))


def led_to(origin: str, text: str) -> str:
    """Return text of the README with the proxy of the example replaced."""
    secure = text.replace("https://proxy.example.com", origin)
    return secure.replace("wss://proxy.example.com", origin.replace("http", "ws", 1))


@dataclass(frozen=True)
class Apart:
    """A page on its origin, and the proxy on another one."""

    site: Site
    proxy: Proxy
    fal: Emulated

    def given(self, host: str = APP, **changes: Any) -> dict[str, Any]:
        """Return what a scenario needs to use the client in the page under one of its names."""
        shim = f"{self.proxy.url}/client.js"
        found = {"at": self.site.at(host, "/"), "bundle": "/fal-client.js", "proxyUrl": self.proxy.url, "shim": shim}
        return {**found, "ways": WAYS, **changes}

    def entries(self, host: str) -> list[Entry]:
        """Return what reached one of fal's hosts."""
        return [entry for entry in self.fal.app.journal if entry.host == host]


@contextlib.asynccontextmanager
async def apart(
    folder: Path, *, identity: str = "anonymous", listed: tuple[str, ...] = (APP,), tag: str = TAG, **changes: Any
) -> AsyncIterator[Apart]:
    """Run a page with the README's tag and policy, the proxy, and fal; pages of the `listed` names may use the proxy."""
    files = {"/fal-client.js": CLIENT}
    async with site(files) as pages, emulated() as fal, served(Service(whoami)) as service:
        changes = {"cors": Cors(origins=tuple(pages.at(name) for name in listed)), **changes}
        async with proxied(
            fal.url, folder, ambient_settings(folder, identity, f"{service}/whoami", **changes)
        ) as proxy:
            policy = led_to(proxy.origin, POLICY)
            assert policy.startswith(f"script-src {proxy.origin}; connect-src "), policy
            # The page's own modules, and, for token mode, where this fal is.
            policy = policy.replace("script-src", "script-src 'self'") + f" ws://127.0.0.1:{fal.port}"
            policy += "; default-src 'none'; img-src data:"
            text = "<!doctype html><html lang=en><meta charset=utf-8><link rel=icon href=data:,><title>app</title>"
            files["/"] = html(text + led_to(proxy.origin, tag), content_security_policy=policy)
            yield Apart(pages, proxy, fal)


@pytest.mark.parametrize("host", [APP, SAME_SITE], ids=["another site", "another port"])
@pytest.mark.parametrize("caller", ["anonymous", "key"])
async def test_a_listed_page_can_do_everything_under_the_strict_policy(
    browser: Browser, tmp_path: Path, caller: str, host: str
) -> None:
    async with apart(tmp_path, listed=(host,)) as there:
        user_key = there.proxy.user_key if caller == "key" else None
        visit = await browser.play("app.mjs", "use", **there.given(host, userKey=user_key))

        judge_use(visit.result["seen"])
        assert visit.result["led"], "the README's tag brought the shim, with the hash that it names"
        assert visit.result["seen"]["me"]["source"] == caller
        assert set(visit.result["statuses"]) >= {"COMPLETED"}
        to_proxy = [request for request in visit.requests if request.url.startswith(there.proxy.origin)]
        assert {request.method for request in to_proxy} >= {"GET", "POST"}
        # The client asks without credentials: no cookie goes to another origin, none is taken from it.
        assert not [request for request in to_proxy if "cookie" in request.headers]
        [socket] = visit.sockets
        assert socket["url"].startswith(there.proxy.url.replace("http", "ws") + "/fal.run/fal-ai/lcm-sd15-i2i/realtime")


async def test_a_page_that_nobody_listed_gets_nothing_and_spends_nothing(browser: Browser, tmp_path: Path) -> None:
    async with apart(tmp_path, listed=("other.localhost",)) as there:
        for user_key in (None, there.proxy.user_key):
            visit = await browser.play("app.mjs", "use", hostile=True, **there.given(userKey=user_key))

            errors = {way: seen.get("error") for way, seen in visit.result["seen"].items()}
            assert set(errors) == set(WAYS)
            assert all(errors.values()), errors
            assert visit.result["led"], "the shim is for everybody"
            assert list(there.fal.app.journal) == []


async def test_the_shim_leads_to_fal_with_fals_tokens_in_token_mode(browser: Browser, tmp_path: Path) -> None:
    plan = msgspec.structs.replace(OPEN_PLAN, realtime_token=True, endpoints=("fal-ai/lcm-sd15-i2i/**",))
    changes: dict[str, Any] = {"plans": {"default": plan}, "realtime": Realtime(mode="token")}
    async with apart(tmp_path, **changes) as there:
        relay = f"ws://127.0.0.1:{there.fal.port}"
        visit = await browser.play("app.mjs", "use", **there.given(ways=["realtime"], relay=relay))

        assert visit.result["seen"] == {"realtime": 1}
        [asked] = there.entries("rest.fal.ai")
        assert asked.target == b"/tokens/realtime"
        [handshake] = there.entries("fal.run")
        assert handshake.header("authorization") is None, "it went past the proxy, with fal's own token"
        assert b"fal_jwt_token=" in handshake.target
        [socket] = visit.sockets
        assert socket["url"].startswith(f"{relay}/fal.run/fal-ai/lcm-sd15-i2i/realtime?fal_jwt_token=")

    (unlisted := tmp_path / "unlisted").mkdir()
    async with apart(unlisted, listed=("other.localhost",), **changes) as there:
        visit = await browser.play("app.mjs", "use", hostile=True, **there.given(ways=["realtime"]))
        assert visit.result["seen"]["realtime"]["error"]
        assert list(there.fal.app.journal) == []


async def test_a_ticket_of_one_page_opens_nothing_for_another(browser: Browser, tmp_path: Path) -> None:
    async with apart(tmp_path) as there:
        visit = await browser.play("app.mjs", "use", **there.given(ways=["ticket"]))
        base = there.proxy.url.replace("http", "ws") + "/fal.run/fal-ai/lcm-sd15-i2i/realtime"
        address = f"{base}?fal_jwt_token={visit.result['seen']['ticket']}"
        for host in (CROSS_SITE, SAME_SITE):
            visit = await browser.play("app.mjs", "steal", hostile=True, at=there.site.at(host, "/"), address=address)
            assert visit.result == "refused"
        assert list(there.fal.app.journal) == []
        visit = await browser.play("app.mjs", "steal", at=there.site.at(APP, "/"), address=address)
        assert visit.result == "open", "it was not spent by those who could not use it"


@pytest.mark.parametrize(
    ("change", "led", "reason"),
    [
        (("", ""), True, "the README's hash is the file's"),
        (("sha384-", "sha384-AAAA"), False, "another hash"),
        (('integrity="', 'integrity="sha384-'), False, "no hash that a browser knows, and one that is wrong"),
    ],
)
async def test_the_hash_of_the_readme_is_what_the_browser_goes_by(
    browser: Browser, tmp_path: Path, change: tuple[str, str], led: bool, reason: str
) -> None:
    async with apart(tmp_path, tag=TAG.replace(*change)) as there:
        visit = await browser.play("app.mjs", "tagged", hostile=not led, at=there.site.at(APP, "/"))

    assert visit.result is led, reason
    assert any("integrity" in line for line in visit.errors) is not led


async def test_a_listed_page_of_the_same_site_may_use_the_anonymous_cookie(browser: Browser, tmp_path: Path) -> None:
    async with apart(tmp_path, listed=(SAME_SITE,)) as there:
        given = there.given(SAME_SITE, include=True, ways=["me", "me", *WAYS])
        visit = await browser.play("app.mjs", "use", **given)

        judge_use(visit.result["seen"])
        to_proxy = [each for each in visit.requests if each.url.startswith(there.proxy.url) and each.type == "fetch"]
        first, *others = [each for each in to_proxy if each.method != "OPTIONS"]
        assert "cookie" not in first.headers
        assert "fal_proxy_anon=" in first.answered["set-cookie"]
        assert all("fal_proxy_anon=" in each.headers["cookie"] for each in others if each.path.endswith("/me"))
        assert len({each.headers["cookie"] for each in others if "cookie" in each.headers}) == 1


async def test_a_session_of_the_apps_is_good_for_listed_pages_only(browser: Browser, tmp_path: Path) -> None:
    for listed in ((APP,), ("other.localhost",)):
        folder = tmp_path / listed[0]
        folder.mkdir()
        async with apart(folder, identity="forward", listed=listed) as there:
            given = there.given(include=True, session=SESSION)
            visit = await browser.play("app.mjs", "use", hostile=True, **given)

            to_proxy = [each for each in visit.requests if each.url.startswith(there.proxy.url)]
            if listed == (APP,):
                judge_use(visit.result["seen"])
                assert [line for line in visit.errors if "/favicon.ico" not in line] == []  # where they signed in
                assert visit.result["seen"]["me"]["source"] == "forward"
                assert any("session=" in each.headers.get("cookie", "") for each in to_proxy)
            else:
                assert all(seen.get("error") for seen in visit.result["seen"].values())
                assert list(there.fal.app.journal) == []
