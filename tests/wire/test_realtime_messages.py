"""What passes through a socket: every message as it was, in its order, and the end of either side as it ended."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from fal_proxy.settings import Realtime, Settings
from support.lines import Lines
from support.peers import PATIENCE, Peer, Serve
from support.proxied import FAL_KEY, FAL_KEY_SECRET, Proxy, StartProxy
from support.websocket import (
    BINARY,
    CLOSE,
    CONT,
    GONE,
    PING,
    PONG,
    TEXT,
    CallerEnd,
    FalEnd,
    FalSockets,
    Frame,
    closing,
    frame,
    opened,
    switching,
)

Pair = tuple[CallerEnd, FalEnd]


@pytest.fixture
async def proxy(serve: Serve, start: StartProxy, settings: Settings, fal: FalSockets) -> Proxy:
    generous = Realtime(messages="100000/second", max_message_bytes=1 << 20)
    plans = {"default": msgspec.structs.replace(settings.plans["default"], realtime_sessions=1000)}
    return await start(serve(fal.script), msgspec.structs.replace(settings, realtime=generous, plans=plans))


@pytest.fixture
def fal() -> FalSockets:
    return FalSockets()


@pytest.fixture
async def pair(proxy: Proxy, fal: FalSockets) -> AsyncIterator[Pair]:
    """An open socket, both ends."""
    async with opened(proxy, list(proxy.bearer.items())) as caller:
        yield caller, await fal.next()


SIZES = [0, 1, 125, 126, 127, 4095, 4096, 65535, 65536, 300_000]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["text", "binary"])
async def test_a_message_passes_unchanged_both_ways(pair: Pair, opcode: int, size: int) -> None:
    caller, fal = pair
    data = (b"\xc3\xa9a" * size)[: size - size % 3] + b"x" * (size % 3) if opcode == TEXT else bytes(range(256)) * size
    data = data[:size]
    await caller.send(opcode, data)
    assert await fal.frame() == Frame(opcode, data)
    sending = asyncio.ensure_future(fal.send(opcode, data))
    assert await caller.frame() == Frame(opcode, data)
    await sending


async def test_order_is_kept_across_kinds_and_sizes_both_ways(pair: Pair) -> None:
    caller, fal = pair
    sent = [Frame([TEXT, BINARY][n % 2], b"%d" % n * (n % 50)) for n in range(500)]
    await caller.client.send(b"".join(frame(each.opcode, each.data) for each in sent))
    assert [await fal.frame() for _ in sent] == sent
    await fal.peer.send(b"".join(frame(each.opcode, each.data, masked=False) for each in sent))
    assert [await caller.frame() for _ in sent] == sent


async def test_a_fragmented_message_arrives_as_one_with_pings_between_answered(pair: Pair) -> None:
    caller, fal = pair
    pieces = [
        frame(TEXT, b"a\xc3", fin=False),
        frame(PING, b"now"),
        frame(CONT, b"", fin=False),
        frame(CONT, b"\xa9b"),
    ]
    for piece in pieces:
        await caller.client.send(piece)
    assert await caller.frame() == Frame(PONG, b"now")
    assert await fal.frame() == Frame(TEXT, "aéb".encode())
    await fal.send(BINARY, b"1", fin=False)
    await fal.send(PING, b"then")
    await fal.send(CONT, b"", fin=False)
    await fal.send(CONT, b"2")
    assert await fal.frame() == Frame(PONG, b"then")
    assert await caller.frame() == Frame(BINARY, b"12")


async def test_a_frame_that_comes_byte_by_byte_is_one_message(pair: Pair) -> None:
    caller, fal = pair
    for value in frame(BINARY, b"slow" * 40):
        await caller.client.send(bytes([value]))
        await asyncio.sleep(0)
    assert await fal.frame() == Frame(BINARY, b"slow" * 40)
    await fal.peer.drip(frame(TEXT, b"slow" * 40, masked=False))
    assert await caller.frame() == Frame(TEXT, b"slow" * 40)


CODES = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4000, 4429, 4999]


@pytest.mark.parametrize("code", [*CODES, 1005])
async def test_a_callers_close_reaches_fal_with_code_and_reason(pair: Pair, code: int) -> None:
    caller, fal = pair
    reason = "" if code == 1005 else "because é"
    await caller.close(code, reason)
    assert (await fal.frame()).closing == (code, reason)
    assert await caller.end() == (code, reason)


@pytest.mark.parametrize("code", [*CODES, 1005])
async def test_fals_close_reaches_the_caller_with_code_and_reason(pair: Pair, code: int) -> None:
    caller, fal = pair
    reason = "" if code == 1005 else "é" * 61
    await fal.close(code, reason)
    assert await caller.end() == (code, reason)
    assert (await fal.frame()).closing == (code, reason), "it is answered"


UNSENDABLE = [0, 999, 1004, 1006, 1015, 1016, 2999, 5000]


@pytest.mark.parametrize("code", UNSENDABLE)
async def test_a_code_that_no_frame_may_carry_is_a_breach(pair: Pair, code: int) -> None:
    caller, fal = pair
    await caller.close(code, "")
    assert (await caller.end())[0] == 1002
    assert (await fal.frame()).opcode == CLOSE


@pytest.mark.parametrize("code", UNSENDABLE)
async def test_such_a_code_of_fals_is_a_fault_of_fals(pair: Pair, code: int) -> None:
    caller, fal = pair
    await fal.close(code, "")
    assert (await caller.end())[0] == 1011
    assert (await fal.frame()).closing[0] == 1002


Build = Callable[[bool], bytes]
BREACHES: list[tuple[Build, int, str]] = [
    (lambda _: b"\xff" * 16, 1002, "reserved bits and a reserved opcode"),
    (lambda masked: frame(CONT, b"x", masked=masked), 1002, "a continuation of nothing"),
    (lambda masked: frame(TEXT, b"a", fin=False, masked=masked) * 2, 1002, "a message inside a message"),
    (lambda masked: frame(PING, b"x" * 126, masked=masked), 1002, "a control frame that is too long"),
    (lambda masked: frame(PING, b"x", fin=False, masked=masked), 1002, "a control frame in pieces"),
    (lambda masked: frame(CLOSE, b"\x03", masked=masked), 1002, "a close frame of one byte"),
    (lambda masked: frame(CLOSE, b"\x03\xe8\xff", masked=masked), 1007, "a reason that is not UTF-8"),
    (lambda masked: frame(TEXT, b"\xff\xfe", masked=masked), 1007, "text that is not UTF-8"),
    (lambda masked: frame(TEXT, b"a\xed\xa0\x80", masked=masked), 1007, "a surrogate"),
    (
        lambda masked: frame(TEXT, b"\xc3", fin=False, masked=masked) + frame(CONT, b"x", masked=masked),
        1007,
        "a broken character across fragments",
    ),
    (lambda masked: frame(TEXT, b"x", masked=not masked), 1002, "a mask where none belongs, or none where one does"),
]


@pytest.mark.parametrize(("build", "code", "reason"), BREACHES, ids=[row[2] for row in BREACHES])
async def test_a_breach_of_the_callers_ends_their_socket_and_fals(
    pair: Pair, build: Build, code: int, reason: str
) -> None:
    caller, fal = pair
    await caller.client.send(build(True))
    assert (await caller.end())[0] == code, reason
    assert (await fal.frame()).opcode == CLOSE


@pytest.mark.parametrize(("build", "code", "reason"), BREACHES, ids=[row[2] for row in BREACHES])
async def test_a_breach_of_fals_is_1011_for_the_caller(
    pair: Pair, lines: Lines, build: Build, code: int, reason: str
) -> None:
    caller, fal = pair
    await fal.peer.send(build(False))
    assert (await caller.end())[0] == 1011, (reason, code)
    assert (await fal.frame()).opcode == CLOSE
    caller.client.close()
    [line] = await lines.exactly(1)
    assert line["ending"] == "cut"


async def test_a_caller_that_vanishes_leaves_fal_without_a_close_frame(pair: Pair, lines: Lines) -> None:
    caller, fal = pair
    caller.client.reset()
    assert await fal.frame() is GONE
    [line] = await lines.exactly(1)
    assert (line["ending"], line["kind"], line["status"]) == ("client_gone", "realtime", 101)


async def test_a_caller_that_closes_only_their_direction_has_vanished(pair: Pair) -> None:
    caller, fal = pair
    await caller.send(TEXT, b"last words")
    caller.client.writer.write_eof()
    assert await fal.frame() == Frame(TEXT, b"last words")
    assert await fal.frame() is GONE


@pytest.mark.parametrize("how", ["reset", "close", "half_close"])
async def test_fal_vanishing_ends_the_caller_without_a_close_frame_behind_its_last_message(
    pair: Pair, lines: Lines, how: str
) -> None:
    caller, fal = pair
    await fal.send(BINARY, b"result" * 10_000)
    await fal.peer.delivered()
    getattr(fal.peer, how)()
    assert await caller.frame() == Frame(BINARY, b"result" * 10_000)
    assert await caller.frame() is GONE
    [line] = await lines.exactly(1)
    assert line["ending"] == "cut"


async def test_a_caller_that_vanishes_is_noticed_behind_a_fal_that_reads_nothing(pair: Pair) -> None:
    caller, fal = pair
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):  # until nothing more fits anywhere
            while True:
                await caller.send(BINARY, bytes(500_000))
    caller.client.reset()
    async with asyncio.timeout(PATIENCE * 5):
        await fal.peer.wait_gone()


@pytest.mark.parametrize("way", ["up", "down"])
async def test_whoever_does_not_read_stops_the_other_and_gets_everything_later(pair: Pair, way: str) -> None:
    caller, fal = pair
    source, sink = (caller, fal) if way == "up" else (fal, caller)
    sent = 0
    message = bytes(100_000)

    async def flow() -> None:
        nonlocal sent
        while True:
            await source.send(BINARY, message)
            sent += 1

    flowing = asyncio.ensure_future(flow())
    before = -1
    async with asyncio.timeout(PATIENCE * 10):
        while sent != before:
            before = sent
            await asyncio.sleep(0.3)  # the time in which nothing must move
    assert sent * len(message) < 32 << 20, "somebody holds it all"
    flowing.cancel()
    for _ in range(sent):
        assert await sink.frame() == Frame(BINARY, message)


async def test_messages_that_come_with_the_handshake_are_not_lost(proxy: Proxy, fal: FalSockets) -> None:
    early = frame(PING, b"early") + b"".join(frame(TEXT, b"%d" % n) for n in range(5))
    async with opened(proxy, list(proxy.bearer.items()), behind=early) as caller:
        end = await fal.next()
        assert [(await end.frame()).data for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
        assert await caller.frame() == Frame(PONG, b"early")


async def test_what_fal_sends_with_its_101_is_not_lost(serve: Serve, start: StartProxy) -> None:
    async def script(peer: Peer) -> None:
        head = await peer.read_head()
        await peer.send(switching(head) + frame(TEXT, b"hello", masked=False) + closing(4000, "bye", masked=False))
        await peer.wait_gone()

    proxy = await start(serve(script))
    async with opened(proxy, list(proxy.bearer.items())) as caller:
        assert await caller.frame() == Frame(TEXT, b"hello")
        assert await caller.end() == (4000, "bye")


KEYS: list[tuple[int, Callable[[], bytes], str]] = [
    (TEXT, lambda: json.dumps({"echo": FAL_KEY.reveal()}).encode(), "as it is, in JSON"),
    (BINARY, lambda: b"\0\1" + FAL_KEY_SECRET.encode() + b"\xff", "as it is, between bytes"),
    (TEXT, lambda: base64.b64encode(b"Key " + FAL_KEY.reveal().encode()), "in base64"),
    (TEXT, lambda: "".join(f"%{ord(char):02x}" for char in FAL_KEY_SECRET).encode(), "escaped"),
]


@pytest.mark.parametrize(("opcode", "make", "reason"), KEYS, ids=[row[2] for row in KEYS])
@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_message_with_the_fal_key_never_goes_down(
    pair: Pair, opcode: int, make: Callable[[], bytes], reason: str, pieces: int
) -> None:
    caller, fal = pair
    data = make()
    at = len(data) // pieces + 1
    parts = [data[start : start + at] for start in range(0, len(data), at)]
    await fal.send(TEXT, b"before")
    for n, part in enumerate(parts):
        await fal.send(CONT if n else opcode, part, fin=n == len(parts) - 1)
    assert await caller.frame() == Frame(TEXT, b"before")
    found = await caller.frame()
    assert found.closing[0] == 1011, reason
    assert FAL_KEY_SECRET.encode() not in found.data
    assert (await fal.frame()).opcode == CLOSE


async def test_fal_is_let_go_even_if_it_never_ends_its_side(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fal_proxy.upstream.websocket.CLOSE_SECONDS", 0.2)
    caller, fal = pair
    await fal.close(1000)
    assert await caller.end() == (1000, "")
    async with asyncio.timeout(PATIENCE * 5):
        await fal.peer.wait_gone()
