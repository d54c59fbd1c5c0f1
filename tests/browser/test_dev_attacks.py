"""Pages of strangers against `fal-proxy dev`, whose plan opens every method and whose page may ask for more than others."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from browser.chromium import Browser
from browser.stage import CROSS_SITE, SAME_SITE, strangers
from fal_proxy.demo.playground import TOKENS_MOUNT
from support.commands import clean_environment, running
from support.proxied import MOUNT

OWN = ["/demo/world.json", "/demo/trace.json", "/demo/fault"]  # what only the page of `dev` may ask
AT_HOME = ["fetch_credentials", "fetch_target", "image", "form_text"]  # as many as may run at a time


@dataclass(frozen=True)
class Dev:
    """A running `dev` and the access lines that it wrote."""

    url: str
    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def port(self) -> str:
        """The port that it listens on."""
        return self.url.rpartition(":")[2]

    def about_attacks(self) -> dict[str, str]:
        """Return what was decided of each attack, by its name."""
        found = [(str(line["endpoint"]), str(line["decision"])) for line in list(self.lines)]
        return {path.rpartition("/")[2]: decision for path, decision in found if path.startswith("emulator/echo/")}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """Run `dev` once for the module."""
    with running(["dev", "--port", "0"], tmp_path_factory.mktemp("dev"), clean_environment()) as started:
        dev = Dev(started.url)

        def read() -> None:
            assert started.process.stdout is not None
            for line in started.process.stdout:
                if line.startswith("{"):
                    dev.lines.append(json.loads(line))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield dev
        finally:
            started.process.terminate()
            reader.join()


@pytest.fixture
def dev(process: Dev) -> Dev:
    """Return the running `dev` without the lines of the tests before."""
    process.lines.clear()
    return process


@pytest.mark.parametrize("mount", [MOUNT, TOKENS_MOUNT])
@pytest.mark.parametrize("host", [SAME_SITE, CROSS_SITE])
async def test_no_page_of_strangers_can_spend_at_dev(browser: Browser, dev: Dev, host: str, mount: str) -> None:
    async with strangers(lambda: list(dev.about_attacks()), {}) as theirs:
        at = theirs.at(host)
        given: dict[str, Any] = {"at": at, "site": at, "mount": dev.url + mount, "session": None}
        visit = await browser.play("hostile.mjs", "attack", hostile=True, **given)

    assert {name for name, seen in visit.result["seen"].items() if seen is not None} == set()
    assert {dev.about_attacks()[name] for name in visit.result["delivered"]} == {"origin_denied"}
    me = visit.result["me"]
    assert me["budget"]["spent_microusd"] == me["budget"]["reserved_microusd"] == 0
    assert me["limits"]["submit"][0]["remaining"] == me["limits"]["submit"][0]["limit"]


async def test_a_page_of_devs_own_origin_can(browser: Browser, dev: Dev) -> None:
    async with strangers(lambda: list(dev.about_attacks()), {}) as theirs:
        mount = dev.url + MOUNT
        given: dict[str, Any] = {"at": f"{mount}/client.d.ts", "site": theirs.at(), "mount": mount, "session": None}
        visit = await browser.play("hostile.mjs", "attack", hostile=True, attacks=AT_HOME, **given)

    assert {name: dev.about_attacks()[name] for name in AT_HOME} == dict.fromkeys(AT_HOME, "admitted")
    assert visit.result["me"]["limits"]["submit"][0]["remaining"] < visit.result["me"]["limits"]["submit"][0]["limit"]
    assert visit.result["me"]["budget"]["spent_microusd"] > 0


@pytest.mark.parametrize("host", [SAME_SITE, CROSS_SITE])
async def test_what_only_devs_page_may_ask_is_not_for_strangers(browser: Browser, dev: Dev, host: str) -> None:
    urls = [dev.url + path for path in OWN]
    async with strangers(list, {}) as theirs:
        visit = await browser.play("hostile.mjs", "read", hostile=True, at=theirs.at(host), urls=urls)
        assert {seen for ways in visit.result.values() for seen in ways.values()} == {None}
        asked = [each for each in visit.requests if each.url in urls and each.status is not None]
        assert {each.status for each in asked} == {403}
        assert len(asked) > len(urls)
    assert httpx2.get(f"{dev.url}/demo/world.json", trust_env=False).json()["fault"] == "none"


async def test_devs_page_can_ask_it(browser: Browser, dev: Dev) -> None:
    urls = [dev.url + path for path in OWN]
    visit = await browser.play("hostile.mjs", "read", hostile=True, at=f"{dev.url}{MOUNT}/client.d.ts", urls=urls)

    assert "fpk_" in visit.result[urls[0]]["fetch_get"], "what strangers must not read: a key is among it"
    assert "exchanges" in visit.result[urls[1]]["fetch_get"]


async def test_dev_answers_to_no_name_but_loopbacks(browser: Browser, dev: Dev) -> None:
    paths = ["/", f"{MOUNT}/client.js", f"{TOKENS_MOUNT}/me", "/demo/trace.json"]
    for name in (CROSS_SITE, "rebound.example", "127.0.0.1.evil.localhost"):
        urls = [f"http://{name}:{dev.port}{path}" for path in paths]
        visit = await browser.play("hostile.mjs", "statuses", hostile=True, names=["rebound.example"], urls=urls)
        assert visit.result == [421] * len(urls), name
    for name in ("127.0.0.1", "localhost"):
        urls = [f"http://{name}:{dev.port}{path}" for path in ("/", f"{MOUNT}/client.js")]
        visit = await browser.play("hostile.mjs", "statuses", hostile=True, urls=urls)
        assert visit.result == [200] * len(urls), name
