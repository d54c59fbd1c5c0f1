"""`fal.storage` of the official client: uploads go to fal's file host, only their start goes through the proxy."""

from __future__ import annotations

import json

import pytest

from client.stage import FILE_HOST, Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1024 * 1024
INITIATE = "POST /storage/upload/initiate?storage_type=fal-cdn-v3"


@pytest.mark.parametrize(
    ("name", "type_", "size"),
    [("photo.png", "image/png", 70_000), (None, "text/plain", 11), (None, "", 3 * MIB), ("empty.bin", "", 0)],
    ids=["file", "blob", "blob without type", "empty file"],
)
async def test_a_small_upload_comes_back_identical(stage: Stage, name: str | None, type_: str, size: int) -> None:
    seen = await stage.play("storage.mjs", "upload", name=name, type=type_, size=size)

    assert (seen["got"]["size"], seen["got"]["hash"]) == (size, seen["sent"]["hash"])
    assert seen["got"]["type"] == (type_ or "application/octet-stream")
    assert stage.targets("rest.fal.ai") == [INITIATE]
    asked = json.loads(stage.entries("rest.fal.ai")[0].body)
    assert asked["content_type"] == (type_ or "application/octet-stream")
    assert asked["file_name"] == name or name is None
    assert [entry.method for entry in stage.entries(FILE_HOST)] == ["PUT", "GET"]


async def test_the_life_of_an_upload_can_be_limited(stage: Stage) -> None:
    options = {"lifecycle": {"expiresIn": "1h"}}
    await stage.play("storage.mjs", "upload", name="a.txt", type="text/plain", size=5, options=options)

    [entry] = stage.entries("rest.fal.ai")
    assert entry.header("x-fal-object-lifecycle") == '{"expiration_duration_seconds":3600}'


async def test_a_large_upload_goes_up_in_parts_and_comes_back_identical(stage: Stage) -> None:
    size = 91 * MIB + 12_345
    seen = await stage.play("storage.mjs", "upload", name="film.mp4", type="video/mp4", size=size)

    assert (seen["got"]["size"], seen["got"]["hash"]) == (size, seen["sent"]["hash"])
    assert stage.targets("rest.fal.ai") == ["POST /storage/upload/initiate-multipart?storage_type=fal-cdn-v3"]
    parts = [entry.body_bytes for entry in stage.entries(FILE_HOST) if entry.method == "PUT"]
    assert parts == [10 * MIB] * 9 + [MIB + 12_345]


async def test_files_inside_the_input_are_uploaded_before_submit(stage: Stage) -> None:
    seen = await stage.play("storage.mjs", "automatic", endpoint="emulator/echo")

    assert (seen["file"], seen["blob"]) == ("a file", "a blob")
    given = seen["input"]
    assert given["nested"]["list"][1:] == ["kept", 7, None]
    assert given["inline"] == "data:text/plain,kept"
    assert stage.targets("rest.fal.ai") == [INITIATE] * 2
    submitted = json.loads(stage.entries("queue.fal.run")[0].body)
    assert submitted == given
    names = [json.loads(entry.body)["file_name"] for entry in stage.entries("rest.fal.ai")]
    assert "žluť kůň.txt" in names


async def test_a_picture_can_be_made_from_an_uploaded_picture(stage: Stage) -> None:
    given = {"prompt": "a lighthouse", "seed": 3}
    seen = await stage.play("storage.mjs", "pictureFromPicture", input=given)

    assert seen["image"]["content_type"] == seen["got"]["type"] == "image/jpeg"
    assert seen["got"]["size"] > 500
