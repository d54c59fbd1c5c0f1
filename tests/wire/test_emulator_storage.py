"""Uploads and downloads of the emulator, as the JavaScript and the Python client do them."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from support.emulated import Emulated, emulated

KEY = {"authorization": "Key id:secret"}
JS = "/storage/upload/initiate?storage_type=fal-cdn-v3"
JS_MULTIPART = "/storage/upload/initiate-multipart?storage_type=fal-cdn-v3"


@pytest.fixture
async def fal() -> AsyncIterator[Emulated]:
    async with emulated() as running:
        yield running


@pytest.fixture
async def browser() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=10) as made:
        yield made


async def initiate(
    browser: httpx2.AsyncClient, fal: Emulated, path: str, host: str = "rest.fal.ai", **headers: str
) -> dict[str, str]:
    given = {"content_type": "image/png", "file_name": "my cat.png"}
    answer = await browser.post(fal.at(host, path), json=given, headers={**KEY, **headers})
    assert answer.status_code == 200
    urls: dict[str, str] = answer.json()
    return urls


@pytest.mark.parametrize("host", ["rest.fal.ai", "rest.alpha.fal.ai", "fal.run"])
async def test_a_signed_put_needs_no_key_and_the_file_is_public(
    browser: httpx2.AsyncClient, fal: Emulated, host: str
) -> None:
    urls = await initiate(browser, fal, JS, host)
    assert urls["file_url"].startswith(f"{fal.url}/v3b.fal.media/files/b/")
    assert urls["file_url"].endswith("/my_cat.png")
    assert (await browser.get(urls["file_url"])).status_code == 404
    put = await browser.put(urls["upload_url"], content=b"PNG!", headers={"content-type": "image/png"})
    assert put.status_code == 200
    read = await browser.get(urls["file_url"])
    assert (read.content, read.headers["content-type"]) == (b"PNG!", "image/png")
    assert read.headers["etag"] == put.headers["etag"] == f'"{hashlib.md5(b"PNG!").hexdigest()}"'
    assert read.headers["cache-control"] == "public, max-age=5184000, immutable"
    assert read.headers["access-control-allow-origin"] == "*"


async def test_an_upload_url_that_is_unsigned_altered_or_old_is_refused(browser: httpx2.AsyncClient) -> None:
    now = 1000.0
    async with emulated(clock=lambda: now) as fal:
        urls = await initiate(browser, fal, JS)
        assert (await browser.put(urls["file_url"], content=b"x")).status_code == 403
        assert (await browser.put(urls["upload_url"] + "0", content=b"x")).status_code == 403
        other = await initiate(browser, fal, JS)
        query = urls["upload_url"].partition("?")[2]
        assert (await browser.put(f"{other['file_url']}?{query}", content=b"x")).status_code == 403
        now += 3601
        assert (await browser.put(urls["upload_url"], content=b"x")).status_code == 403


async def test_a_fal_key_at_a_file_host_is_refused_and_noted(browser: httpx2.AsyncClient, fal: Emulated) -> None:
    urls = await initiate(browser, fal, JS)
    for request in (
        browser.build_request("PUT", urls["upload_url"], content=b"x", headers=KEY),
        browser.build_request("GET", urls["file_url"], headers=KEY),
        browser.build_request("POST", fal.at("v3.fal.media", "/files/upload"), content=b"x", headers=KEY),
    ):
        assert (await browser.send(request)).status_code == 400
        assert fal.last.notes == ["leak: a fal key reached a file host"]


async def test_the_javascript_multipart_upload_puts_parts_behind_the_path_and_keeps_the_query(
    browser: httpx2.AsyncClient, fal: Emulated
) -> None:
    urls = await initiate(browser, fal, JS_MULTIPART)
    path, _, query = urls["upload_url"].partition("?")
    parts = []
    for number, content in ((1, b"a" * 70_000), (2, b"b" * 5)):
        put = await browser.put(f"{path}/{number}?{query}", content=content)
        assert put.headers["content-type"] == "application/json"
        assert put.json() == {"partNumber": number, "etag": put.headers["etag"]}
        parts.append(put.json())
    assert (await browser.put(f"{path}/3", content=b"x")).status_code == 403
    wrong = [{"partNumber": 1, "etag": "nope"}]
    assert (await browser.post(f"{path}/complete?{query}", json={"parts": wrong})).status_code == 400
    assert (await browser.post(f"{path}/complete?{query}", json={"parts": parts})).status_code == 200
    assert (await browser.get(urls["file_url"])).content == b"a" * 70_000 + b"b" * 5


async def cdn_headers(browser: httpx2.AsyncClient, fal: Emulated) -> tuple[dict[str, Any], dict[str, str]]:
    url = fal.at("rest.fal.ai", "/storage/auth/token?storage_type=fal-cdn-v3")
    answer = (await browser.post(url, json={}, headers=KEY)).json()
    assert answer["expires_at"].endswith("+00:00")
    bearer = f"{answer['token_type']} {answer['token']}"
    return answer, {"authorization": bearer, "content-type": "text/plain", "x-fal-file-name": "note.txt"}


async def test_the_python_upload_posts_to_the_cdn_with_its_own_bearer(
    browser: httpx2.AsyncClient, fal: Emulated
) -> None:
    _, headers = await cdn_headers(browser, fal)
    url = fal.at("v3.fal.media", "/files/upload")
    assert (await browser.post(url, content=b"hi", headers=headers | {"authorization": "Bearer x"})).status_code == 401
    answer = await browser.post(url, content=b"hi", headers=headers)
    read = await browser.get(answer.json()["access_url"])
    assert (read.text, read.headers["content-type"]) == ("hi", "text/plain")


async def test_the_python_multipart_upload_takes_parallel_parts_and_an_unsorted_list(
    browser: httpx2.AsyncClient, fal: Emulated
) -> None:
    answer, headers = await cdn_headers(browser, fal)
    created = (await browser.post(f"{answer['base_url']}/files/upload/multipart", headers=headers)).json()
    base = f"{created['access_url']}/multipart/{created['uploadId']}"
    contents = {number: bytes([number]) * 100_000 for number in (1, 2, 3)}
    puts = await asyncio.gather(
        *(browser.put(f"{base}/{number}", content=content, headers=headers) for number, content in contents.items())
    )
    parts = [{"partNumber": n, "etag": put.headers["etag"]} for n, put in zip(contents, puts, strict=True)]
    done = await browser.post(f"{base}/complete", json={"parts": parts[::-1]}, headers=headers)
    assert done.status_code == 200
    assert (await browser.get(created["access_url"])).content == b"".join(contents.values())
    assert (await browser.put(f"{base}/4", content=b"x", headers=headers)).status_code == 404


async def test_without_a_storage_type_uploads_go_to_googles_form_of_url(
    browser: httpx2.AsyncClient, fal: Emulated
) -> None:
    for path in ("/storage/upload/initiate", "/storage/upload/initiate?storage_type=gcs"):
        urls = await initiate(browser, fal, path)
        assert urls["file_url"].startswith(f"{fal.url}/storage.googleapis.com/")
        assert (await browser.put(urls["upload_url"], content=b"g")).status_code == 200
        assert (await browser.get(urls["file_url"])).content == b"g"
    urls = await initiate(browser, fal, "/storage/upload/initiate-multipart?storage_type=gcs")
    path, _, query = urls["upload_url"].partition("?")
    asked = await browser.post(f"{path}/1?{query}")
    put = await browser.put(asked.json()["upload_url"], content=b"part")
    parts = [{"part_number": 1, "etag": put.headers["etag"]}]
    assert (await browser.post(f"{path}/complete?{query}", json={"parts": parts})).status_code == 200
    assert (await browser.get(urls["file_url"])).content == b"part"


async def test_initiate_says_which_field_is_missing(browser: httpx2.AsyncClient, fal: Emulated) -> None:
    answer = await browser.post(fal.at("rest.fal.ai", JS), json={"file_name": "x"}, headers=KEY)
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "content_type"])


@pytest.mark.parametrize(
    ("asked", "status", "content", "span"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=5-99", 206, b"56789", "bytes 5-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=1-2,4-5", 200, b"0123456789", None),
        ("bytes=4-2", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
async def test_a_range_of_a_file_is_served(
    browser: httpx2.AsyncClient, fal: Emulated, asked: str, status: int, content: bytes, span: str | None
) -> None:
    urls = await initiate(browser, fal, JS)
    await browser.put(urls["upload_url"], content=b"0123456789")
    answer = await browser.get(urls["file_url"], headers={"range": asked})
    assert (answer.status_code, answer.content, answer.headers.get("content-range")) == (status, content, span)


async def test_head_and_if_none_match_send_no_content(browser: httpx2.AsyncClient, fal: Emulated) -> None:
    urls = await initiate(browser, fal, JS)
    put = await browser.put(urls["upload_url"], content=b"0123456789")
    head = await browser.head(urls["file_url"])
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "10", b"")
    known = await browser.get(urls["file_url"], headers={"if-none-match": put.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    assert (await browser.get(urls["file_url"], headers={"if-none-match": '"x"'})).status_code == 200


async def test_upload_urls_answer_preflights_for_put_and_post_and_expose_the_etag(
    browser: httpx2.AsyncClient, fal: Emulated
) -> None:
    urls = await initiate(browser, fal, JS)
    asks = {
        "origin": "https://app.test",
        "access-control-request-method": "PUT",
        "access-control-request-headers": "content-type",
    }
    answer = await browser.options(urls["upload_url"], headers=asks)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert {"PUT", "POST", "GET"} <= set(answer.headers["access-control-allow-methods"].split(", "))
    put = await browser.put(urls["upload_url"], content=b"x", headers={"origin": "https://app.test"})
    assert "etag" in put.headers["access-control-expose-headers"]


async def test_a_lifecycle_ends_a_file_and_can_hide_it(browser: httpx2.AsyncClient) -> None:
    now = 1000.0
    async with emulated(clock=lambda: now) as fal:
        short = await initiate(browser, fal, JS, **{"x-fal-object-lifecycle": '{"expiration_duration_seconds":60}'})
        hidden = await initiate(
            browser, fal, JS, **{"x-fal-object-lifecycle": '{"initial_acl":{"default":"forbid","rules":[]}}'}
        )
        for urls in (short, hidden):
            await browser.put(urls["upload_url"], content=b"x")
        assert (await browser.get(short["file_url"])).status_code == 200
        assert (await browser.get(hidden["file_url"])).status_code == 403
        now += 61
        assert (await browser.get(short["file_url"])).status_code == 404


async def test_a_large_upload_is_kept_on_disk_and_read_back_whole(browser: httpx2.AsyncClient, fal: Emulated) -> None:
    urls = await initiate(browser, fal, JS)
    piece, pieces = bytes(range(256)) * 4096, 40

    async def content() -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield piece

    assert (await browser.put(urls["upload_url"], content=content())).status_code == 200
    digest, total = hashlib.md5(), 0
    async with browser.stream("GET", urls["file_url"]) as answer:
        async for chunk in answer.aiter_bytes():
            digest.update(chunk)
            total += len(chunk)
        assert answer.headers["etag"] == f'"{digest.hexdigest()}"'
    assert total == len(piece) * pieces


async def test_the_public_url_is_in_every_url_that_is_handed_out(browser: httpx2.AsyncClient) -> None:
    async with emulated(public_url="https://emulator.example/fal/") as fal:
        urls = await initiate(browser, fal, JS)
        assert all(url.startswith("https://emulator.example/fal/v3b.fal.media/files/b/") for url in urls.values())
        made = await browser.post(fal.at("fal.run", "/fal-ai/flux/dev"), json={"prompt": "x"}, headers=KEY)
        assert made.json()["images"][0]["url"].startswith("https://emulator.example/fal/v3b.fal.media/files/b/")
