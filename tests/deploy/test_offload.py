"""Files of fal's CDN fetched by nginx itself: the proxy only judges, and callers notice nothing but speed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from fal_proxy.emulator import Entry
from support.proxied import MOUNT
from support.raw import RawAnswer
from support.replicas import Deployment, deployed, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
CONTENT = b"0123456789" * 1000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    """Run a deployment whose nginx offloads."""
    async with deployed("nginx", tmp_path_factory.mktemp("site"), offload=True) as running:
        yield running


async def stored(site: Deployment, content_type: str = "image/png", name: str = "a.png") -> str:
    """Upload through nginx and proxy; return the file's path below the mount."""
    start = await site.ask(
        "POST",
        "/rest.fal.ai/storage/upload/initiate?storage_type=fal-cdn-v3",
        body=json.dumps({"content_type": content_type, "file_name": name}),
    )
    told = json.loads(start.body)
    path = told["upload_url"].removeprefix(site.front.url + MOUNT)
    put = await site.ask("PUT", path, None, body=CONTENT.decode(), Content_Type=content_type)
    assert put.status == 200, put
    return str(told["file_url"]).removeprefix(site.fal.url)


def read_by(site: Deployment) -> Entry:
    """Return the last read of a file as fal's CDN saw it."""
    return next(entry for entry in reversed(site.fal.app.journal) if entry.method in ("GET", "HEAD"))


async def read(site: Deployment, path: str, plan: str | None = "default", **fields: str) -> tuple[RawAnswer, Entry]:
    """Read a file."""
    answer = await site.ask("GET", path, plan, Content_Type="", **fields)
    return answer, read_by(site)


async def test_a_file_comes_from_nginx_and_its_judgement_from_the_proxy(site: Deployment) -> None:
    path = await stored(site)
    for replica in site.replicas:
        replica.lines.clear()
    answer, entry = await read(site, path, Cookie="session=secret")
    assert (answer.status, answer.body, answer.one(b"content-type")) == (200, CONTENT, b"image/png")
    assert entry.header("x-fal-client-proxy") is None, "the proxy did not fetch it"
    assert {name.decode() for name, _ in entry.headers} <= {
        "host",
        "accept-encoding",
        "accept",
        "user-agent",
        "connection",
    }
    assert f"/{entry.host}{entry.target.decode()}" == path

    def told() -> list[tuple[object, object]]:
        lines = [line for replica in site.replicas for line in replica.lines if line["kind"] == "file"]
        return [(line["status"], line["bytes_down"]) for line in lines]

    await until(lambda: bool(told()))
    assert told() == [(204, 0)]


async def test_parts_and_versions_of_a_file_are_what_the_cdn_says(site: Deployment) -> None:
    path = await stored(site)
    part, _ = await read(site, path, Range="bytes=5-9")
    assert (part.status, part.body, part.one(b"content-range")) == (206, b"56789", b"bytes 5-9/10000")
    whole, _ = await read(site, path)
    etag = (whole.one(b"etag") or b"").decode()
    known, _ = await read(site, path, If_None_Match=etag)
    assert (known.status, known.body, known.one(b"content-type")) == (304, b"", None)


@pytest.mark.parametrize("type_", ["text/html", "image/svg+xml", "application/xhtml+xml"])
async def test_markup_never_runs_on_the_apps_origin(site: Deployment, type_: str) -> None:
    path = await stored(site, "text/plain", "a.txt")
    file = site.fal.app._world.files.find(path.removeprefix("/v3b.fal.media"))
    assert file is not None
    file.content_type = type_  # uploads of such types are refused; fal's own apps may make them
    answer, entry = await read(site, path)
    assert entry.header("x-fal-client-proxy") is None
    assert (answer.one(b"content-type") or b"").split(b";")[0] == b"text/plain"
    assert answer.one(b"content-security-policy") == b"sandbox; default-src 'none'"
    assert answer.one(b"x-content-type-options") == b"nosniff"


async def test_an_answer_says_what_the_proxys_own_would_say(site: Deployment) -> None:
    path = await stored(site)
    origin = site.front.url
    answer, _ = await read(site, path, None, Origin=origin)
    assert answer.one(b"access-control-allow-origin") == origin.encode()
    assert answer.one(b"access-control-allow-credentials") == b"true"
    assert answer.one(b"cross-origin-resource-policy") == b"same-origin"
    assert (answer.one(b"set-cookie") or b"").startswith(b"__Host-fal_proxy_anon="), "a browser's first answer"
    assert answer.one(b"x-fal-proxy-file") is None


SPOKEN_FOR_US = {
    "x-accel-redirect": "/_authorize",
    "set-cookie": "session=stolen",
    "strict-transport-security": "max-age=31536000",
    "access-control-allow-origin": "*",
    "content-security-policy": "script-src *",
    "location": "https://evil.example",
    "clear-site-data": "*",
    "x-fal-cdn-token": "a token",
}


async def test_nothing_that_the_cdn_says_speaks_for_the_apps_origin(
    site: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cdn = await stored(site), site.fal.app._cdn
    serve = cdn.serve

    async def hostile(exchange: Any) -> Any:
        answer = await serve(exchange)
        answer.headers += list(SPOKEN_FOR_US.items())
        return answer

    monkeypatch.setattr(cdn, "serve", hostile)
    answer, entry = await read(site, path)
    assert (answer.status, answer.body, entry.header("x-fal-client-proxy")) == (200, CONTENT, None)
    for name, value in SPOKEN_FOR_US.items():
        assert value.encode() not in [given for key, given in answer.headers if key == name.encode()], name


REFUSED = [
    ({"Authorization": "Bearer fpk_wrong"}, None, 401, "unidentified"),
    ({"Sec_Fetch_Site": "cross-site"}, None, 403, "origin_denied"),
    ({"Origin": "https://evil.example"}, None, 403, "origin_denied"),
]


@pytest.mark.parametrize(("fields", "plan", "status", "error"), REFUSED)
async def test_a_refusal_is_the_proxys_own_and_reaches_nobody(
    site: Deployment, fields: dict[str, str], plan: str | None, status: int, error: str
) -> None:
    path = await stored(site)
    site.fal.app.journal.clear()
    answer = await site.ask("GET", path, plan, **fields)
    assert (answer.status, json.loads(answer.body)["error_type"]) == (status, error)
    assert not site.fal.app.journal


async def test_what_is_not_there_is_told_in_the_proxys_words(site: Deployment) -> None:
    answer, entry = await read(site, "/v3b.fal.media/files/b/nothing.png")
    assert answer.status == 404
    assert (entry.header("x-fal-client-proxy") or "").startswith("fal-proxy/"), "the second question was the proxy's"
    escaped = await site.ask("GET", "/v3b.fal.media/files/%2e%2e/x")
    assert json.loads(escaped.body)["error_type"] == "invalid_target"


async def test_nobody_reaches_the_question_itself(site: Deployment) -> None:
    for path in ("/_authorize", MOUNT + "/_authorize"):
        async with site.open() as client:
            await client.send(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{site.front.port}\r\n\r\n".encode())
            assert (await client.answer()).status in (400, 404)
    path = await stored(site)
    asked = await site.ask("GET", "/authorize", X_Original_URI=MOUNT + path, X_Original_Method="GET")
    assert asked.one(b"x-fal-proxy-file") == f"{site.fal.url}{path}".encode(), (
        "an address that the caller knows, and no more"
    )
