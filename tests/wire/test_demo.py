"""The page of `dev` on the wire: to whom it answers, what it lets a page load, and what only the page may ask."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio

from fal_proxy.demo import FAULTS, Demo
from fal_proxy.demo.playground import TOKENS_MOUNT, Playground, open_playground
from fal_proxy.downstream.websocket import SocketProtocol
from fal_proxy.emulator import Emulator, parse_faults
from fal_proxy.server import Listener, bind, serving
from support.emulated import emulated
from support.lines import Lines
from support.proxied import MOUNT, proxied
from support.raw import raw_client, request

QUESTIONS = ["/demo/world.json", "/demo/trace.json"]
RUN = {"x-fal-target-url": "https://fal.run/fal-ai/flux/schnell", "content-type": "application/json"}


@dataclass(frozen=True)
class Staged:
    """A page, what is behind it, and somebody who asks."""

    url: str
    playground: Playground
    fal: Emulator
    client: httpx2.AsyncClient

    @property
    def port(self) -> int:
        """The page's port."""
        return int(self.url.rpartition(":")[2])

    async def breaks(self, body: str, **headers: str) -> httpx2.Response:
        """Tell fal to fail."""
        given = {"content-type": "application/json", "origin": self.url, **headers}
        return await self.client.post("/demo/fault", content=body.encode(), headers=given)


@pytest_asyncio.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Staged]:
    """Serve the page in front of an emulator, as `dev` does."""
    async with emulated(speed=100) as fal:
        playground = open_playground(tmp_path, fal.url)

        def break_fal(faults: str) -> None:
            fal.app.faults[:] = parse_faults(faults)

        demo = Demo(playground, fal.app.journal, break_fal)
        async with (
            serving(Listener(demo, bind("127.0.0.1", 0), websockets=SocketProtocol)) as url,
            httpx2.AsyncClient(base_url=url, trust_env=False) as client,
        ):
            yield Staged(url, playground, fal.app, client)


async def test_page_may_load_its_own_and_fals_pictures_and_nothing_else(stage: Staged) -> None:
    page = await stage.client.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    fal = stage.playground.fal_url
    assert page.headers["content-security-policy"].split("; ") == [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        f"connect-src 'self' {stage.url.replace('http', 'ws')} {fal.replace('http', 'ws')}",
        f"img-src 'self' data: blob: {fal}",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    assert page.headers["cross-origin-opener-policy"] == "same-origin"
    again = await stage.client.get("/", headers={"if-none-match": page.headers["etag"]})
    assert (again.status_code, "content-security-policy" in again.headers) == (304, True)
    for path in re.findall(r'(?:src|href)="(/demo/[^"]+)"', page.text):
        file = await stage.client.get(path)
        assert file.status_code == 200, path
        assert file.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in file.headers


@pytest.mark.parametrize("path", ["/", "/demo/main.js", *QUESTIONS])
async def test_page_answers_literal_loopback_names_only(stage: Staged, path: str) -> None:
    for host in (f"127.0.0.1:{stage.port}", f"localhost:{stage.port}", f"[::1]:{stage.port}"):
        assert (await stage.client.get(path, headers={"host": host})).status_code == 200
    for host in ("evil.example", f"localhost.evil.example:{stage.port}", "127.0.0.1.nip.io", "0.0.0.0", "127.0.0.2"):
        answer = await stage.client.get(path, headers={"host": host})
        assert (answer.status_code, answer.json()["error_type"]) == (421, "misdirected_host")
    async with raw_client(stage.port) as raw:
        await raw.send(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n\r\n".encode())
        assert (await raw.answer()).status == 400


async def test_what_is_no_request_leaves_a_line_behind_the_page_too(stage: Staged, lines: Lines) -> None:
    async with raw_client(stage.port) as raw:
        await raw.send(b"\x16\x03\x01")
        assert (await raw.answer()).status == 400
    [line] = await lines.exactly(1)
    assert (line["decision"], line["ending"]) == ("bad_request", "refused")


@pytest.mark.parametrize("path", QUESTIONS)
@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({}, 200, "curl, and browsers before Sec-Fetch-Site"),
        ({"sec-fetch-site": "same-origin"}, 200, "the page itself"),
        ({"origin": "http://evil.example"}, 403, "another origin's fetch"),
        ({"origin": "null"}, 403, "a sandboxed frame"),
        ({"origin": "http://localhost:1"}, 403, "another port of this machine"),
        ({"sec-fetch-site": "cross-site"}, 403, "another site's script or image"),
        ({"sec-fetch-site": "same-site"}, 403, "another port of this machine"),
        ({"sec-fetch-site": "none"}, 403, "nobody needs it in the address bar"),
    ],
)
async def test_only_the_page_may_ask(
    stage: Staged, path: str, headers: dict[str, str], status: int, reason: str
) -> None:
    answer = await stage.client.get(path, headers=headers)
    assert answer.status_code == status, reason
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "no-store"
    assert status == 200 or "fpk_" not in answer.text


