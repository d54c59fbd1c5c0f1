"""The start of an upload, in every storage mode: what may be started, and what fal is told of it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fal_proxy.settings import Settings, Storage
from support.peers import Serve, Upstream
from support.proxied import MOUNT, StartProxy, with_server
from support.raw import RawAnswer, raw_client, request
from support.scripts import answering, ok
from support.storage import INITIATE, INITIATE_MULTIPART, page, relaying

FAL = ok(b'{"upload_url":"https://v3b.fal.media/files/b/1/x?s=1","file_url":"https://v3b.fal.media/files/b/1/x"}')


async def start_upload(
    start: StartProxy, upstream: Upstream, body: bytes, settings: Settings | None = None, path: str = INITIATE
) -> RawAnswer:
    """Start an upload with this body, as a holder of a user key."""
    proxy = await start(upstream, settings)
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", MOUNT + path, proxy.bearer, body))
        return await client.answer()


def told(upstream: Upstream) -> object:
    """Return what fal was told."""
    return msgspec.json.decode(bytes(upstream.peers[0].received).partition(b"\r\n\r\n")[2])


NAMES = [
    ("photo.png", "photo.png", "as it is"),
    ("žluť kůň.txt", "žluť kůň.txt", "letters of any language"),
    ("../../etc/passwd", "_.._etc_passwd", "no way out of a folder"),
    ("a\\b.png", "a_b.png", "nor with the other separator"),
    ("a\x00b\r\nc.png", "a_b__c.png", "no controls"),
    ("gpj.\u202eexe", "gpj._exe", "nothing that turns the direction of text"),
    ("a\u200bb.png", "a_b.png", "nothing unseen"),
    ("", "file", "a name"),
    ("...", "file", "as above"),
    ("x" * 300 + ".png", "x" * 251 + ".png", "255 bytes, with the extension"),
    ("é" * 200, "é" * 127, "bytes, and whole characters"),
]


@pytest.mark.parametrize(("name", "kept", "reason"), NAMES, ids=[row[2] for row in NAMES])
async def test_fal_is_told_a_harmless_name(name: str, kept: str, reason: str, serve: Serve, start: StartProxy) -> None:
    upstream = serve(answering(FAL))
    body = msgspec.json.encode({"content_type": "image/png", "file_name": name, "acl": "public"})
    answer = await start_upload(start, upstream, body)
    assert answer.status == 200
    assert told(upstream) == {"content_type": "image/png", "file_name": kept}, reason


ACCEPTED = [
    "image/png",
    "IMAGE/PNG",
    "text/plain; charset=utf-8",
    "audio/webm;codecs=opus",
    "application/pdf",
    "model/gltf-binary",
]
REFUSED = [
    ("application/x-msdownload", "not listed"),
    ("image", "no type"),
    ("image/", "no subtype"),
    ("image/png, text/html", "two types"),
    ("image/png\r\nx: y", "another line"),
    ("imagex/png", "a prefix only"),
    ("x/image/png", "not where it stands"),
    ("", "nothing"),
    (7, "no text"),
    (["image/png"], "a list"),
]


@pytest.mark.parametrize("content_type", ACCEPTED)
async def test_a_listed_content_type_goes_up_as_it_was_written(
    content_type: str, serve: Serve, start: StartProxy
) -> None:
    upstream = serve(answering(FAL))
    answer = await start_upload(start, upstream, msgspec.json.encode({"content_type": content_type}))
    assert answer.status == 200
    assert told(upstream) == {"content_type": content_type}
    assert b"https://v3b.fal.media/files/b/1/x?s=1" in answer.body, "direct mode: fal's own URL"


@pytest.mark.parametrize("path", [INITIATE, INITIATE_MULTIPART])
@pytest.mark.parametrize(("content_type", "reason"), REFUSED)
async def test_another_content_type_is_refused_without_a_dial(
    content_type: object, reason: str, path: str, serve: Serve, start: StartProxy
) -> None:
    upstream = serve(answering(FAL))
    body = msgspec.json.encode({"content_type": content_type, "file_name": "a.png"})
    answer = await start_upload(start, upstream, body, path=path)
    assert (answer.status, answer.one(b"x-fal-error-type")) == (422, b"input_denied"), reason
    assert not upstream.peers


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'"x"', b"\xff", b"[" * 5000, b'{"content_type":"a/b","file_name":1}']
)
async def test_what_is_no_start_of_an_upload_is_refused_without_a_dial(
    body: bytes, serve: Serve, start: StartProxy
) -> None:
    upstream = serve(answering(FAL))
    answer = await start_upload(start, upstream, body)
    assert (answer.status, answer.one(b"x-fal-error-type")) == (422, b"input_denied")
    assert not upstream.peers


async def test_the_start_of_an_upload_is_short(serve: Serve, start: StartProxy) -> None:
    upstream = serve(answering(FAL))
    body = msgspec.json.encode({"content_type": "image/png", "file_name": "x" * 20_000})
    assert (await start_upload(start, upstream, body)).status == 413
    assert not upstream.peers


async def test_uploads_can_be_off(serve: Serve, start: StartProxy, settings: Settings) -> None:
    upstream = serve(answering(FAL))
    off = msgspec.structs.replace(settings, storage=Storage(mode="off"))
    answer = await start_upload(start, upstream, b"{}", off)
    assert (answer.status, answer.one(b"x-fal-error-type")) == (403, b"mode_off")
    assert not upstream.peers


NOT_RELAYABLE = [
    (b"[]", "no object"),
    (b"not json", "no JSON"),
    (b"{}", "no address"),
    (b'{"upload_url": 7}', "no text"),
    (b'{"upload_url": "http://v3b.fal.media/x"}', "not encrypted"),
    (b'{"upload_url": "https://v3b.fal.media:8443/x"}', "another port"),
    (b'{"upload_url": "https://u@v3b.fal.media/x"}', "a user"),
    (b'{"upload_url": "https://v3b.fal.media.evil.example/x"}', "another host"),
    (b'{"upload_url": "https://169.254.169.254/x"}', "the cloud's own"),
    (b'{"upload_url": "https://rest.fal.ai/x"}', "a host that the key goes to"),
    (b'{"upload_url": "https://v3b.fal.media"}', "no path"),
    (b'{"upload_url": "https://v3b.fal.media/a b"}', "a space"),
    (b'{"upload_url": "https://v3b.fal.media/a#b"}', "a fragment"),
    ('{"upload_url": "https://v3b.fal.media/é"}'.encode(), "no URL"),
]


@pytest.mark.parametrize(("body", "reason"), NOT_RELAYABLE, ids=[row[1] for row in NOT_RELAYABLE])
async def test_an_answer_that_cannot_be_relayed_is_not_passed_on(
    body: bytes, reason: str, serve: Serve, start: StartProxy, settings: Settings
) -> None:
    upstream = serve(answering(ok(body)))
    relay = msgspec.structs.replace(settings, storage=Storage(mode="relay"))
    answer = await start_upload(start, upstream, b'{"content_type":"image/png"}', relay)
    assert (answer.status, answer.one(b"x-fal-error-type")) == (502, b"upstream_invalid"), reason


async def test_public_url_is_what_upload_urls_begin_with(tmp_path: Path) -> None:
    settings = with_server(relaying(tmp_path), public_url="https://proxy.example.com")
    async with page(tmp_path, settings) as app:
        answer = await app.ask("POST", MOUNT + INITIATE, app.proxy.bearer, b'{"content_type":"image/png"}')
        url = msgspec.json.decode(answer.body)["upload_url"]
        assert url.startswith("https://proxy.example.com/api/fal/proxy/uploads/")
