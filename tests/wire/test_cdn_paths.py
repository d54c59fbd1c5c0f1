"""File hosts in the path form: uploads in the Python client's way, and files read through the proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fal_proxy.settings import Settings
from support.peers import Peer, Serve
from support.proxied import FAL_KEY_SECRET, MOUNT, StartProxy, open_settings
from support.raw import RawAnswer, raw_client, request
from support.scripts import answering, ok, read_request
from support.storage import Page, page, relaying

TOKEN = MOUNT + "/rest.fal.ai/storage/auth/token?storage_type=fal-cdn-v3"
UPLOAD = MOUNT + "/v3.fal.media/files/upload"
HOSTS = ("v3.fal.media", "v3b.fal.media")


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Page]:
    """A proxy that relays uploads of at most 64 KiB, sixty an hour."""
    settings = relaying(tmp_path, max_upload_bytes=65536)
    plans = {"default": msgspec.structs.replace(settings.plans["default"], upload="60/hour")}
    async with page(tmp_path, msgspec.structs.replace(settings, plans=plans)) as running:
        yield running


async def token(app: Page) -> dict[str, str]:
    """Return what the Python client is told for its uploads."""
    answer = await app.ask("POST", TOKEN, app.proxy.bearer, b"{}")
    assert answer.status == 200
    return msgspec.json.decode(answer.body, type=dict[str, str])


async def as_python(app: Page, **fields: str) -> dict[str, str]:
    """Return the header fields of an upload of the Python client's."""
    given = await token(app)
    return {"Authorization": f"{given['token_type']} {given['token']}", "Content-Type": "text/plain"} | {
        name.replace("_", "-"): value for name, value in fields.items()
    }


def cdn_entries(app: Page) -> list[Any]:
    """Return what reached a file host."""
    return [entry for entry in app.fal.app.journal if entry.host in HOSTS]


async def test_the_storage_token_is_a_capability_and_asks_fal_nothing(app: Page) -> None:
    given = await token(app)
    assert given["token_type"] == "Bearer"
    assert given["base_url"] == f"{app.proxy.url}/v3.fal.media"
    assert given["expires_at"].endswith("+00:00")
    assert not app.fal.app.journal


async def test_an_upload_goes_up_with_the_cdns_bearer_and_comes_back_as_fals_address(app: Page) -> None:
    headers = await as_python(app, X_Fal_File_Name="note.txt", X_Fal_Object_Lifecycle='{"a":1}', X_Fal_Store_IO="0")
    answer = await app.ask("POST", UPLOAD, headers, b"hello")
    assert answer.status == 200
    assert msgspec.json.decode(answer.body)["access_url"].startswith(f"{app.fal.url}/v3b.fal.media/files/")
    [entry] = cdn_entries(app)
    assert (entry.body, entry.notes) == (b"hello", [])
    assert entry.header("authorization").startswith("Bearer ey")
    assert headers["Authorization"] not in entry.header("authorization")
    assert entry.header("x-fal-file-name") == "note.txt"
    assert entry.header("x-fal-object-lifecycle") == '{"a":1}'
    assert entry.header("x-fal-store-io") is None
    assert not any(FAL_KEY_SECRET.encode() in value for _, value in entry.headers)


async def test_one_bearer_serves_many_uploads(app: Page) -> None:
    headers = await as_python(app)
    for _ in range(3):
        assert (await app.ask("POST", UPLOAD, headers, b"x")).status == 200
    assert sum(entry.target.startswith(b"/storage/auth/token") for entry in app.fal.app.journal) == 1


async def test_parts_go_through_the_proxy_under_an_id_that_only_their_caller_can_use(app: Page) -> None:
    headers = await as_python(app)
    created = msgspec.json.decode((await app.ask("POST", UPLOAD + "/multipart", headers, b"")).body)
    path = created["access_url"].removeprefix(app.proxy.origin)
    assert path.startswith(f"{MOUNT}/v3b.fal.media/files/")
    part = f"{path}/multipart/{created['uploadId']}"
    etags = []
    for number in (1, 2):
        answer = await app.ask("PUT", f"{part}/{number}", headers, b"%d" % number * 1000)
        etags.append({"partNumber": number, "etag": (answer.one(b"etag") or b"").decode()})
    others = f"{path.replace('/files/b/', '/files/b/0')}/multipart/{created['uploadId']}/1"
    sent = len(cdn_entries(app))
    assert (await app.ask("PUT", others, headers, b"x")).status == 404
    assert (await app.ask("PUT", f"{path}/multipart/abcdef/1", headers, b"x")).status == 404
    assert (await app.ask("PUT", f"{part}/1", {"Authorization": "Bearer x"}, b"x")).status == 401
    assert (await app.ask("PUT", f"{part}/3", headers, b"x" * 65_000)).status == 413
    assert len(cdn_entries(app)) == sent
    done = await app.ask("POST", f"{part}/complete", headers, msgspec.json.encode({"parts": etags[::-1]}))
    assert done.status == 200
    assert await app.fal_reads(path.removeprefix(MOUNT)) == b"1" * 1000 + b"2" * 1000


