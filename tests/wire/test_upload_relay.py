"""Uploads through the proxy: the URL is the right, the bytes stream, and what is refused is refused before a dial."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from fal_proxy.environment import Secret
from fal_proxy.identity.capability import Seals, Upload
from support.proxied import FAL_KEY_SECRET, MOUNT, SIGNING_SECRET
from support.storage import INITIATE, UPLOADS, Page, page, relaying

FILES = "v3b.fal.media"
PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 1000
TYPED = {"Content-Type": "image/png"}


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Page]:
    """A page of an app whose proxy relays uploads of at most 64 KiB."""
    async with page(tmp_path, relaying(tmp_path, max_upload_bytes=65536)) as running:
        yield running


def sealed(secret: str = SIGNING_SECRET, purpose: bytes = b"fal-proxy upload", **changes: object) -> str:
    """Return the path of a capability of the test's own making."""
    seals = Seals(Upload, purpose, [Secret(secret)])
    fields = {
        "id": "1",
        "caller": "key::ada",
        "source": "key",
        "plan": "default",
        "network": "",
        "by_network": False,
        "ends": 9e9,
        "host": FILES,
        "path": "/files/b/00000000/cat.png",
        "query": "a=b",
        "content_type": "image/png",
        "multipart": False,
        "max_bytes": 100,
    }
    return UPLOADS + seals.seal(msgspec.convert(fields | changes, Upload))


async def test_a_page_uploads_with_a_url_on_the_proxy_and_fal_stores_the_same_bytes(app: Page) -> None:
    urls = await app.initiate()
    assert urls["upload_url"].startswith(f"{app.proxy.url}/uploads/")
    assert "X-Fal-Signature" not in urls["upload_url"]
    assert urls["file_url"].startswith(f"{app.fal.url}/{FILES}/files/b/"), "fal reads the file from its own host"
    answer = await app.ask("PUT", urls["upload_url"].removeprefix(app.proxy.origin), TYPED, PNG)
    assert answer.status == 200
    stored = app.fal.last
    assert (stored.host, stored.method, stored.body) == (FILES, "PUT", PNG)
    assert stored.header("content-type") == "image/png"
    assert answer.one(b"etag") is not None


async def test_neither_the_fal_key_nor_the_callers_reaches_the_upload_host(app: Page) -> None:
    path = await app.upload_path()
    shown = TYPED | app.proxy.bearer | {"Cookie": "session=1", "X-Fal-Store-IO": "0"}
    assert (await app.ask("PUT", path, shown, PNG)).status == 200
    names = [name for name, _ in app.fal.last.headers]
    assert b"authorization" not in names
    assert b"cookie" not in names
    assert not any(name.startswith(b"x-fal-") for name in names if name != b"x-fal-client-proxy")
    assert not any(FAL_KEY_SECRET.encode() in value for _, value in app.fal.last.headers)


async def test_parts_go_up_behind_the_path_as_the_javascript_client_builds_their_urls(app: Page) -> None:
    path = await app.upload_path(multipart=True)
    parts = []
    for number, content in ((1, PNG), (2, b"b" * 5), (2, b"c" * 6)):  # the second part twice: a retry
        answer = await app.ask("PUT", f"{path}/{number}", None, content)
        assert (answer.status, answer.one(b"content-type")) == (200, b"application/json")
        said = msgspec.json.decode(answer.body)
        assert said == {"partNumber": number, "etag": (answer.one(b"etag") or b"").decode()}
        parts.append(said)
    done = await app.ask(
        "POST", f"{path}/complete", {"Content-Type": "application/json"}, msgspec.json.encode({"parts": parts[::2]})
    )
    assert done.status == 200
    assert [line.partition("?")[0].rpartition("/")[2] for line in app.sent_to(FILES)] == ["1", "2", "2", "complete"]
    assert all("?X-Fal-Expires=" in line for line in app.sent_to(FILES)), "fal's own query stays behind each segment"


REFUSED = [
    ("PUT", UPLOADS + "x", 404, "forged"),
    ("PUT", UPLOADS, 404, "none at all"),
    ("PUT", sealed(secret="another secret, as long as it has to be"), 404, "sealed with another secret"),
    ("PUT", sealed(purpose=b"fal-proxy storage bearer"), 404, "sealed for another purpose"),
    ("PUT", sealed()[:-1], 404, "cut short"),
    ("PUT", sealed() + "A", 404, "longer than it was"),
    ("PUT", sealed() + "/1", 404, "a part of an upload that has none"),
    ("PUT", sealed(multipart=True), 404, "a whole file where parts were begun"),
    ("PUT", sealed(multipart=True) + "/0", 404, "parts begin at one"),
    ("PUT", sealed(multipart=True) + "/01", 404, "a number has one spelling"),
    ("PUT", sealed(multipart=True) + "/10001", 404, "more parts than there are"),
    ("PUT", sealed(multipart=True) + "/1/../2", 404, "another path"),
    ("PUT", sealed(multipart=True) + "/", 404, "no number"),
    ("PUT", sealed() + "?x=1", 404, "a query, which it has none of"),
    ("PUT", sealed(multipart=True, upload_id="u") + "/1", 404, "parts in the CDN's own way, which have a bearer"),
    ("PUT", sealed(ends=1.0), 410, "over"),
    ("POST", sealed(), 405, "another method"),
    ("GET", sealed(), 405, "no way to read"),
    ("POST", sealed(multipart=True) + "/1", 405, "another method for a part"),
    ("PUT", sealed(multipart=True) + "/complete", 405, "another method for the end"),
    ("PUT", sealed(max_bytes=10), 413, "more bytes than it allows"),
    ("PUT", sealed(content_type="image/jpeg"), 422, "another type"),
]


