"""run and stream of the emulator, its tokens and its journal, over real sockets."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from support.emulated import Emulated, emulated

KEY = {"authorization": "Key id:secret"}
FLUX = "/fal-ai/flux/dev"


@pytest.fixture
async def fal() -> AsyncIterator[Emulated]:
    async with emulated(speed=100) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(headers=KEY, timeout=10) as made:
        yield made


def events(text: str) -> list[Any]:
    lines = text.replace("\r\n", "\n").split("\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


async def test_run_answers_with_the_picture_and_fals_headers(client: httpx2.AsyncClient, fal: Emulated) -> None:
    answer = await client.post(fal.at("fal.run", FLUX), json={"prompt": "a lake", "seed": 3})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-fal-billable-units"] == "1"
    assert answer.headers["x-fal-request-id"]
    assert answer.headers["x-fal-served-from"]
    async with httpx2.AsyncClient() as browser:
        picture = await browser.get(answer.json()["images"][0]["url"])
        assert (picture.status_code, picture.headers["content-type"]) == (200, "image/jpeg")
        again = await client.post(fal.at("falrun.com", FLUX + "/"), json={"prompt": "a lake", "seed": 3})
        assert (await browser.get(again.json()["images"][0]["url"])).content == picture.content


async def test_run_refuses_a_wrong_input_at_once_with_zero_units(client: httpx2.AsyncClient, fal: Emulated) -> None:
    answer = await client.post(fal.at("fal.run", FLUX), json={})
    assert answer.status_code == 422
    assert answer.headers["x-fal-billable-units"] == "0"
    assert answer.headers["x-fal-request-id"]
    assert answer.json()["detail"][0]["loc"] == ["body", "prompt"]
    broken = await client.post(fal.at("fal.run", FLUX), content=b'{"prompt":')
    assert broken.json()["detail"][0]["type"] == "json_invalid"


async def test_fail_answers_with_exactly_the_status_and_body_it_was_given(
    client: httpx2.AsyncClient, fal: Emulated
) -> None:
    given = {"status": 451, "body": {"ž": [1, None]}}
    answer = await client.post(fal.at("fal.run", "/emulator/fail"), json=given)
    assert (answer.status_code, answer.json()) == (451, given["body"])
    streamed = await client.post(fal.at("fal.run", "/emulator/fail/stream"), json=given)
    assert (streamed.status_code, streamed.json()) == (451, given["body"])


async def test_echo_shows_the_request_without_its_credentials(client: httpx2.AsyncClient, fal: Emulated) -> None:
    answer = await client.put(fal.at("fal.run", "/me/my-app/some/path?x=1"), json=["in"], headers={"x-fal-tags": "a=b"})
    body = answer.json()
    assert (body["endpoint"], body["method"], body["input"]) == ("me/my-app/some/path", "PUT", ["in"])
    assert (body["query"], body["headers"]["x-fal-tags"]) == ({"x": "1"}, "a=b")
    assert "secret" not in answer.text
    assert (await client.get(fal.at("fal.run", FLUX))).status_code == 405


async def test_streamed_text_has_named_events_crlf_and_whole_characters(
    client: httpx2.AsyncClient, fal: Emulated
) -> None:
    answer = await client.post(fal.at("fal.run", "/fal-ai/any-llm/stream"), json={"prompt": "hi"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.startswith("event: event\r\ndata: {")
    seen = events(answer.text)
    assert seen[-1]["partial"] is False
    assert "žluťoučký kůň" in seen[-1]["output"]


async def test_streamed_pictures_end_with_the_finished_one(client: httpx2.AsyncClient, fal: Emulated) -> None:
    answer = await client.post(fal.at("fal.run", FLUX + "/stream"), json={"prompt": "x", "image_size": "square"})
    seen = events(answer.text)
    assert len(seen) == 5
    assert seen[0]["images"][0]["url"].startswith("data:image/jpeg")
    assert seen[-1]["images"][0]["url"].startswith(fal.url)
    assert "x-fal-billable-units" not in answer.headers


async def test_a_split_stream_breaks_inside_a_character_and_still_adds_up(
    client: httpx2.AsyncClient, fal: Emulated
) -> None:
    pieces: list[bytes] = []
    async with client.stream("POST", fal.at("fal.run", "/emulator/split/stream"), json={}) as answer:
        pieces.extend([piece async for piece in answer.aiter_raw()])
    assert any(piece[0] & 0xC0 == 0x80 for piece in pieces)
    assert events(b"".join(pieces).decode())[-1]["partial"] is False


async def test_a_model_without_a_stream_says_that_the_path_is_not_found(
    client: httpx2.AsyncClient, fal: Emulated
) -> None:
    answer = await client.post(fal.at("fal.run", "/fal-ai/whisper/stream"), json={"audio_url": "https://x.test/a"})
    assert (answer.status_code, answer.json()) == (404, {"detail": "Path /stream not found"})
    assert answer.headers["x-fal-billable-units"] == "0"


async def test_without_a_key_or_with_a_wrong_one_fal_says_so(fal: Emulated) -> None:
    async with emulated(api_keys=["id:secret"]) as strict, httpx2.AsyncClient() as nobody:
        for host in ("fal.run", "queue.fal.run"):
            answer = await nobody.post(strict.at(host, "/fal-ai/flux/dev"), json={"prompt": "x"})
            assert answer.status_code == 401
            assert answer.json() == {"detail": 'Cannot access application "fal-ai/flux"'}
        rest = await nobody.post(strict.at("rest.fal.ai", "/tokens/"), json={})
        assert rest.json() == {"detail": "Authorization header is required"}
        for bad in ("Key wrong", "Basic id:secret", "Key", "Key a b"):
            answer = await nobody.post(strict.at("fal.run", "/a/b"), json={}, headers={"authorization": bad})
            assert (answer.status_code, answer.json()) == (401, {"detail": "invalid key credentials"})
        for good in ("Key id:secret", "Bearer id:secret"):
            answer = await nobody.post(strict.at("fal.run", "/a/b"), json={}, headers={"authorization": good})
            assert answer.status_code == 200
        unknown = await nobody.get(strict.at("queue.fal.run", "/a/b/requests/none/status"))
        assert (unknown.status_code, unknown.json()) == (404, {"status": "NOT_FOUND"})


@pytest.mark.parametrize(
    ("path", "body", "key"),
    [
        ("/tokens/", {"allowed_apps": ["flux"], "token_expiration": 120}, None),
        ("/tokens/realtime", {"allowed_apps": ["fal-ai/flux/dev"], "duration": 120}, "token"),
        ("/tokens/realtime", {"app": "fal-ai/flux"}, "token"),
    ],
)
async def test_a_minted_token_opens_its_app_and_no_other(
    client: httpx2.AsyncClient, fal: Emulated, path: str, body: dict[str, Any], key: str | None
) -> None:
    minted = await client.post(fal.at("rest.fal.ai", path), json=body)
    assert minted.status_code == 201
    token = minted.json()[key] if key else minted.json()
    async with httpx2.AsyncClient() as browser:
        url = fal.at("fal.run", f"{FLUX}?fal_jwt_token={token}")
        assert (await browser.post(url, json={"prompt": "x"})).status_code == 200
        other = fal.at("fal.run", f"/fal-ai/other/stream?fal_jwt_token={token}")
        assert (await browser.post(other, json={})).status_code == 403
        forged = fal.at("fal.run", f"{FLUX}?fal_jwt_token={token}x")
        assert (await browser.post(forged, json={"prompt": "x"})).status_code == 401


async def test_paths_that_name_nothing_are_404(client: httpx2.AsyncClient, fal: Emulated) -> None:
    lonely = await client.post(fal.at("fal.run", "/h3-max"), json={})
    assert (lonely.status_code, lonely.json()) == (404, {"detail": 'Application "h3-max" not found'})
    assert (await client.post(fal.url + "/unknown.host/a/b", json={})).status_code == 404
    assert (await client.post(fal.at("rest.fal.ai", "/applications/me/app/queue"))).status_code == 404
    assert (await client.get(fal.url + "/")).status_code == 200


async def test_gzip_mode_compresses_json_no_matter_what_the_client_accepts() -> None:
    async with emulated(gzip=True) as fal, httpx2.AsyncClient(headers=KEY) as client:
        request = client.build_request(
            "POST", fal.at("fal.run", "/a/b"), json={}, headers={"accept-encoding": "identity"}
        )
        answer = await client.send(request, stream=True)
        raw = b"".join([piece async for piece in answer.aiter_raw()])
        assert answer.headers["content-encoding"] == "gzip"
        assert json.loads(gzip.decompress(raw))["endpoint"] == "a/b"


async def test_inference_hosts_answer_preflights_for_anyone_and_expose_nothing(
    client: httpx2.AsyncClient, fal: Emulated
) -> None:
    asks = {
        "origin": "https://app.test",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,x-fal-queue-priority",
    }
    for host in ("fal.run", "queue.fal.run", "rest.fal.ai"):
        answer = await client.options(fal.at(host, "/a/b"), headers=asks)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.test"
        assert "x-fal-queue-priority" in answer.headers["access-control-allow-headers"]
    answer = await client.post(fal.at("fal.run", "/a/b"), json={}, headers={"origin": "https://app.test"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-expose-headers" not in answer.headers


async def test_the_journal_keeps_the_request_exactly_as_it_came(client: httpx2.AsyncClient, fal: Emulated) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", fal.port)
    target = b"/fal.run/a%2fb//c/%7Ed?x=%20+&y"
    writer.write(b"POST " + target + b" HTTP/1.1\r\nHost: h\r\nX-Odd:  two  spaces\r\nContent-Length: 2\r\n\r\n{}")
    await reader.readline()
    writer.close()
    entry = await fal.finished()
    assert (entry.method, entry.host, entry.target) == ("POST", "fal.run", target.removeprefix(b"/fal.run"))
    assert (b"x-odd", b"two  spaces") in entry.headers
    assert (entry.body, entry.body_bytes, entry.body_complete) == (b"{}", 2, True)
    assert entry.status == 404
    assert not entry.disconnected


async def test_the_journal_tells_when_the_client_left_before_the_answer_ended(fal: Emulated) -> None:
    for path in ("/emulator/slow", "/emulator/slow/stream"):
        reader, writer = await asyncio.open_connection("127.0.0.1", fal.port)
        body = b'{"seconds": 80000}'
        head = f"POST /fal.run{path} HTTP/1.1\r\nHost: h\r\nAuthorization: Key a\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        if path.endswith("stream"):
            await reader.readline()
        else:
            await fal.arrived(body_bytes=len(body))
        writer.close()
        entry = await fal.finished()
        assert entry.disconnected
        assert not entry.answer_complete


async def test_an_upload_that_breaks_off_is_noted_as_a_departure(fal: Emulated) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", fal.port)
    writer.write(b"POST /fal.run/a/b HTTP/1.1\r\nHost: h\r\nAuthorization: Key a\r\nContent-Length: 100\r\n\r\nhalf")
    await writer.drain()
    await fal.arrived(body_bytes=4)
    writer.close()
    entry = await fal.finished()
    assert (entry.disconnected, entry.body, entry.status) == (True, b"half", None)


async def test_a_large_answer_is_streamed(client: httpx2.AsyncClient, fal: Emulated) -> None:
    answer = await client.post(fal.at("fal.run", "/emulator/large"), json={"bytes": 3_000_000})
    assert len(answer.json()["padding"]) == 3_000_000
    assert answer.headers["transfer-encoding"] == "chunked"