REFUSED = [
    ("POST", UPLOAD, {"Authorization": "Bearer forged"}, b"x", 401, "forged"),
    ("POST", UPLOAD, {"Content-Type": "application/x-msdownload"}, b"x", 422, "not listed"),
    ("POST", UPLOAD, {"Content-Type": "image/png"}, b"<html>", 422, "a page that calls itself a picture"),
    ("POST", UPLOAD, {"Transfer-Encoding": "chunked"}, None, 411, "no length"),
    ("POST", UPLOAD, {}, b"x" * 70_000, 413, "too large"),
    ("POST", UPLOAD + "?x=1", {}, b"x", 400, "a query"),
    ("PUT", UPLOAD, {}, b"x", 405, "another method"),
    ("DELETE", UPLOAD, {}, None, 405, "another method"),
    ("PUT", MOUNT + "/v3.fal.media/files/b/1/x", {}, b"x", 405, "no upload of ours"),
    ("POST", MOUNT + "/evil.example/files/upload", {}, b"x", 401, "another host, which knows no capability"),
    ("POST", MOUNT + "/v3.fal.media/files/../upload", {}, b"x", 400, "another path"),
]


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "reason"), REFUSED, ids=[row[5] for row in REFUSED]
)
async def test_an_upload_is_refused_before_anything_reaches_the_cdn(
    app: Page, method: str, path: str, headers: dict[str, str], body: bytes | None, status: int, reason: str
) -> None:
    answer = await app.ask(method, path, await as_python(app) | headers, body)
    assert answer.status == status, reason
    assert not cdn_entries(app)


async def test_a_user_key_may_upload_without_asking_for_a_token(app: Page) -> None:
    assert (await app.ask("POST", UPLOAD, app.proxy.bearer | {"Content-Type": "text/plain"}, b"x")).status == 200


async def test_a_refused_upload_asks_fal_for_no_bearer_and_counts_for_nothing(app: Page) -> None:
    headers = await as_python(app)
    for body, type_ in ((b"<html>", "image/png"), (b"x" * 70_000, "text/plain")):
        assert (await app.ask("POST", UPLOAD, headers | {"Content-Type": type_}, body)).status in (413, 422)
    assert not app.fal.app.journal
    me = await app.ask("GET", MOUNT + "/me", app.proxy.bearer)
    [upload] = msgspec.json.decode(me.body)["limits"]["upload"]
    assert upload["remaining"] == upload["limit"]


async def test_an_upload_in_the_cdns_way_counts_as_an_initiation(app: Page) -> None:
    assert (await app.ask("POST", UPLOAD, await as_python(app), b"x")).status == 200
    me = await app.ask("GET", MOUNT + "/me", app.proxy.bearer)
    [upload] = msgspec.json.decode(me.body)["limits"]["upload"]
    assert upload["remaining"] == upload["limit"] - 1


async def test_without_a_bearer_of_fals_an_upload_is_502(tmp_path: Path) -> None:
    async with page(tmp_path, relaying(tmp_path), faults="rest.fal.ai/**:status=500") as app:
        answer = await app.ask("POST", UPLOAD, await as_python(app), b"x")
        assert (answer.status, answer.one(b"x-fal-error-type")) == (502, b"upstream_invalid")
        assert not cdn_entries(app)


