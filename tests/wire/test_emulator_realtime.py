"""Realtime sessions of the emulator: msgpack both ways, what is dropped, how a session ends."""

import asyncio
import base64
import json
from io import BytesIO

import msgspec
import pytest
from PIL import Image, ImageDraw, ImageStat

from support.emulated import emulated
from support.realtime import TIMEOUT_MESSAGE, ask, hear, opened, to_the_end

STILL_SECONDS = 0.5  # in which nothing moves any more
SLEEP_SECONDS = 0.6
ODD = {"text": "žluťoučký 🐎", "bytes": b"\x00\xff", "float": 1.5, "list": [1, None, True], "big": 2**63}


def drawing(colour: str) -> str:
    """Return a small drawing as a data URI."""
    image = Image.new("RGB", (128, 96), "white")
    ImageDraw.Draw(image).rectangle((20, 20, 108, 76), fill=colour)
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


async def test_an_input_comes_back_as_msgpack_with_every_type_intact() -> None:
    async with emulated() as fal, opened(fal, "/a/b/c/realtime?fal_jwt_token=unused") as socket:
        answer = await ask(socket, ODD)
        assert answer["input"] == ODD
        assert answer["endpoint"] == "a/b/c"
        assert "authorization" not in answer["headers"]
        assert answer["query"] == {}


async def test_answers_keep_the_order_of_their_inputs() -> None:
    async with emulated() as fal, opened(fal, "/a/b/realtime") as socket:
        for number in range(20):
            await socket.send(msgspec.msgpack.encode({"number": number}))
        assert [(await hear(socket))["input"]["number"] for _ in range(20)] == list(range(20))


@pytest.mark.parametrize("kept", [1, 3])
async def test_inputs_beyond_max_buffering_push_out_the_oldest(kept: int) -> None:
    async with emulated(speed=1) as fal, opened(fal, f"/emulator/slow/realtime?max_buffering={kept}") as socket:
        await socket.send(msgspec.msgpack.encode({"seconds": SLEEP_SECONDS}))
        await fal.received(1)
        for number in range(1, 9):
            await socket.send(msgspec.msgpack.encode({"seconds": number / 1000}))
        answered = [(await hear(socket))["seconds"] for _ in range(1 + kept)]
        assert answered == [SLEEP_SECONDS, *(number / 1000 for number in range(9 - kept, 9))]


async def test_a_drawing_is_repainted_and_depends_on_drawing_prompt_seed_and_strength() -> None:
    async with emulated() as fal, opened(fal, "/fal-ai/lcm-sd15-i2i/realtime") as socket:
        basis = {"prompt": "a lake", "image_url": drawing("red"), "seed": 7, "sync_mode": True, "request_id": "r1"}

        async def painted(**changed: object) -> bytes:
            result = await ask(socket, {**basis, **changed})
            timings = await hear(socket)
            assert timings["type"] == "x-fal-message"
            assert timings["action"] == "timings"
            assert result["request_id"] == "r1"
            image = result["images"][0]
            assert (image["width"], image["height"], image["content_type"]) == (128, 96, "image/jpeg")
            return base64.b64decode(image["url"].removeprefix("data:image/jpeg;base64,"))

        first = await painted()
        assert await painted() == first
        others = [
            await painted(image_url=drawing("green")),
            await painted(prompt="a desert"),
            await painted(seed=8),
            await painted(strength=0.3),
        ]
        assert len({first, *others}) == 5
        dark, light = await painted(image_url=drawing("black")), await painted(image_url=drawing("white"))
        means = [ImageStat.Stat(Image.open(BytesIO(each))).mean[1] for each in (dark, light)]
        assert means[0] + 30 < means[1]


async def test_timings_are_json_text_without_spaces() -> None:
    async with emulated() as fal, opened(fal, "/fal-ai/lcm-sd15-i2i/realtime") as socket:
        await ask(socket, {"prompt": "x", "image_url": drawing("red")})
        text = await socket.recv()
        assert isinstance(text, str)
        assert text.startswith('{"type":"x-fal-message","action":"timings","timing":')


async def test_silence_ends_in_timeout_and_1000() -> None:
    async with emulated() as fal, opened(fal, "/emulator/idle/realtime") as socket:
        assert (await ask(socket, {"x": 1}))["input"] == {"x": 1}
        assert await to_the_end(socket) == ([TIMEOUT_MESSAGE], 1000, "")
        entry = await fal.finished()
        assert entry.session is not None
        assert (entry.session.close_code, entry.session.closed_by_client) == (1000, False)


async def test_a_stream_of_outputs_ends_in_timeout_too() -> None:
    async with emulated() as fal, opened(fal, "/emulator/stream/realtime") as socket:
        await socket.send(msgspec.msgpack.encode({"x": 1}))
        messages, code, _ = await to_the_end(socket)
        *outputs, last = messages
        decoded = [msgspec.msgpack.decode(message) for message in outputs if isinstance(message, bytes)]
        assert [output["partial"] for output in decoded] == [True] * 4 + [False]
        assert (last, code) == (TIMEOUT_MESSAGE, 1000)


