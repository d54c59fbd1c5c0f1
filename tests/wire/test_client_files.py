"""The realtime shim and its types on the wire: for every page, for no caller in particular, always this version's."""

from __future__ import annotations

import msgspec
import pytest

from fal_proxy import client
from fal_proxy.settings import Cors, Identity, Settings
from support.lines import Lines
from support.peers import Serve
from support.proxied import MOUNT, Proxy, StartProxy
from support.raw import RawAnswer, raw_client, request
from support.scripts import answering, ok

SCRIPT = client.FILES[b"/client.js"]
TAG = SCRIPT.etag.decode()
LISTED = "https://app.example"


@pytest.fixture
async def proxy(settings: Settings, serve: Serve, start: StartProxy) -> Proxy:
    """A proxy that knows key holders only: nobody without a key is anybody here."""
    only_keys = Identity(("key",), key=settings.identity.key)
    return await start(
        serve(answering(ok())), msgspec.structs.replace(settings, identity=only_keys, cors=Cors(origins=(LISTED,)))
    )


async def ask(proxy: Proxy, method: str, path: str, *headers: tuple[str, str]) -> RawAnswer:
    """Send one request below the mount, and another behind it, which finds the connection in order."""
    async with raw_client(proxy.port) as caller:
        await caller.send(request(method, MOUNT + path, list(headers)))
        answer = await caller.answer(bodiless=method == "HEAD")
        await caller.send(request("GET", "/healthz"))
        assert (await caller.answer()).status == 200
    return answer


PAGES = [
    ([], "curl"),
    ([("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site")], "a page of anybody's, as a module script"),
    ([("Origin", "null")], "a page in a sandbox"),
    ([("Origin", LISTED)], "a listed page: still `*`, so that one cached answer fits all"),
    ([("Authorization", "Bearer fpk_nobody")], "a credential of nobody's: nobody looks at it"),
    ([("Origin", "http://127.0.0.1"), ("Sec-Fetch-Site", "same-origin"), ("Cookie", "a=b")], "our own page"),
]


@pytest.mark.parametrize(
    ("path", "content_type"),
    [("/client.js", b"text/javascript; charset=utf-8"), ("/client.d.ts", b"text/plain; charset=utf-8")],
)
@pytest.mark.parametrize(("headers", "reason"), PAGES)
async def test_every_page_may_load_the_shim_without_being_anybody(
    path: str, content_type: bytes, headers: list[tuple[str, str]], reason: str, proxy: Proxy
) -> None:
    answer = await ask(proxy, "GET", path, *headers)
    assert (answer.status, answer.complete) == (200, True), reason
    assert answer.body == client.FILES[path.encode()].content
    assert answer.one(b"content-type") == content_type
    assert answer.one(b"access-control-allow-origin") == b"*"
    assert answer.one(b"access-control-allow-credentials") is None
    assert answer.one(b"cross-origin-resource-policy") == b"cross-origin"
    assert answer.one(b"x-content-type-options") == b"nosniff"
    assert answer.one(b"cache-control") == b"no-cache"
    assert answer.one(b"set-cookie") is None


async def test_head_says_what_get_would(proxy: Proxy) -> None:
    answers = [await ask(proxy, method, "/client.js") for method in ("GET", "HEAD")]
    fields = [{name: value for name, value in answer.headers if name != b"date"} for answer in answers]
    assert fields[0] == fields[1]
    assert fields[0][b"content-length"] == b"%d" % len(SCRIPT.content)


KNOWN = [
    (TAG, 304, "the same"),
    (f"W/{TAG}", 304, "weakened on its way by a proxy that compressed it"),
    (f'"other", {TAG}', 304, "one of several"),
    ("*", 304, "any version at all"),
    ('"other"', 200, "another version"),
    (TAG.strip('"'), 200, "no tag without quotes"),
    ("", 200, "an empty field"),
]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("tags", "status", "reason"), KNOWN)
async def test_page_that_has_this_version_is_not_sent_it_again(
    method: str, tags: str, status: int, reason: str, proxy: Proxy
) -> None:
    answer = await ask(proxy, method, "/client.js", ("If-None-Match", tags))
    assert answer.status == status, reason
    assert answer.one(b"etag") == SCRIPT.etag
    assert answer.one(b"access-control-allow-origin") == b"*", "browsers judge a 304 by its own CORS fields"
    if status == 304:
        assert (answer.body, answer.one(b"content-length")) == (b"", None)


def test_every_file_has_a_tag_of_its_own() -> None:
    assert len({file.etag for file in client.FILES.values()}) == len(client.FILES)


DENIED = [
    ("POST", "/client.js", [], 405, "method_not_allowed", "it is only read"),
    ("PUT", "/client.d.ts", [], 405, "method_not_allowed", "so are its types"),
    ("OPTIONS", "/client.js", [("Origin", LISTED)], 405, "method_not_allowed", "no preflight: it names no method"),
    ("GET", "/client.js?v=1", [], 400, "bad_request", "a second module for the same page"),
    ("GET", "/client.js?", [], 400, "bad_request", "so is an empty query"),
    ("GET", "/client.js", [("Host", "evil.example")], 421, "misdirected_host", "a name that is not ours"),
    ("GET", "/client.js", [("Host", "127.0.0.1"), ("Host", "b")], 400, "bad_request", "two names"),
    ("GET", "/client.js/", [], 401, "unidentified", "another path: the relay's, which asks who is calling"),
    ("GET", "/client%2Ejs", [], 401, "unidentified", "another spelling: nothing is decoded"),
    ("GET", "/Client.js", [], 401, "unidentified", "paths have a case"),
]


@pytest.mark.parametrize(("method", "path", "headers", "status", "error_type", "reason"), DENIED)
async def test_whatever_else_is_asked_of_it_is_refused(
    method: str, path: str, headers: list[tuple[str, str]], status: int, error_type: str, reason: str, proxy: Proxy
) -> None:
    async with raw_client(proxy.port) as caller:
        await caller.send(request(method, MOUNT + path, headers))
        answer = await caller.answer()
    assert (answer.status, answer.one(b"x-fal-error-type")) == (status, error_type.encode()), reason
    assert answer.one(b"cache-control") == b"no-store"
    if status == 405:
        assert answer.one(b"allow") == b"GET, HEAD"


@pytest.mark.parametrize(("origin", "status"), [(LISTED, 204), ("https://evil.example", 403)])
async def test_preflight_is_judged_as_on_every_path_below_the_mount(origin: str, status: int, proxy: Proxy) -> None:
    asked = [("Origin", origin), ("Access-Control-Request-Method", "GET")]
    assert (await ask(proxy, "OPTIONS", "/client.js", *asked)).status == status


async def test_it_leaves_no_access_line(proxy: Proxy, lines: Lines) -> None:
    await ask(proxy, "GET", "/client.js")
    await ask(proxy, "POST", "/client.js")
    async with raw_client(proxy.port) as caller:
        await caller.send(request("GET", MOUNT + "/nonsense", proxy.bearer))
        assert (await caller.answer()).status == 400
    assert [line["status"] for line in await lines.exactly(1)] == [400]
