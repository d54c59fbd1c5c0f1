"""Uploads as a page does them, through a proxy that relays storage, in front of the emulator or of a scripted upstream."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from fal_proxy.settings import Settings, Storage
from support.emulated import Emulated, emulated
from support.proxied import MOUNT, Proxy, open_settings, proxied
from support.raw import RawAnswer, raw_client, request

INITIATE = "/rest.fal.ai/storage/upload/initiate?storage_type=fal-cdn-v3"
INITIATE_MULTIPART = "/rest.fal.ai/storage/upload/initiate-multipart?storage_type=fal-cdn-v3"
UPLOADS = f"{MOUNT}/uploads/"


def relaying(folder: Path, **storage: Any) -> Settings:
    """Return open settings that relay storage."""
    return msgspec.structs.replace(open_settings(folder), storage=Storage(mode="relay", **storage))


@dataclass(frozen=True)
class Page:
    """A caller with a user key, and what happens upstream."""

    proxy: Proxy
    fal: Emulated

    async def ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> RawAnswer:
        """Send one request as it is, without a credential."""
        async with raw_client(self.proxy.port) as client:
            host = {"Host": f"127.0.0.1:{self.proxy.port}"}
            await client.send(request(method, path, host | (headers or {}), body))
            return await client.answer()

    async def initiate(self, multipart: bool = False, **given: str) -> dict[str, str]:
        """Start an upload and return what the caller is told."""
        body = msgspec.json.encode({"content_type": "image/png", "file_name": "cat.png"} | given)
        path = MOUNT + (INITIATE_MULTIPART if multipart else INITIATE)
        answer = await self.ask("POST", path, self.proxy.bearer, body)
        assert answer.status == 200, answer
        return msgspec.json.decode(answer.body, type=dict[str, str])

    async def upload_path(self, multipart: bool = False, **given: str) -> str:
        """Start an upload and return the path of its URL."""
        return urlsplit((await self.initiate(multipart, **given))["upload_url"]).path

    async def fal_reads(self, path: str) -> bytes:
        """Return a file as fal's own host serves it, `path` with that host."""
        async with raw_client(self.fal.port) as client:
            await client.send(request("GET", path))
            _, fields = await client.read_head()
            return await client.reader.readexactly(int(dict(fields)[b"content-length"]))

    async def put_to_fal(self, url: str, body: bytes) -> None:
        """Upload to a signed URL of fal's, as a browser does in direct mode."""
        async with raw_client(self.fal.port) as client:
            await client.send(request("PUT", url.removeprefix(self.fal.url), {"Content-Type": "image/png"}, body))
            assert (await client.answer()).status == 200

    def sent_to(self, host: str) -> list[str]:
        """Return what reached one of fal's hosts: method, path and query."""
        return [f"{each.method} {each.target.decode()}" for each in self.fal.app.journal if each.host == host]


@contextlib.asynccontextmanager
async def page(folder: Path, settings: Settings | None = None, **emulator: Any) -> AsyncIterator[Page]:
    """Run an emulator and a proxy in front of it."""
    async with emulated(**emulator) as fal, proxied(fal.url, folder, settings or relaying(folder)) as proxy:
        yield Page(proxy, fal)
