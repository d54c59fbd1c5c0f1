"""`GET <mount>/authorize`: exactly the verdict that the relay gives to the same read, for trusted proxies, with no secret in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from fal_proxy.settings import Cors, Settings
from support.proxied import FAL_KEY_ID, FAL_KEY_SECRET, MOUNT, with_server
from support.raw import RawAnswer, raw_client, request
from support.storage import Page, page, relaying

AUTHORIZE = MOUNT + "/authorize"
PAGE = "https://app.example.com"
FILE = MOUNT + "/v3b.fal.media/files/b/1/x.png"


def offloading(folder: Path, trusted: str = "127.0.0.1", *, serve_files: bool = True) -> Settings:
    """Return settings that serve files and believe a proxy."""
    settings = with_server(relaying(folder, serve_files=serve_files), trusted_proxies=(trusted,))
    return msgspec.structs.replace(settings, cors=Cors(origins=(PAGE,)))


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Page]:
    async with page(tmp_path, offloading(tmp_path)) as running:
        yield running


async def asked(app: Page, method: str, uri: str, headers: dict[str, str] | None = None) -> RawAnswer:
    """Ask as nginx does."""
    original = {"X-Original-URI": uri, "X-Original-Method": method}
    return await app.ask("GET", AUTHORIZE, (headers or {}) | original)


KEY = {"Authorization": "a key"}  # replaced by the one that the proxy knows
VERDICTS: list[tuple[str, str, dict[str, str], str]] = [
    ("GET", FILE, {}, "no browser"),
    ("GET", FILE, KEY, "a key"),
    ("HEAD", FILE, KEY, "its head"),
    ("GET", FILE + "?download=1", KEY, "a query"),
    ("GET", FILE, {"Authorization": "Bearer fpk_wrong"}, "a key that is not known"),
    ("GET", FILE, {"Sec-Fetch-Site": "same-origin"}, "a picture on our page"),
    ("GET", FILE, {"Sec-Fetch-Site": "cross-site"}, "on somebody else's"),
    ("GET", FILE, {"Origin": PAGE}, "a page that is listed"),
    ("GET", FILE, {"Origin": "https://evil.example"}, "and one that is not"),
    ("GET", FILE, {"Cookie": "fal_proxy_anon=forged"}, "a cookie that is not ours"),
    ("GET", FILE, KEY | {"Host": "elsewhere.example"}, "another name"),
    ("GET", MOUNT + "/v3b.fal.media/files/../x", KEY, "a path that is not canonical"),
    ("GET", MOUNT + "/v3b.fal.media/files/%2e%2e/x", KEY, "the same, escaped"),
    ("GET", MOUNT + "//v3b.fal.media/files/x", KEY, "an empty segment"),
    ("GET", MOUNT + "/evil.example/files/x", KEY, "a host that is not listed"),
    ("GET", MOUNT + "/V3B.fal.media/files/x", KEY, "a spelling of one that is"),
]


@pytest.mark.parametrize(("method", "uri", "headers", "reason"), VERDICTS, ids=[row[3] for row in VERDICTS])
async def test_authorize_says_what_the_relay_would(
    app: Page, method: str, uri: str, headers: dict[str, str], reason: str
) -> None:
    given = headers | (
        {"Authorization": app.proxy.bearer["Authorization"]} if headers.get("Authorization") == "a key" else {}
    )
    verdict = await asked(app, method, uri, given)
    dialled = len(app.fal.app.journal)
    assert dialled == 0, "it asks nobody"
    # The relay answers a GET here even for HEAD: only what was decided is compared.
    relayed = await app.ask("GET", uri, given)
    if app.fal.app.journal:
        assert verdict.status == 204, reason
        [entry] = app.fal.app.journal
        path = uri.removeprefix(MOUNT)
        assert verdict.one(b"x-fal-proxy-file") == f"{app.fal.url}{path}".encode()
        assert f"/{entry.host}{entry.target.decode()}" == path, "and the relay asked for the same"
    else:
        error = verdict.one(b"x-fal-error-type"), verdict.status
        assert error == (relayed.one(b"x-fal-error-type"), relayed.status), reason
        assert verdict.one(b"x-fal-proxy-file") is None
    for name in (b"access-control-allow-origin", b"access-control-allow-credentials", b"cross-origin-resource-policy"):
        assert verdict.one(name) == relayed.one(name), name


NEVER = [
    ("POST", "/fal.run/fal-ai/flux/dev", "a paid call"),
    ("GET", "/fal.run/fal-ai/flux/dev", "the same, where a plan lists GET"),
    ("GET", "/queue.fal.run/fal-ai/flux/requests/764cabcf-b745-4b3e-ae38-1200304cf45b/status", "needs the key"),
    ("GET", "/queue.fal.run/fal-ai/flux/requests/764cabcf-b745-4b3e-ae38-1200304cf45b", "settles"),
    ("GET", "/rest.fal.ai/tokens/", "a token"),
    ("POST", "/v3.fal.media/files/upload", "an upload"),
    ("PUT", "/v3.fal.media/files/b/1/x/multipart/id/1", "a part of one"),
    ("GET", "/me", "a route of ours"),
    ("GET", "/uploads/x", "a capability"),
    ("GET", "/authorize", "itself"),
]


@pytest.mark.parametrize(("method", "path", "reason"), NEVER)
async def test_nothing_but_the_read_of_a_file_is_authorised(app: Page, method: str, path: str, reason: str) -> None:
    answer = await asked(app, method, MOUNT + path, app.proxy.bearer)
    assert 400 <= answer.status < 500, reason
    assert answer.one(b"x-fal-proxy-file") is None
    assert not app.fal.app.journal


async def test_the_answer_holds_no_secret_and_no_body(app: Page) -> None:
    answer = await asked(app, "GET", FILE, app.proxy.bearer)
    held = b"".join(name + value for name, value in answer.headers) + answer.body
    for secret in (FAL_KEY_ID, FAL_KEY_SECRET, app.proxy.user_key):
        assert secret.encode() not in held
    assert answer.body == b""


async def test_who_is_no_trusted_proxy_learns_nothing(tmp_path: Path) -> None:
    async with page(tmp_path, offloading(tmp_path, trusted="192.0.2.1")) as app:
        answer = await asked(app, "GET", FILE, app.proxy.bearer)
        assert (answer.status, answer.one(b"x-fal-error-type")) == (404, b"not_found")


async def test_without_serve_files_nothing_is_authorised(tmp_path: Path) -> None:
    async with page(tmp_path, offloading(tmp_path, serve_files=False)) as app:
        answer = await asked(app, "GET", FILE, app.proxy.bearer)
        assert (answer.status, answer.one(b"x-fal-error-type")) == (403, b"mode_off")


MALFORMED = [
    ({}, 400, "nothing of the request"),
    ({"X-Original-URI": FILE}, 400, "no method"),
    ({"X-Original-Method": "GET"}, 400, "no address"),
    ({"X-Original-URI": "https://v3b.fal.media/x", "X-Original-Method": "GET"}, 400, "an absolute address"),
    ({"X-Original-URI": MOUNT, "X-Original-Method": "GET"}, 400, "the bare mount"),
    ({"X-Original-URI": FILE, "X-Original-Method": "get"}, 400, "methods have a case"),
    (
        {"X-Original-URI": FILE, "X-Original-Method": "GET", "X-Fal-Target-Url": "https://fal.run/a/b"},
        400,
        "a second target",
    ),
]


@pytest.mark.parametrize(("headers", "status", "reason"), MALFORMED)
async def test_a_question_that_is_not_whole_is_refused(
    app: Page, headers: dict[str, str], status: int, reason: str
) -> None:
    assert (await app.ask("GET", AUTHORIZE, app.proxy.bearer | headers)).status == status, reason


async def test_the_route_takes_get_without_a_query(app: Page) -> None:
    original = {"X-Original-URI": FILE, "X-Original-Method": "GET"}
    for method, path in (("POST", AUTHORIZE), ("GET", AUTHORIZE + "?x=1")):
        assert (await app.ask(method, path, app.proxy.bearer | original)).status == 405


@pytest.mark.parametrize("lines", [1, 2, 3])
async def test_of_two_credentials_authorize_believes_neither_as_the_relay_does(app: Page, lines: int) -> None:
    """Two fields of nginx's own are taken away before it is judged: what is left is counted anew."""
    given = [("Authorization", "Bearer nonsense")] * lines
    given.append(("Authorization", app.proxy.bearer["Authorization"]))
    for path, more in ((AUTHORIZE, [("X-Original-URI", FILE), ("X-Original-Method", "GET")]), (FILE, [])):
        async with raw_client(app.proxy.port) as client:
            await client.send(request("GET", path, [*more, *given]))
            assert (await client.answer()).status == 401, path
