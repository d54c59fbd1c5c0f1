"""Blobs and files: parts joined without copies, spans of bytes, names, lifetimes, limits."""

from random import Random

import pytest

from fal_proxy.emulator import files as files_module
from fal_proxy.emulator.blobs import Blob, Spool
from fal_proxy.emulator.files import Files, safe_name
from fal_proxy.emulator.pictures import Gallery


def test_parts_that_arrive_interleaved_join_in_order() -> None:
    spool = Spool(8)
    first, second = Blob(spool), Blob(spool)
    second.write(b"WORLD")
    first.write(b"hello")
    second.write(b"!")
    first.write(b", ")
    joined = Blob.joined([first, second])
    assert joined.bytes() == b"hello, WORLD!"
    assert spool.on_disk
    assert joined.etag.endswith('-2"')
    assert [b"".join(joined.read(start, 9)) for start in (0, 4, 5, 8, 9)] == [
        b"hello, WO",
        b"o, WO",
        b", WO",
        b"O",
        b"",
    ]


def test_an_entity_tag_is_the_quoted_md5_of_the_content() -> None:
    assert Blob.of(b"").etag == '"d41d8cd98f00b204e9800998ecf8427e"'
    assert Blob.of(b"a").etag != Blob.of(b"b").etag


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("cat.png", "cat.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\tmp\\ä b?.png", "_b_.png"),
        ("..", "file"),
        ("", "file"),
        ("a" * 300 + ".png", "a" * 96 + ".png"),
    ],
)
def test_file_names_are_reduced_to_what_a_url_can_hold(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_a_file_is_found_by_its_public_and_by_its_real_url() -> None:
    files = Files("http://localhost:1/", Random(1), lambda: 0.0, Gallery())
    url = files.publish("a.txt", "text/plain", Blob.of(b"x"))
    assert url.startswith("http://localhost:1/v3b.fal.media/files/b/")
    path = url.removeprefix("http://localhost:1/v3b.fal.media")
    assert files.by_url(url) is files.by_url(f"https://v3.fal.media{path}") is files.find(path) is not None
    assert not files.is_ours("https://example.test/files/b/1/a.txt")
    assert not files.is_ours("http://[bad")


def test_a_file_expires_and_the_oldest_goes_when_there_are_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    files = Files("http://x", Random(1), lambda: now, Gallery())
    path, file = files.reserve("a", "text/plain")
    file.expires_at = 10.0
    assert files.find(path) is file
    now = 10.0
    assert files.find(path) is None
    monkeypatch.setattr(files_module, "KEPT_MEMORY_BYTES", 100)
    urls = [files.publish("b", "text/plain", Blob.of(bytes(40))) for _ in range(3)]
    assert [files.by_url(url) is not None for url in urls] == [False, True, True]