@pytest.mark.parametrize(
    ("path", "message", "reason"),
    [
        ("/a/b/realtime", '{"x": 1}', "'bytes'"),
        ("/a/b/realtime", b"\xc1", "Unpack failed"),
        ("/a/b/realtime", b"\x81", "Unpack failed"),
        ("/a/b/realtime", msgspec.msgpack.encode([1]), "must be a mapping, not list"),
        ("/a/b/realtime", msgspec.msgpack.encode("text"), "must be a mapping, not str"),
        ("/a/b/realtime", msgspec.msgpack.encode({1: 2}), "keywords must be strings"),
        ("/a/b/realtime", b"\x91" * 5000, "Unpack failed"),
        (
            "/fal-ai/lcm-sd15-i2i/realtime",
            msgspec.msgpack.encode({"prompt": 1}),
            "2 validation errors for Input\nprompt\n  Input should be a valid string",
        ),
        (
            "/fal-ai/lcm-sd15-i2i/realtime",
            msgspec.msgpack.encode({"prompt": "x", "image_url": "data:image/png;base64,AAAA"}),
            "Failed to load the image",
        ),
        ("/emulator/fail/realtime", msgspec.msgpack.encode({"body": {"detail": "as told"}}), "as told"),
    ],
)
async def test_what_the_app_cannot_take_ends_in_internal_error(path: str, message: str | bytes, reason: str) -> None:
    async with emulated() as fal, opened(fal, path) as socket:
        await socket.send(message)
        messages, code, _ = await to_the_end(socket)
        assert len(messages) == 1
        said = json.loads(messages[0])
        assert (said["type"], said["error"], code) == ("x-fal-error", "INTERNAL_ERROR", 1000)
        assert reason in said["reason"]


async def test_a_picture_that_is_broken_below_its_head_is_an_internal_error() -> None:
    buffer = BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    cut = "data:image/png;base64," + base64.b64encode(buffer.getvalue()[:60]).decode()
    async with emulated() as fal, opened(fal, "/fal-ai/lcm-sd15-i2i/realtime") as socket:
        assert (await ask(socket, {"prompt": "x", "image_url": cut}))["error"] == "INTERNAL_ERROR"


async def test_a_bad_input_ends_the_session_although_an_answer_is_on_its_way() -> None:
    async with emulated(speed=1) as fal, opened(fal, "/emulator/slow/realtime") as socket:
        await socket.send(msgspec.msgpack.encode({"seconds": 600}))
        await socket.send(b"\xc1")
        messages, code, _ = await to_the_end(socket)
        assert [json.loads(message)["error"] for message in messages] == ["INTERNAL_ERROR"]
        assert code == 1000


async def test_text_apps_get_text_and_binary_on_any_path_of_theirs() -> None:
    async with emulated() as fal:
        for path in ("/emulator/text", "/emulator/text/ws/deeper", "/emulator/text/realtime"):
            async with opened(fal, path) as socket:
                for message in ('{"type": "hello"}', "no json ž", b"\x00\x01", ""):
                    await socket.send(message)
                    assert await socket.recv() == message


async def test_a_text_app_does_what_it_is_told() -> None:
    async with emulated() as fal, opened(fal, "/emulator/text") as socket:
        await socket.send('{"emulator": {"send": {"count": 3, "bytes": 5, "binary": true}}}')
        assert [await socket.recv() for _ in range(3)] == [b"0 ...", b"1 ...", b"2 ..."]
        await socket.send('{"emulator": {"close": {"code": 1005}}}')
        assert "error" in await hear(socket)
        await socket.send('{"emulator": {"close": {"code": 4000, "reason": "enough"}}}')
        assert await to_the_end(socket) == ([], 4000, "enough")


async def test_an_app_that_sleeps_reads_nothing_and_the_sender_is_held_back() -> None:
    async with emulated(speed=1) as fal, opened(fal, "/emulator/text", close_timeout=0.1) as socket:
        await socket.send('{"emulator": {"sleep": 600}}')

        for _ in range(512):
            try:
                await asyncio.wait_for(socket.send(bytes(1024 * 1024)), STILL_SECONDS)
            except TimeoutError:
                break
        else:
            raise AssertionError("all of it was taken")
        assert (await fal.received(1)).received == 1
        socket.transport.abort()


@pytest.mark.parametrize(
    ("path", "host", "message"),
    [
        ("/emulator/text", "fal.run", '{"emulator": {"sleep": 600}}'),
        ("/emulator/slow/realtime", "fal.run", msgspec.msgpack.encode({"seconds": 600})),
        ("/emulator/stream/realtime", "fal.run", msgspec.msgpack.encode({})),
        ("/emulator/slow", "ws.fal.run", '{"seconds": 600}'),
    ],
)
async def test_a_client_that_leaves_during_long_work_ends_the_session(
    path: str, host: str, message: str | bytes
) -> None:
    async with emulated(speed=0.01) as fal:
        async with opened(fal, path, host=host) as socket:
            await socket.send(message)
            await fal.received(1)
            socket.transport.abort()
        entry = await fal.finished()
        assert entry.disconnected


async def test_lucy_shakes_hands_for_webrtc_in_json() -> None:
    offer = (
        "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n"
        "m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=mid:0\r\na=sendonly\r\na=rtpmap:96 VP8/90000\r\na=ice-ufrag:theirs\r\n"
    )
    async with emulated() as fal, opened(fal, "/decart/lucy-2-5/realtime") as socket:
        await socket.send('{"type": "ready"}')
        ready = await hear(socket)
        assert ready["type"] == "ready"
        assert ready["ice_servers"][0]["urls"]
        await socket.send(json.dumps({"type": "icecandidate", "candidate": {}}))
        await socket.send(json.dumps({"type": "offer", "sdp": offer}))
        answer = await hear(socket)
        assert answer["type"] == "answer"
        lines = answer["sdp"].split("\r\n")
        assert {"a=group:BUNDLE 0", "m=video 9 UDP/TLS/RTP/SAVPF 96", "a=mid:0", "a=recvonly"} <= set(lines)
        assert "a=ice-ufrag:theirs" not in lines
        assert any(line.startswith("a=fingerprint:sha-256 ") for line in lines)