@pytest.mark.parametrize(("method", "path", "status", "reason"), REFUSED, ids=[row[3] for row in REFUSED])
async def test_a_capability_is_refused_without_a_dial(
    app: Page, method: str, path: str, status: int, reason: str
) -> None:
    answer = await app.ask(method, path, TYPED, b"x" * 50)
    assert answer.status == status, reason
    assert not app.fal.app.journal


async def test_a_capability_cannot_be_read_by_whoever_holds_it(app: Page) -> None:
    sealed_text = (await app.upload_path()).removeprefix(UPLOADS)
    plain = base64.urlsafe_b64decode(sealed_text + "=" * (-len(sealed_text) % 4))
    for secret in (b"fal.media", b"X-Fal-Signature", b"key:"):
        assert secret not in plain, "fal's own address would let it pass us by"


async def test_the_parts_of_a_file_are_bounded_together_and_a_retry_counts_once(app: Page) -> None:
    path = await app.upload_path(multipart=True, content_type="application/octet-stream")
    for _ in range(3):
        assert (await app.ask("PUT", f"{path}/1", None, b"x" * 40_000)).status == 200
    assert (await app.ask("PUT", f"{path}/2", None, b"x" * 30_000)).status == 413
    assert (await app.ask("PUT", f"{path}/2", None, b"x" * 20_000)).status == 200
    assert len(app.sent_to(FILES)) == 4


@pytest.mark.parametrize("framing", [{}, {"Transfer-Encoding": "chunked"}], ids=["no length", "chunked"])
async def test_a_part_without_a_length_is_411(app: Page, framing: dict[str, str]) -> None:
    path = await app.upload_path()
    answer = await app.ask("PUT", path, TYPED | framing)
    assert (answer.status, answer.one(b"x-fal-error-type")) == (411, b"length_required")
    assert app.sent_to(FILES) == []


BENT = [
    ("image/png", b"<html><script>alert(1)</script>", "a page"),
    ("image/png", b"\n \t<!DOCTYPE html><p>", "a page behind white space"),
    ("image/gif", b"\xef\xbb\xbf<svg onload=alert(1)>", "a drawing behind a byte order mark"),
    ("image/png", "<svg/>".encode("utf-16"), "a drawing in UTF-16"),
    ("video/mp4", b"<ScRiPt>x", "a script"),
    ("image/svg+xml", b"<html>", "a page that calls itself a drawing"),
]


@pytest.mark.parametrize(("type_", "content", "reason"), BENT)
async def test_media_that_begin_as_a_page_are_refused_without_a_dial(
    app: Page, type_: str, content: bytes, reason: str
) -> None:
    path = await app.upload_path(content_type=type_)
    answer = await app.ask("PUT", path, {"Content-Type": type_}, content)
    assert (answer.status, answer.one(b"x-fal-error-type")) == (422, b"input_denied"), reason
    assert app.sent_to(FILES) == []


async def test_a_file_cannot_begin_with_its_second_part_to_pass_as_a_picture(app: Page) -> None:
    path = await app.upload_path(multipart=True)
    assert (await app.ask("PUT", f"{path}/2", None, b"<html><script>")).status == 422
    assert app.sent_to(FILES) == []


@pytest.mark.parametrize(
    ("type_", "content"),
    [
        ("image/svg+xml", b"<?xml version='1.0'?><svg/>"),
        ("text/html", b"<html>"),
        ("image/png", b""),
        ("audio/x", b"<b"),
    ],
    ids=["a drawing that says so", "a page that says so", "an empty file", "bytes that only look like it"],
)
async def test_what_says_what_it_is_goes_up(app: Page, type_: str, content: bytes) -> None:
    path = await app.upload_path(content_type=type_)
    assert (await app.ask("PUT", path, {"Content-Type": type_ + "; charset=utf-8"}, content)).status == 200


async def test_the_upload_of_a_listed_page_answers_with_cors_and_needs_no_identity(tmp_path: Path) -> None:
    settings = relaying(tmp_path)
    cors = msgspec.structs.replace(settings.cors, origins=("https://app.example.com",))
    async with page(tmp_path, msgspec.structs.replace(settings, cors=cors)) as app:
        path = await app.upload_path()
        origin = {"Origin": "https://app.example.com", "Sec-Fetch-Site": "cross-site"}
        asked = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "content-type"}
        preflight = await app.ask("OPTIONS", path, origin | asked)
        assert preflight.status == 204
        answer = await app.ask("PUT", path, origin | TYPED, PNG)
        assert answer.status == 200
        for each in (preflight, answer):
            assert each.one(b"access-control-allow-origin") == b"https://app.example.com"


async def test_an_upload_url_on_a_host_that_is_not_listed_goes_to_nobody(tmp_path: Path) -> None:
    settings = relaying(tmp_path, hosts=("v3.fal.media",))
    async with page(tmp_path, settings) as app:
        body = b'{"content_type": "image/png"}'
        answer = await app.ask("POST", MOUNT + INITIATE, app.proxy.bearer, body)
        assert (answer.status, answer.one(b"x-fal-error-type")) == (502, b"upstream_invalid")
        assert b"storage.hosts" in answer.body
        assert b"Signature" not in answer.body


async def test_fals_refusal_of_an_initiation_goes_down_untouched(tmp_path: Path) -> None:
    async with page(tmp_path, faults="**:status=429") as app:
        answer = await app.ask("POST", MOUNT + INITIATE, app.proxy.bearer, b'{"content_type": "image/png"}')
        assert answer.status == 429
        assert answer.one(b"x-fal-error-type") is None