async def test_a_bearer_that_the_cdn_refuses_is_asked_for_anew(serve: Serve, start: StartProxy, tmp_path: Path) -> None:
    bearers = iter(range(1, 9))

    async def fal(peer: Peer) -> None:
        while True:
            head, _ = await read_request(peer)
            if b"/storage/auth/token" in head:
                token = b'{"token":"t%d","token_type":"Bearer","expires_at":"2999-01-01T00:00:00+00:00"}' % next(
                    bearers
                )
                await peer.send(ok(token))
            elif b"authorization: Bearer t1\r\n" in head:
                await peer.send(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n")
            else:
                await peer.send(ok(b'{"access_url":"https://v3b.fal.media/files/x"}'))

    proxy = await start(serve(fal), relaying(tmp_path))
    statuses = []
    for _ in range(3):
        async with raw_client(proxy.port) as client:
            await client.send(request("POST", UPLOAD, proxy.bearer | {"Content-Type": "text/plain"}, b"x"))
            statuses.append((await client.answer()).status)
    assert statuses == [401, 200, 200]
    assert next(bearers) == 3, "two were asked for"


async def test_file_hosts_exist_only_where_storage_is_relayed(tmp_path: Path) -> None:
    async with page(tmp_path, open_settings(tmp_path)) as app:
        assert (await app.ask("POST", TOKEN, app.proxy.bearer, b"{}")).status == 403
        for method, path in (("POST", UPLOAD), ("GET", MOUNT + "/v3b.fal.media/files/b/1/x")):
            assert (await app.ask(method, path, app.proxy.bearer)).status == 400
        header = {"x-fal-target-url": "https://v3.fal.media/files/upload"}
        assert (await app.ask("POST", MOUNT, app.proxy.bearer | header, b"x")).status == 400
        assert not app.fal.app.journal


@pytest.fixture
def serving(tmp_path: Path) -> Settings:
    """Settings that serve files."""
    settings = open_settings(tmp_path)
    return msgspec.structs.replace(settings, storage=msgspec.structs.replace(settings.storage, serve_files=True))


async def test_a_file_is_read_through_the_proxy_as_the_cdn_serves_it(tmp_path: Path, serving: Settings) -> None:
    async with page(tmp_path, serving) as app:
        urls = await app.initiate()
        await app.put_to_fal(urls["upload_url"], b"0123456789")
        app.fal.app.journal.clear()
        path = MOUNT + urls["file_url"].removeprefix(app.fal.url)
        whole = await app.ask("GET", path, app.proxy.bearer)
        assert (whole.status, whole.body) == (200, b"0123456789")
        assert whole.one(b"cache-control") == b"public, max-age=5184000, immutable"
        assert whole.one(b"x-content-type-options") == b"nosniff"
        etag = (whole.one(b"etag") or b"").decode()
        part = await app.ask("GET", path, app.proxy.bearer | {"Range": "bytes=2-4"})
        assert (part.status, part.body, part.one(b"content-range")) == (206, b"234", b"bytes 2-4/10")
        known = await app.ask("GET", path, app.proxy.bearer | {"If-None-Match": etag})
        assert (known.status, known.body) == (304, b"")
        async with raw_client(app.proxy.port) as client:
            await client.send(request("HEAD", path, app.proxy.bearer))
            status, fields = await client.read_head()
            assert (status, dict(fields)[b"content-length"]) == (200, b"10")
        for entry in app.fal.app.journal:
            assert entry.header("authorization") is None
            assert entry.header("cookie") is None


async def ask(port: int, headers: dict[str, str], path: str) -> RawAnswer:
    async with raw_client(port) as client:
        await client.send(request("GET", path, headers))
        return await client.answer()


FILE = MOUNT + "/v3b.fal.media/files/b/1/x"


@pytest.mark.parametrize("type_", [b"text/html", b"image/svg+xml", b"application/xhtml+xml; charset=utf-8", b""])
async def test_a_file_is_never_a_page_on_the_apps_origin(
    type_: bytes, serve: Serve, start: StartProxy, serving: Settings
) -> None:
    field = b"content-type: " + type_ + b"\r\n" if type_ else b""
    upstream = serve(answering(b"HTTP/1.1 200 OK\r\n" + field + b"set-cookie: a=b\r\ncontent-length: 6\r\n\r\n<html>"))
    proxy = await start(upstream, serving)
    answer = await ask(proxy.port, dict(proxy.bearer), FILE)
    assert (answer.one(b"content-type") or b"").split(b";")[0] == (
        b"text/plain" if type_ else b"application/octet-stream"
    )
    assert answer.one(b"x-content-type-options") == b"nosniff"
    assert b"sandbox" in (answer.one(b"content-security-policy") or b"")
    assert answer.one(b"set-cookie") is None


SITES = [
    ({"Sec-Fetch-Site": "same-origin"}, 200, "a picture on our page"),
    ({"Sec-Fetch-Site": "none"}, 200, "opened from the address bar"),
    ({"Sec-Fetch-Site": "cross-site"}, 403, "a picture on somebody else's page"),
    ({"Sec-Fetch-Site": "same-site"}, 403, "as above"),
    ({"Origin": "https://evil.example"}, 403, "another page"),
    ({}, 200, "no browser"),
]


@pytest.mark.parametrize(("headers", "status", "reason"), SITES)
async def test_pages_of_others_do_not_read_files_with_our_callers_rights(
    headers: dict[str, str], status: int, reason: str, serve: Serve, start: StartProxy, serving: Settings
) -> None:
    upstream = serve(answering(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 1\r\n\r\nx"))
    proxy = await start(upstream, serving)
    assert (await ask(proxy.port, headers, FILE)).status == status, reason
    assert len(upstream.peers) == (status == 200)


async def test_without_serve_files_a_relayed_file_is_pointed_at_for_fal_and_refused_to_browsers(app: Page) -> None:
    answer = await app.ask("GET", FILE)
    assert (answer.status, answer.one(b"location")) == (307, f"{app.fal.url}/v3b.fal.media/files/b/1/x".encode())
    answer = await app.ask("GET", FILE, {"Sec-Fetch-Mode": "navigate"})
    assert (answer.status, answer.one(b"x-fal-error-type")) == (403, b"mode_off")
    assert not app.fal.app.journal
