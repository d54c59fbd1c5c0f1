"""How clients begin an upload, through the proxy: other hosts, other storage types or none, and what must stay shut."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import httpx2
import msgspec
import pytest

from support.emulated import Emulated, emulated
from support.proxied import FAL_KEY, FAL_KEY_SECRET, OPEN_PLAN, Proxy, open_settings, proxied

CDN, GOOGLE = "v3b.fal.media", "storage.googleapis.com"
ASKED = {"content_type": "text/plain", "file_name": "a.txt"}
FORMS = [
    ("https://rest.fal.ai/storage/upload/initiate?storage_type=fal-cdn-v3", CDN, "@fal-ai/client since 1.9.3"),
    ("https://rest.alpha.fal.ai/storage/upload/initiate?storage_type=fal-cdn-v3", CDN, "@fal-ai/client 1.2 to 1.9.2"),
    ("https://rest.alpha.fal.ai/storage/upload/initiate", GOOGLE, "serverless-client, @fal-ai/client 1.0, Dart"),
    ("https://rest.fal.ai/storage/upload/initiate", GOOGLE, "the same with today's host"),
    ("https://rest.fal.ai/storage/upload/initiate?storage_type=gcs", GOOGLE, "Python, when fal's CDN fails"),
]
MULTIPART = "https://rest.fal.ai/storage/upload/initiate-multipart?storage_type={0}"
SHUT = [
    ("https://rest.fal.ai/storage/auth/token?storage_type=fal-cdn-v3", 403, "mode_off", "a bearer of the CDN"),
    (
        "https://fal.run/storage/upload/initiate?storage_type=fal-cdn-v3",
        403,
        "endpoint_denied",
        "a run: the plan is asked",
    ),
    ("https://rest.fal.ai/storage/upload/initiate?fal_jwt_token=x", 400, "invalid_target", "a credential in the query"),
    ("https://rest.fal.ai/storage/upload/initiate?", 400, "invalid_target", "an empty query"),
    ("https://rest.fal.ai/storage/upload/initiate/", 400, "invalid_target", "no client says so"),
    ("https://rest.alpha.fal.ai/storage/upload", 400, "invalid_target", "no such operation"),
    ("https://gateway.alpha.fal.ai/storage/upload/initiate", 400, "invalid_target", "hosts of clients before 0.8"),
]


class Page(NamedTuple):
    """A page's way to the proxy, and what is behind it."""

    http: httpx2.AsyncClient
    proxy: Proxy
    fal: Emulated

    async def ask(self, target: str, *, path_form: bool = False) -> httpx2.Response:
        """Post the beginning of an upload in one of the two spellings of its target."""
        if path_form:
            return await self.http.post(f"{self.proxy.url}/{target.removeprefix('https://')}", json=ASKED)
        return await self.http.post(self.proxy.url, json=ASKED, headers={"x-fal-target-url": target})


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    plan = msgspec.structs.replace(OPEN_PLAN, endpoints=("fal-ai/**",))
    settings = msgspec.structs.replace(open_settings(tmp_path), plans={"default": plan})
    async with (
        emulated() as fal,
        proxied(fal.url, tmp_path, settings) as proxy,
        httpx2.AsyncClient(trust_env=False, headers={"authorization": f"Key {proxy.user_key}"}) as http,
    ):
        yield Page(http, proxy, fal)


@pytest.mark.parametrize("path_form", [False, True], ids=["header form", "path form"])
@pytest.mark.parametrize(("target", "host", "client"), FORMS, ids=[client for _, _, client in FORMS])
async def test_every_way_to_begin_an_upload_gives_a_place_for_it(
    page: Page, target: str, host: str, client: str, path_form: bool
) -> None:
    answer = await page.ask(target, path_form=path_form)

    assert answer.status_code == 200, client
    assert f"https://{page.fal.last.host}{page.fal.last.target.decode()}" == target, "to the byte"
    assert page.fal.last.header("authorization") == f"Key {FAL_KEY.reveal()}"
    place = answer.json()
    assert place["file_url"].startswith(f"{page.fal.url}/{host}/")
    assert FAL_KEY_SECRET not in answer.text
    async with httpx2.AsyncClient(trust_env=False) as browser:
        assert (await browser.put(place["upload_url"], content=b"bytes")).status_code == 200
        assert (await browser.get(place["file_url"])).content == b"bytes"


@pytest.mark.parametrize(("storage_type", "host"), [("fal-cdn-v3", CDN), ("gcs", GOOGLE)])
async def test_parts_begin_the_same_way(page: Page, storage_type: str, host: str) -> None:
    answer = await page.ask(MULTIPART.format(storage_type))

    assert answer.status_code == 200
    assert answer.json()["file_url"].startswith(f"{page.fal.url}/{host}/")


@pytest.mark.parametrize(("target", "status", "error_type", "why"), SHUT, ids=[why for *_, why in SHUT])
async def test_what_only_looks_like_an_upload_is_something_else(
    page: Page, target: str, status: int, error_type: str, why: str
) -> None:
    answer = await page.ask(target)

    assert answer.status_code == status, why
    assert answer.headers["x-fal-error-type"] == error_type
    assert not page.fal.app.journal
