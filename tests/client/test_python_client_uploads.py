"""Python's fal_client against a proxy that relays storage. Its two addresses are constants, which a program replaces."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fal_client import AsyncClient, SyncClient, client
from PIL import Image

from fal_proxy.emulator import Entry
from support.proxied import FAL_KEY_SECRET
from support.storage import Page, page, relaying

MIB = 1024 * 1024
HOSTS = ("v3.fal.media", "v3b.fal.media")


@pytest.fixture
async def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Page]:
    """A proxy that relays uploads, and the client led to it in the documented way."""
    async with page(tmp_path, relaying(tmp_path)) as running:
        monkeypatch.setattr(client, "REST_URL", f"{running.proxy.url}/rest.fal.ai")
        monkeypatch.setattr(client, "CDN_URL", f"{running.proxy.url}/v3.fal.media")
        yield running
        judge(running.fal.app.journal, running.proxy.user_key)


def judge(journal: Any, user_key: str) -> None:
    """Assert that the file hosts saw neither key."""
    for entry in journal:
        assert entry.notes == []
        shown = b" ".join(value for _, value in entry.headers)
        assert user_key.encode() not in shown
        assert entry.host not in HOSTS or FAL_KEY_SECRET.encode() not in shown


def uploads(app: Page) -> list[Entry]:
    """Return what reached the file hosts."""
    return [entry for entry in app.fal.app.journal if entry.host in HOSTS and entry.method != "GET"]


async def used(app: Page, upload: Callable[[SyncClient], str]) -> str:
    """Let a client upload, outside of this loop."""

    def work() -> str:
        python = SyncClient(key=app.proxy.user_key)
        with closing(python._client):
            return upload(python)

    url = await asyncio.to_thread(work)
    with warnings.catch_warnings():  # of the sockets that the client does not close
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    return url


async def test_bytes_go_through_the_proxy_and_the_url_is_fals(app: Page) -> None:
    url = await used(app, lambda python: python.upload(b"hello", "text/plain", file_name="../note.txt"))
    assert url.startswith(f"{app.fal.url}/v3b.fal.media/files/")
    assert await app.fal_reads(url.removeprefix(app.fal.url)) == b"hello"
    [entry] = uploads(app)
    assert (entry.header("x-fal-client-proxy") or "").startswith("fal-proxy/")
    assert entry.header("x-fal-file-name") == "_note.txt"


async def test_a_file_and_an_image_go_through_the_proxy(app: Page, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": 1}')
    url = await used(app, lambda python: python.upload_file(path))
    assert await app.fal_reads(url.removeprefix(app.fal.url)) == b'{"a": 1}'
    url = await used(app, lambda python: python.upload_image(Image.new("RGB", (8, 8)), format="png"))
    assert (await app.fal_reads(url.removeprefix(app.fal.url))).startswith(b"\x89PNG")
    assert len(uploads(app)) == 2


async def test_a_large_file_goes_up_in_parallel_parts_and_its_url_leads_to_the_file(app: Page, tmp_path: Path) -> None:
    content = b"".join(b"%08d" % number for number in range(101 * MIB // 8))
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    url = await used(app, lambda python: python.upload_file(path))
    puts = [entry for entry in uploads(app) if entry.method == "PUT"]
    assert sorted(entry.body_bytes for entry in puts) == [MIB] + [10 * MIB] * 10
    assert url.startswith(f"{app.proxy.url}/v3b.fal.media/files/"), "the client takes the parts' address for the file's"
    pointed = await app.ask("GET", url.removeprefix(app.proxy.origin))
    assert (pointed.status, pointed.one(b"location")) == (
        307,
        url.replace(app.proxy.url, app.fal.url).encode(),
    )
    assert await app.fal_reads(url.removeprefix(app.proxy.url)) == content


async def test_the_async_client_uploads_in_parts_too(app: Page) -> None:
    python = AsyncClient(key=app.proxy.user_key)
    try:
        content = b"0123456789abcdef" * (101 * MIB // 16)
        url = await python.upload(content, "application/octet-stream", file_name="x.bin")
    finally:
        await (await python._client).aclose()
    assert await app.fal_reads(url.removeprefix(app.proxy.url)) == content


async def test_the_fallback_to_a_signed_url_goes_through_the_proxy_without_the_callers_key(app: Page) -> None:
    url = await used(app, lambda python: python.upload(b"x", "text/plain", repository="fal"))
    assert url.startswith(f"{app.fal.url}/storage.googleapis.com/")
    [put] = [entry for entry in app.fal.app.journal if entry.host == "storage.googleapis.com"]
    assert (put.method, put.body, put.header("authorization")) == ("PUT", b"x", None)
