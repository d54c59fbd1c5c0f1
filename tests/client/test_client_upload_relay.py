"""`fal.storage` of the official client where uploads go through the proxy: the client does not notice, fal's hosts see no key."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from client.stage import FILE_HOST, Stage, staged
from fal_proxy.settings import Storage
from support.node import Node
from support.proxied import open_settings

pytestmark = pytest.mark.asyncio(loop_scope="module")
MIB = 1024 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_stage(node: Node, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Run one stage whose proxy relays uploads."""
    folder = tmp_path_factory.mktemp("proxy")
    settings = msgspec.structs.replace(open_settings(folder), storage=Storage(mode="relay"))
    async with staged(node, folder, anonymous=True, settings=settings) as ready:
        yield ready


@pytest.mark.parametrize(
    ("name", "type_", "size"),
    [("photo.png", "image/png", 70_000), (None, "", 3 * MIB), ("empty.bin", "", 0)],
    ids=["file", "blob without type", "empty file"],
)
async def test_a_small_upload_goes_through_the_proxy(stage: Stage, name: str | None, type_: str, size: int) -> None:
    seen = await stage.play("storage.mjs", "upload", name=name, type=type_, size=size)

    assert (seen["got"]["size"], seen["got"]["hash"]) == (size, seen["sent"]["hash"])
    assert seen["got"]["type"] == (type_ or "application/octet-stream")
    assert seen["url"].startswith(f"{stage.emulated.url}/{FILE_HOST}/")
    [put, _] = stage.entries(FILE_HOST)
    assert (put.header("x-fal-client-proxy") or "").startswith("fal-proxy/"), "it did not come from the client itself"


async def test_a_large_upload_goes_through_the_proxy_in_parts(stage: Stage) -> None:
    size = 91 * MIB + 12_345
    seen = await stage.play("storage.mjs", "upload", name="film.mp4", type="video/mp4", size=size)

    assert (seen["got"]["size"], seen["got"]["hash"]) == (size, seen["sent"]["hash"])
    puts = [entry for entry in stage.entries(FILE_HOST) if entry.method == "PUT"]
    assert [entry.body_bytes for entry in puts] == [10 * MIB] * 9 + [MIB + 12_345]
    assert all(entry.header("x-fal-client-proxy") for entry in puts)
    assert [entry.target.partition(b"?")[0].rpartition(b"/")[2] for entry in puts] == [b"%d" % n for n in range(1, 11)]


async def test_files_inside_the_input_go_through_the_proxy_before_the_submit(stage: Stage) -> None:
    seen = await stage.play("storage.mjs", "automatic", endpoint="emulator/echo")

    assert (seen["file"], seen["blob"]) == ("a file", "a blob")
    submitted = json.loads(stage.entries("queue.fal.run")[0].body)
    assert submitted == seen["input"]
    assert all(entry.header("x-fal-client-proxy") for entry in stage.entries(FILE_HOST) if entry.method == "PUT")
