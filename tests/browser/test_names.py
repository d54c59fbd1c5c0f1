"""Whose name a page goes by: DNS that begins to mean the proxy, and names for which browsers say less of a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from browser.app import CLIENT, WAYS, judge_use
from browser.chromium import Browser
from browser.sites import site
from browser.stage import OPEN_METHODS, stage
from fal_proxy.settings import Server
from support.proxied import MOUNT

# To a browser, a name of loopback is as good as https: it says with every request what kind of page is behind it.
# Of any other name over plain http it says nothing with a GET.
TRUSTED, PLAIN = "evil.localhost", "rebound.example"
OURS = "app.example"


@pytest.mark.parametrize("name", [TRUSTED, PLAIN])
@pytest.mark.parametrize("hosts", [("127.0.0.1", "localhost"), ("*",)], ids=["own names", "any name"])
async def test_a_name_that_begins_to_mean_the_proxy_gets_nothing_unless_any_name_is_ours(
    browser: Browser, tmp_path: Path, name: str, hosts: tuple[str, ...]
) -> None:
    async with stage(tmp_path, server=Server(hosts=hosts)) as running:
        mount = f"http://{name}:{running.proxy.port}{MOUNT}"
        given: dict[str, Any] = {"mount": mount, "site": running.site.at()}
        visit = await browser.play("hostile.mjs", "rebind", hostile=True, names=[name], **given)

        arrivals = {arrival.name: arrival for arrival in running.arrivals}
        statuses = {arrivals[attack].status for attack in visit.result["delivered"]}
        if hosts == ("*",):
            assert len(running.reached_fal()) > 10, "to such a proxy every page of the name is its own"
            return
        assert statuses == {421}
        assert running.reached_fal() == []
        told = [seen for seen in visit.result["seen"].values() if seen is not None and seen != "load"]
        assert told
        assert all("misdirected_host" in seen for seen in told)


async def test_under_a_plain_name_polls_have_neither_origin_nor_site_and_work(browser: Browser, tmp_path: Path) -> None:
    async with site({"/fal-client.js": CLIENT}) as files, stage(tmp_path, server=Server(hosts=(OURS,))) as running:
        mount = f"http://{OURS}:{running.proxy.port}{MOUNT}"
        shim = f"{mount}/client.js"
        given: dict[str, Any] = {"at": f"{mount}/client.d.ts", "bundle": files.at(OURS, "/fal-client.js"), "shim": shim}
        visit = await browser.play(
            "app.mjs", "use", hostile=True, names=[OURS], proxyUrl=MOUNT, ways=WAYS[:-1], **given
        )

        judge_use(visit.result["seen"], realtime=False)  # the client's needs crypto.randomUUID: https, or loopback
        polls = [each for each in visit.requests if each.method == "GET" and "x-fal-target-url" in each.headers]
        assert len(polls) >= 4
        for poll in polls:
            assert {"origin", "sec-fetch-site"} & set(poll.headers) == set()
            assert "fal_proxy_anon=" in poll.headers["cookie"]


@pytest.mark.parametrize("methods", [("POST",), OPEN_METHODS], ids=["POST", "any method"])
@pytest.mark.parametrize("name", [OURS, PLAIN], ids=["another port", "another site"])
async def test_under_a_plain_name_no_page_spends_what_a_visitor_has(
    browser: Browser, tmp_path: Path, name: str, methods: tuple[str, ...]
) -> None:
    server = Server(hosts=(OURS,))
    async with stage(tmp_path, server=server, methods=methods) as running:
        mount = f"http://{OURS}:{running.proxy.port}{MOUNT}"
        at = running.site.at(name)
        given: dict[str, Any] = {"at": at, "site": at, "mount": mount, "session": None}
        visit = await browser.play("hostile.mjs", "attack", hostile=True, names=[OURS, PLAIN], **given)

        with_cookie = [arrival for arrival in running.arrivals if arrival.with_cookie and "/echo/" in arrival.path]
        assert len(with_cookie) > (20 if name == OURS else 0)
        assert {arrival.status for arrival in with_cookie} <= {403, 405}
        spent = visit.result["me"]["limits"]["submit"][0]
        assert spent["remaining"] == spent["limit"]
        # A GET without cookies is what curl sends too: it counts as its network's, where a plan has opened GET at all.
        assert {entry.method for entry in running.fal.app.journal} <= set(methods) - {"POST", "PUT"}
        assert {way for way, seen in visit.result["seen"].items() if seen is not None} == set()
