"""The admin page's files: who gets them, what a browser may do with them, and that they hold nothing."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from fal_proxy import admin as package
from fal_proxy.admin import Admin
from fal_proxy.admin.console import page_files
from fal_proxy.environment import Secret
from fal_proxy.server import Listener, bind, serving
from fal_proxy.telemetry import Telemetry
from fal_proxy.upstream.dial import Dialer
from fal_proxy.upstream.engine import Engine
from support.operated import TOKEN
from support.raw import RawAnswer, raw_client, request

PAGE = Path(package.__file__).parent / "page"
FILES = ["/", *sorted(f"/page/{path.name}" for path in PAGE.iterdir() if path.name != "index.html")]
BROWSER = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}


@contextlib.asynccontextmanager
async def served(host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Serve the page as if the listener were on `host`; yield its port."""
    app = Admin(host, Secret(TOKEN), Telemetry(["default"], Engine(Dialer(1))).metrics)
    app.serve_page(page_files())
    async with serving(Listener(app, bind("127.0.0.1", 0))) as url:
        yield int(url.rpartition(":")[2])


async def ask(port: int, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> RawAnswer:
    async with raw_client(port) as client:
        await client.send(request(method, path, headers))
        return await client.answer()


async def test_browsers_get_the_page_and_programs_the_overview() -> None:
    async with served() as port:
        page, overview = await ask(port, "/", BROWSER), await ask(port, "/", {"Accept": "*/*"})
    assert page.one(b"content-type") == b"text/html; charset=utf-8"
    assert page.one(b"vary") == b"accept"
    assert msgspec.json.decode(overview.body)["name"] == "fal-proxy"


@pytest.mark.parametrize("path", FILES)
async def test_page_may_load_itself_and_nothing_else(path: str) -> None:
    async with served() as port:
        answer = await ask(port, path, BROWSER)
    assert answer.status == 200
    policy = (answer.one(b"content-security-policy") or b"").decode()
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.one(b"cross-origin-resource-policy") == b"same-origin"
    assert answer.one(b"x-content-type-options") == b"nosniff"
    assert answer.one(b"access-control-allow-origin") is None
    assert TOKEN.encode() not in answer.body


async def test_page_names_only_its_own_files_and_no_inline_code() -> None:
    text = (PAGE / "index.html").read_text("utf-8")
    assert set(re.findall(r'(?:src|href)="(/[^"]*)"', text)) <= set(FILES)
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)
    scripts = "".join(path.read_text("utf-8") for path in PAGE.glob("*.js"))
    assert not re.search(
        r"innerHTML|insertAdjacentHTML|document\.write|localStorage|sessionStorage|document\.cookie", scripts
    )


OFF_LOOPBACK = [
    ("/", BROWSER, 200, "the page's own files hold nothing, and a browser could not send the token with them"),
    ("/page/main.js", {}, 200, "the same"),
    ("/", {}, 401, "the overview tells something"),
    ("/metrics", BROWSER, 401, "so do the metrics"),
    ("/usage", BROWSER, 401, "and this is no route here, which is not told either"),
    ("/", {**BROWSER, "Host": "evil.example"}, 421, "a rebound name"),
    ("/page/main.js", {"Origin": "https://evil.example"}, 403, "another page"),
]


@pytest.mark.parametrize(("path", "headers", "code", "why"), OFF_LOOPBACK, ids=[case[3] for case in OFF_LOOPBACK])
async def test_off_loopback_only_the_pages_files_need_no_token(
    path: str, headers: dict[str, str], code: int, why: str
) -> None:
    async with served("10.0.0.5") as port:
        answer = await ask(port, path, {"Host": "10.0.0.5:9090", **headers})
    assert answer.status == code, why


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_page_takes_get_alone(method: str) -> None:
    async with served() as port:
        assert (await ask(port, "/", BROWSER, method)).status == 405
        assert (await ask(port, "/page/main.js", BROWSER, method)).status == 404
