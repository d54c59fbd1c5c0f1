"""HTTP over a WebSocket (ws.fal.run), and world models over WebRTC (wma.fal.run), both emulated."""

import json
from decimal import Decimal
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection

from support.emulated import Emulated, emulated
from support.realtime import KEY, opened, refused

OFFER = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\na=mid:0\r\na=recvonly\r\n"


def is_meta(message: str | bytes) -> bool:
    """Tell a frame about the answer from one of the answer, as fal's SDK does."""
    if not isinstance(message, str):
        return False
    try:
        value = json.loads(message)
    except ValueError:
        return False
    return isinstance(value, dict) and "type" in value and "request_id" in value


async def answer(socket: ClientConnection) -> tuple[Any, list[str | bytes], Any]:
    """Read one answer: its start, its body frames, its end."""
    start, frames = json.loads(await socket.recv()), list[str | bytes]()
    while not is_meta(message := await socket.recv()):
        frames.append(message)
    return start, frames, json.loads(message)


def joined(frames: list[str | bytes]) -> bytes:
    """Return the body that the frames carry."""
    return b"".join(frame.encode() if isinstance(frame, str) else frame for frame in frames)


async def test_every_message_is_a_request_and_answers_keep_their_order() -> None:
    async with emulated() as fal:
        async with opened(fal, "/a/b/c", host="ws.fal.run") as socket:
            for number in range(3):
                await socket.send(json.dumps({"number": number}))
            for number in range(3):
                start, frames, end = await answer(socket)
                assert (start["type"], start["status"], end["type"], end["status"]) == ("start", 200, "end", 200)
                assert start["request_id"] == end["request_id"] == start["headers"]["x-fal-request-id"]
                assert start["headers"]["content-type"] == "application/json"
                assert end["time_to_first_byte_seconds"] >= 0
                seen = json.loads(joined(frames))
                assert (seen["input"], seen["endpoint"], seen["method"]) == ({"number": number}, "a/b/c", "POST")
        entry = await fal.finished()
        assert Decimal(entry.units or "") == 3
        assert (entry.host, entry.target) == ("ws.fal.run", b"/a/b/c")


async def test_a_failed_request_leaves_the_socket_open() -> None:
    async with emulated() as fal, opened(fal, "/fal-ai/flux/dev", host="ws.fal.run") as socket:
        for body, kind in (("no json", "json_invalid"), ("{}", "missing")):
            await socket.send(body)
            start, frames, end = await answer(socket)
            assert (start["status"], end["status"]) == (422, 422)
            assert json.loads(joined(frames))["detail"][0]["type"] == kind


async def test_a_stream_comes_as_frames_of_server_sent_events() -> None:
    async with emulated() as fal, opened(fal, "/emulator/split/stream", host="ws.fal.run") as socket:
        await socket.send("{}")
        start, frames, _ = await answer(socket)
        assert start["headers"]["content-type"].startswith("text/event-stream")
        assert any(isinstance(frame, bytes) for frame in frames), "half a character is no text"
        events = [json.loads(event.removeprefix("data: ")) for event in joined(frames).decode().split("\n\n")[:-1]]
        assert [event["partial"] for event in events] == [True] * 4 + [False]


async def test_a_large_answer_arrives_whole() -> None:
    async with emulated() as fal, opened(fal, "/emulator/large", host="ws.fal.run") as socket:
        await socket.send(json.dumps({"bytes": 1_000_000}))
        _, frames, _ = await answer(socket)
        assert len(json.loads(joined(frames))["padding"]) == 1_000_000


@pytest.mark.parametrize(("path", "headers", "status"), [("/a/b", {}, 401), ("/a", KEY, 404)])
async def test_ws_fal_run_lets_in_with_a_key_and_to_an_app(path: str, headers: dict[str, str], status: int) -> None:
    async with emulated() as fal:
        assert (await refused(fal, path, host="ws.fal.run", headers=headers))[0] == status


async def wma(fal: Emulated, path: str, body: Any, headers: dict[str, str] = KEY) -> tuple[int, Any]:
    """Ask wma.fal.run."""
    async with httpx2.AsyncClient(headers=headers) as client:
        said = await client.post(fal.at("wma.fal.run", path), json=body)
    return said.status_code, said.json()


async def test_a_world_model_session_lives_by_its_heartbeats_which_are_billed() -> None:
    now = 1_800_000_000.0
    async with emulated(clock=lambda: now) as fal:
        status, ice = await wma(fal, "/ice", {"app_id": "fal-ai/world"})
        assert (status, ice["ice_servers"][0]["urls"]) == (200, ["stun:127.0.0.1:3478"])
        status, session = await wma(fal, "/session", {"app_id": "fal-ai/world", "sdp": OFFER, "type": "offer"})
        assert (status, session["type"]) == (200, "answer")
        assert "a=sendonly" in session["sdp"].split("\r\n")
        beat = {"session_id": session["session_id"]}
        for _ in range(3):
            now += 5
            assert await wma(fal, "/session/heartbeat", beat) == (200, {"alive": True})
        now += 16
        assert await wma(fal, "/session/heartbeat", beat) == (200, {"alive": False})
        assert await wma(fal, "/session/heartbeat", {"session_id": "x"}) == (200, {"alive": False})
        assert sum(Decimal(entry.units or 0) for entry in fal.app.journal) == 15


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/session", {"app_id": "a/b", "sdp": OFFER, "type": "offer"}, {}, 401),
        ("/session", {"app_id": "a/b", "sdp": OFFER, "type": "answer"}, KEY, 422),
        ("/session", {"app_id": "a/b", "type": "offer"}, KEY, 422),
        ("/session/heartbeat", {}, KEY, 422),
        ("/ice", None, KEY, 422),
        ("/elsewhere", {}, KEY, 404),
    ],
)
async def test_wma_refuses(path: str, body: Any, headers: dict[str, str], status: int) -> None:
    async with emulated() as fal:
        assert (await wma(fal, path, body, headers))[0] == status


async def test_units_of_http_answers_are_in_the_journal_too() -> None:
    async with emulated() as fal, httpx2.AsyncClient(headers=KEY) as client:
        await client.post(fal.at("fal.run", "/fal-ai/flux/dev"), json={"prompt": "x", "num_images": 3})
        assert fal.last.units == "3"
        await client.post(fal.at("fal.run", "/fal-ai/flux/dev"), json={})
        assert fal.last.units == "0"
