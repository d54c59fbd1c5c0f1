"""What upstream answers, and what strangers uploaded, runs nowhere on the proxy's origin, however it is opened.

The same bytes from a plain server run: the payloads work, and it is the proxy that takes their teeth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from browser.chromium import Browser, Visit
from browser.sites import html, site
from browser.stage import ambient_settings
from fal_proxy.settings import Storage
from support.emulated import emulated
from support.proxied import proxied
from support.services import Asked, Reply, Service, served

SAYS = "console.log('RAN NAME on ' + self.origin)"
PAGE = f'<!doctype html><title>x</title><img src=data:, onerror="{SAYS}"><script>{SAYS}</script>'
SVG = f'<svg xmlns="http://www.w3.org/2000/svg"><script>{SAYS}</script></svg>'
XML = f'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><script>{SAYS}</script></html>'
PART = f"--b\r\nContent-Type: text/html\r\n\r\n{PAGE}\r\n--b--\r\n"
# What is answered: a name, the Content-Type lines, the body, and whether a plain server's copy runs.
ANSWERS: list[tuple[str, list[str], str, bool]] = [
    ("html", ["text/html"], PAGE, True),
    ("html-last", ["text/plain, text/html"], PAGE, True),
    ("html-second", ["text/plain", "text/html"], PAGE, True),
    ("html-first", ['text/html;x="', "text/plain"], PAGE, True),
    ("nothing", [], PAGE, True),
    ("unknown", ["unknown/unknown"], PAGE, True),
    ("plain", ["text/plain"], PAGE, False),
    ("json", ["application/json"], PAGE, False),
    ("png", ["image/png"], PAGE, False),
    ("svg", ["image/svg+xml"], SVG, True),
    ("xhtml", ["application/xhtml+xml"], XML, True),
    ("xml", ["text/xml"], XML, True),
    ("parts", ["multipart/x-mixed-replace; boundary=b"], PART, False),
    ("script", ["text/javascript"], SAYS, True),
    ("script-untyped", [], SAYS, True),
    ("script-legacy", ["text/livescript"], SAYS, True),
    ("style", ["text/css"], ":root { --ran: NAME }", False),
]
BODIES = {name: (lines, body.replace("NAME", name)) for name, lines, body, _ in ANSWERS}
RUNS = {name for name, _, _, runs in ANSWERS if runs}


LINKED = ("html", "nothing", "svg", "xhtml")  # each takes a while


def payload(asked: Asked) -> Reply:
    """Answer with the payload that the path's last segment names."""
    name = asked.path.partition("?")[0].rpartition("/")[2]
    if name not in BODIES:
        return html() if asked.path == "/" else Reply(404)
    lines, body = BODIES[name]
    # What else might make a document of it, or give it power.
    extra = ((b"content-disposition", b"inline"), (b"service-worker-allowed", b"/"), (b"x-content-type-options", b"no"))
    return Reply(200, body.encode(), (*((b"content-type", line.encode()) for line in lines), *extra))


def ran(visit: Visit) -> set[str]:
    """Return which payloads said something, and where."""
    return {line["text"].removeprefix("RAN ") for line in visit.console if line["text"].startswith("RAN ")}


async def test_the_payloads_run_where_nobody_minds(browser: Browser) -> None:
    async with site({}, payload) as strangers:
        urls = [strangers.at(path=f"/{name}") for name in BODIES]
        visit = await browser.play("stored.mjs", "open", hostile=True, at=strangers.at(path="/"), urls=urls, linked=[])

    assert {said.partition(" ")[0] for said in ran(visit)} == RUNS
    assert {said.partition(" on ")[2] for said in ran(visit)} == {strangers.at()}
    assert visit.result["registered"] > 0
    assert visit.result["styled"] == "style"


@pytest.mark.parametrize("path", ["fal.run/strangers/app", "v3.fal.media/files/strangers"], ids=["answers", "files"])
async def test_nothing_of_upstreams_runs_on_the_proxys_origin(browser: Browser, tmp_path: Path, path: str) -> None:
    settings = ambient_settings(tmp_path, "anonymous", storage=Storage(mode="relay", serve_files=True))
    async with served(Service(payload)) as upstream, proxied(upstream, tmp_path, settings) as proxy:
        urls = [f"{proxy.url}/{path}/{name}" for name in BODIES]
        linked = [url for url in urls if url.endswith(tuple(f"/{name}" for name in LINKED))]
        at = f"{proxy.url}/client.d.ts"
        visit = await browser.play("stored.mjs", "open", hostile=True, at=at, urls=urls, linked=linked)

    assert ran(visit) == set()
    assert visit.result == {"registered": 0, "styled": ""}
    answered = {request.url for request in visit.requests if request.status == 200 and request.url in urls}
    assert answered == set(urls), "each of them was answered, and with what upstream said"
    frames = {request.url for request in visit.requests if request.type == "document" and request.status == 200}
    assert frames >= set(urls)


UPLOADS = [
    ("image/png", "cat.png", PAGE, {"begun": 200, "sent": 422}, "what begins as a page is no picture"),
    ("image/svg+xml", "cat.svg", SVG, {"begun": 200, "sent": 200}, "a drawing is what it says it is"),
    ("text/html", "cat.html", PAGE, {"begun": 200, "sent": 200}, "so is a page"),
    ("text/javascript", "cat.js", SAYS, {"begun": 200, "sent": 200}, "and a script"),
]


@pytest.mark.parametrize(("kind", "name", "body", "fares", "reason"), UPLOADS)
async def test_what_was_uploaded_runs_nowhere(
    browser: Browser, tmp_path: Path, kind: str, name: str, body: str, fares: dict[str, int], reason: str
) -> None:
    settings = ambient_settings(tmp_path, "anonymous", storage=Storage(mode="relay", serve_files=True))
    async with emulated() as fal, proxied(fal.url, tmp_path, settings) as proxy:
        given: dict[str, Any] = {"mount": proxy.url, "type": kind, "name": name, "body": body}
        visit = await browser.play("stored.mjs", "upload", hostile=True, **given)
        file = visit.result.pop("file", None)
        assert visit.result == fares, reason
        puts = [entry for entry in fal.app.journal if entry.method == "PUT"]
        assert len(puts) == (fares["sent"] == 200)
        if not puts:
            return
        url = proxy.url + file.removeprefix(fal.url)
        at = f"{proxy.url}/client.d.ts"
        visit = await browser.play("stored.mjs", "open", hostile=True, at=at, urls=[url], linked=[url])

    assert ran(visit) == set()
    assert visit.result == {"registered": 0, "styled": ""}
    types = {request.type for request in visit.requests if request.url == url and request.status == 200}
    assert types >= {"document", "script"}
