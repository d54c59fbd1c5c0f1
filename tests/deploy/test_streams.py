"""What nginx and Caddy must leave as it is: events, sockets, uploads and departures, for raw callers and the official client."""

from __future__ import annotations

import asyncio
import json
import shutil

import msgspec
import pytest
from websockets.asyncio.client import connect

from support.node import Node
from support.proxied import MOUNT
from support.replicas import SECONDS, Deployment

pytestmark = pytest.mark.asyncio(loop_scope="session")
MIB = 1024 * 1024


async def test_an_event_arrives_before_the_next_one_is_made(site: Deployment) -> None:
    async with site.open() as client, asyncio.timeout(SECONDS):
        await client.send(site.request("POST", "/fal.run/emulator/slow/stream", body='{"seconds": 20}'))
        status, _ = await client.read_head()
        first = await client.read_chunk()
        entry = site.fal.last
        assert (status, entry.answer_complete, entry.done.is_set()) == (200, False, False)
        assert json.loads(first.removeprefix(b"data: ")) == {"seconds": 0, "partial": True}
        rest = b""
        while chunk := await client.read_chunk():
            rest += chunk
    assert json.loads(rest.strip().removeprefix(b"data: ")) == {"seconds": 20, "partial": False}


async def test_events_of_http_2_arrive_one_by_one(site: Deployment) -> None:
    if (curl := shutil.which("curl")) is None:
        pytest.skip("curl not found")
    url = f"{site.front.url}{MOUNT}/fal.run/emulator/slow/stream"
    command = [curl, "-sSN", "--http2", "--cacert", str(site.front.certificate), url, "-d", '{"seconds": 15}']
    command += ["-H", f"Authorization: Bearer {site.keys['default']}", "-H", "Content-Type: application/json"]
    process = await asyncio.create_subprocess_exec(*command, "-w", "%{http_version}", stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(SECONDS):
        first = await process.stdout.readline()
        assert not site.fal.last.answer_complete
        rest = await process.stdout.read()
        assert await process.wait() == 0
    assert json.loads(first.removeprefix(b"data: ")) == {"seconds": 0, "partial": True}
    assert rest.endswith(b"2"), "the version"


async def test_a_caller_who_leaves_ends_the_stream_at_fal(site: Deployment) -> None:
    async with site.open() as client, asyncio.timeout(SECONDS):
        await client.send(site.request("POST", "/fal.run/emulator/slow/stream", body='{"seconds": 3600}'))
        await client.read_head()
        await client.read_chunk()
        entry = site.fal.last
    async with asyncio.timeout(SECONDS):
        await entry.done.wait()
    assert entry.disconnected


async def test_a_socket_passes_both_ways(site: Deployment) -> None:
    url = f"wss://127.0.0.1:{site.front.port}{MOUNT}/fal.run/emulator/echo/realtime"
    fields = {"Authorization": f"Bearer {site.keys['default']}"}
    async with (
        connect(url, additional_headers=fields, ssl=site.secure, proxy=None) as socket,
        asyncio.timeout(SECONDS),
    ):
        for turn in range(3):
            await socket.send(msgspec.msgpack.encode({"turn": turn}))
            answer = await socket.recv(decode=False)
            assert msgspec.msgpack.decode(answer)["input"] == {"turn": turn}


async def test_an_upload_goes_up_as_it_comes(site: Deployment) -> None:
    start = await site.ask(
        "POST",
        "/rest.fal.ai/storage/upload/initiate?storage_type=fal-cdn-v3",
        body='{"content_type": "application/octet-stream", "file_name": "a.bin"}',
    )
    url = json.loads(start.body)["upload_url"]
    assert url.startswith(f"{site.front.url}{MOUNT}/uploads/")
    path, half = url.removeprefix(site.front.url), bytes(4 * MIB)
    async with site.open() as client, asyncio.timeout(SECONDS):
        head = f"PUT {path} HTTP/1.1\r\nHost: 127.0.0.1:{site.front.port}\r\nContent-Length: {2 * len(half)}\r\n\r\n"
        await client.send(head.encode() + half)
        # Of what a caller has sent, at most the sockets' buffers may still be on the way.
        await site.fal.arrived(len(site.fal.app.journal), MIB)
        assert not site.fal.last.body_complete
        await client.send(half)
        answer = await client.answer()
    assert answer.status == 200, answer
    assert (await site.fal.finished()).body_bytes == 2 * len(half)


async def test_a_long_target_and_a_large_body_pass(site: Deployment) -> None:
    prompt = "p" * (3 * MIB)
    answer = await site.ask("POST", "/fal.run/emulator/echo", body=json.dumps({"prompt": prompt}))
    assert json.loads(answer.body)["input"]["prompt"] == prompt
    long = await site.ask("GET", "", x_fal_target_url="https://queue.fal.run/a/b/requests/" + "r" * 7000)
    assert json.loads(long.body)["error_type"] in ("invalid_target", "unknown_request")
    assert (await site.ask("GET", "/me", Cookie="session=" + "s" * 20_000)).status == 200


async def test_a_job_is_known_to_the_replica_that_did_not_submit_it(site: Deployment) -> None:
    before = [len(replica.lines) for replica in site.replicas]
    submitted = await site.ask("POST", "/queue.fal.run/emulator/slow", body='{"seconds": 3600}')
    status = f"/queue.fal.run/emulator/slow/requests/{json.loads(submitted.body)['request_id']}/status"
    async with asyncio.timeout(SECONDS):
        while not all(
            any(line["kind"] == "status" for line in replica.lines[start:])
            for replica, start in zip(site.replicas, before, strict=True)
        ):
            assert (await site.ask("GET", status)).status == 202
    assert (await site.ask("GET", status, "methods")).status == 404, "and nobody else's on either"


@pytest.mark.parametrize("who", ["key", "anonymous"])
async def test_the_official_client_subscribes(site: Deployment, node: Node, who: str) -> None:
    credentials = site.keys["default"] if who == "key" else None
    options = {"input": {"prompt": "a pier", "image_size": "square"}, "logs": True}
    seen = await site.play(
        node, "subscribe.mjs", "picture", endpoint="fal-ai/flux/dev", options=options, credentials=credentials
    )
    assert seen["magic"].startswith("ffd8"), "a JPEG"
    assert [update["status"] for update in seen["updates"]][-1] == "COMPLETED"


async def test_the_official_client_streams_and_uploads(site: Deployment, node: Node) -> None:
    credentials = site.keys["default"]
    seen = await site.play(
        node, "stream.mjs", "stream", endpoint="emulator/echo", input={"prompt": "ž"}, credentials=credentials
    )
    assert [event["partial"] for event in seen["events"]] == [True] * 4 + [False]
    size = 2 * MIB
    stored = await site.play(
        node, "storage.mjs", "upload", name="a.png", type="image/png", size=size, credentials=credentials
    )
    assert (stored["got"]["size"], stored["got"]["hash"]) == (size, stored["sent"]["hash"])


async def test_the_official_client_talks_over_a_socket(site: Deployment, node: Node) -> None:
    inputs = [{"prompt": "žluťoučký 🐎", "n": number} for number in range(3)]
    seen = await site.play(
        node, "realtime.mjs", "converse", endpoint="a/b/c", inputs=inputs, credentials=site.keys["default"]
    )
    assert [result["input"] for result in seen["results"]] == inputs
    assert seen["errors"] == []