async def test_faults_strike_and_are_mended(stage: Staged) -> None:
    expected = {"none": 200, "429": 429, "422": 422, "cut": 500}
    assert set(expected) | {"stall"} == set(FAULTS)
    for fault, status in (*expected.items(), ("none", 200)):
        told = await stage.breaks(json.dumps({"fault": fault}))
        assert (told.status_code, told.json()) == (200, {"fault": fault})
        assert (await stage.client.get("/demo/world.json")).json()["fault"] == fault
        answer = await stage.client.post(MOUNT, json={"prompt": "a pier", "image_size": "square"}, headers=RUN)
        assert answer.status_code == status, fault


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "none"])
def test_faults_never_strike_pictures_or_tokens(fault: str) -> None:
    for name in ("v3b.fal.media/files/b/x.jpg", "rest.fal.ai/tokens/", "rest.fal.ai/storage/upload/initiate"):
        assert not any(parsed.matches([name]) for parsed in parse_faults(FAULTS[fault])), name


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        ('{"fault": "429"}', {"origin": "http://evil.example"}, 403, "another page"),
        ('{"fault": "429"}', {"origin": "null"}, 403, "a form in a sandboxed frame"),
        ('{"fault": "429"}', {"sec-fetch-site": "cross-site"}, 403, "a page that says so"),
        ('{"fault": "429"}', {"content-type": "text/plain"}, 400, "a form can send this without a preflight"),
        ('{"fault": "**:status=500"}', {}, 400, "not one of the list"),
        ('{"fault": ["429"]}', {}, 400, "no name at all"),
        ("[]", {}, 400, "no object"),
        ("{", {}, 400, "no JSON"),
        (" " * 2000, {}, 413, "too long"),
    ],
)
async def test_nobody_else_breaks_fal(
    stage: Staged, body: str, headers: dict[str, str], status: int, reason: str
) -> None:
    answer = await stage.breaks(body, **headers)
    assert answer.status_code == status, reason
    assert stage.fal.faults == []


async def test_breaking_fal_needs_an_origin_and_a_post(stage: Staged) -> None:
    body = b'{"fault": "429"}'
    silent = await stage.client.post("/demo/fault", content=body, headers={"content-type": "application/json"})
    assert (silent.status_code, stage.fal.faults) == (403, [])
    asked = await stage.client.get("/demo/fault")
    assert (asked.status_code, asked.headers["allow"]) == (405, "POST")
    posted = await stage.client.post("/demo/trace.json", headers={"origin": stage.url})
    assert (posted.status_code, posted.headers["allow"]) == (405, "GET")


async def test_trace_shows_what_reached_fal_without_its_key(stage: Staged) -> None:
    key = stage.playground.fal_key.reveal()
    given = {"prompt": "a pier", "leak": key}
    headers = RUN | {"authorization": f"Bearer {stage.playground.user_key}"}
    answer = await stage.client.post(MOUNT, json=given, headers=headers)
    assert answer.status_code == 200
    [entry] = stage.fal.journal
    assert entry.header("authorization") == f"Key {key}", "fal has it"

    text = (await stage.client.get("/demo/trace.json")).text
    [shown] = json.loads(text)["exchanges"]
    assert shown["status"] == 200
    assert json.loads(shown["browser"]["body"]) == {"prompt": "a pier", "leak": "••••••••"}
    assert ["authorization", "Key ••••••••"] in shown["fal"]["headers"]
    assert ["authorization", "Bearer fpk_••••••••"] in shown["browser"]["headers"]
    for secret in (key, *key.split(":"), stage.playground.user_key):
        assert secret not in text


async def test_second_mount_hands_out_fals_tokens_and_shares_the_books(stage: Staged) -> None:
    headers = {
        "authorization": f"Bearer {stage.playground.user_key}",
        "x-fal-target-url": "https://rest.fal.ai/tokens/realtime",
    }
    body = {"allowed_apps": ["lcm-sd15-i2i"], "duration": 60}
    ours = await stage.client.post(MOUNT, json=body, headers=headers)
    fals = await stage.client.post(TOKENS_MOUNT, json=body, headers=headers)
    assert (ours.status_code, fals.status_code) == (201, 201)
    assert [entry.target for entry in stage.fal.journal] == [b"/tokens/realtime"], "a ticket is never asked of fal"
    me = [
        (await stage.client.get(f"{mount}/me", headers=headers)).json()["budget"]["spent_microusd"]
        for mount in (MOUNT, TOKENS_MOUNT)
    ]
    assert me == [60_000, 60_000]


@pytest.mark.parametrize("path", ["/", "/demo/main.js", "/demo/fault", *QUESTIONS])
async def test_the_proxy_itself_knows_nothing_of_the_page(tmp_path: Path, path: str) -> None:
    async with proxied("http://127.0.0.1:9", tmp_path) as proxy, raw_client(proxy.port) as raw:
        await raw.send(request("GET", path))
        answer = await raw.answer()
    assert (answer.status, json.loads(answer.body)["error_type"]) == (404, "not_found")
