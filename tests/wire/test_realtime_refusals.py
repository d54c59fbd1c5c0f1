"""What fal may answer to a handshake instead of a 101, or never: what comes down, and what it costs."""

from __future__ import annotations

import asyncio

import pytest

from fal_proxy.settings import Realtime
from support.limited import refused, wide
from support.lines import Lines
from support.peers import Peer
from support.proxied import FAL_KEY_SECRET
from support.raw import raw_client
from support.sockets import StartStage, stage
from support.websocket import APP, handshake, switching

start = stage
PATIENCE = 10.0


def saying(answer: bytes, *, end: bool = True) -> object:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(answer)
        if end:
            peer.half_close()
        await peer.wait_gone()

    return script


DETAIL = b'{"detail":"no"}'
LENGTH = b"content-length: 15\r\n"
JSON = b"content-type: application/json\r\n"


REFUSALS: list[tuple[bytes, int, bytes, str]] = [
    (b"HTTP/1.1 401 U\r\n" + JSON + LENGTH + b"\r\n" + DETAIL, 401, DETAIL, "no key"),
    (b"HTTP/1.1 403 F\r\n" + JSON + LENGTH + b"\r\n" + DETAIL, 403, DETAIL, "no access"),
    (b"HTTP/1.1 404 N\r\n" + JSON + LENGTH + b"\r\n" + DETAIL, 404, DETAIL, "no app"),
    (b"HTTP/1.1 422 X\r\n" + JSON + LENGTH + b"\r\n" + DETAIL, 422, DETAIL, "a bad query"),
    (b"HTTP/1.1 429 X\r\nretry-after: 3\r\n" + JSON + LENGTH + b"\r\n" + DETAIL, 429, DETAIL, "too many"),
    (b"HTTP/1.1 503 X\r\n" + JSON + LENGTH + b"\r\n" + DETAIL, 503, DETAIL, "an app that is away"),
    (b"HTTP/1.1 403 F\r\ncontent-length: 0\r\n\r\n", 403, b"", "an empty body"),
    (b"HTTP/1.1 404 F\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", 404, b"abcde", "chunked"),
    (b"HTTP/1.1 404 F\r\n\r\nto the end", 404, b"to the end", "a body up to the connection's end"),
    (b"HTTP/1.1 404 \r\n" + LENGTH + b"\r\n" + DETAIL, 404, DETAIL, "no reason phrase"),
]


@pytest.mark.parametrize(("answer", "status", "body", "reason"), REFUSALS, ids=[row[3] for row in REFUSALS])
async def test_fals_refusal_comes_down_as_it_was_and_costs_nothing(
    start: StartStage, lines: Lines, answer: bytes, status: int, body: bytes, reason: str
) -> None:
    plan = wide(realtime_sessions=5, budget="10.00/day")
    on = await start(plan, saying(answer), realtime=Realtime(usd_per_second=0.01))
    found = await on.refused(on.ada)
    assert (found.status, found.body, found.complete) == (status, body, True), reason
    assert found.one(b"x-fal-error-type") is None
    assert found.one(b"cache-control") == b"no-store"
    if JSON in answer:
        assert found.one(b"content-type") == b"application/json"
    if b"retry-after" in answer:
        assert found.one(b"retry-after") == b"3"
    assert await on.limited.money(on.ada) == (0, 0)
    assert await on.sessions() == 0
    line = (await lines.exactly(3))[0]
    assert (line["status"], line["kind"], line["decision"]) == (status, "realtime", "admitted")


NO_ANSWERS: list[tuple[bytes, str]] = [
    (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "a 200"),
    (b"HTTP/1.1 302 F\r\nlocation: https://evil.example\r\ncontent-length: 0\r\n\r\n", "a redirect"),
    (b"HTTP/1.1 204 N\r\n\r\n", "a 204"),
    (b"HTTP/1.1 403 F\r\ncontent-length: 99999999\r\n\r\n" + b"x" * 2_000_000, "a huge body"),
    (b"HTTP/1.1 403 F\r\ntransfer-encoding: chunked\r\n\r\nffffffff\r\n" + b"x" * 2_000_000, "a huge chunk"),
    (b"HTTP/1.1 403 F\r\ncontent-length: 10\r\n\r\nx", "a body that is cut"),
    (
        b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: bad\r\n\r\n",
        "a bad accept",
    ),
    (b"HTTP/1.1 101 S\r\n\r\n", "a bare 101"),
    (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP"),
    (b"\x16\x03\x01" * 5000, "bytes"),
    (b"", "nothing"),
    (b"HTTP/1.1 101 S\r\n" + b"X-A: " + b"a" * 70_000 + b"\r\n\r\n", "an endless field"),
    (b"HTTP/1.1 101 S\r\n" + b"X-A: 1\r\n" * 1000 + b"\r\n", "fields without end"),
    (
        b"HTTP/1.1 403 F\r\nx-fal-note: " + FAL_KEY_SECRET.encode() + b"\r\ncontent-length: 0\r\n\r\n",
        "our key in a field",
    ),
    (b"HTTP/1.1 403 F\r\ncontent-length: 32\r\n\r\n" + FAL_KEY_SECRET.encode(), "our key in the body"),
]


@pytest.mark.parametrize(("answer", "reason"), NO_ANSWERS, ids=[row[1] for row in NO_ANSWERS])
async def test_what_is_no_answer_to_a_handshake_is_a_fault_of_fals_and_its_outcome_unknown(
    start: StartStage, answer: bytes, reason: str
) -> None:
    plan = wide(realtime_sessions=5, budget="10.00/day")
    on = await start(plan, saying(answer), realtime=Realtime(usd_per_second=0.01))
    found = await on.refused(on.ada)
    refused(found, 500, "upstream_outcome_unknown")
    assert await on.sessions() == 0
    spent, reserved = await on.limited.money(on.ada)
    # A whole 4xx is fal's word that nothing was opened, whatever keeps it from going down.
    assert (spent, reserved) == ((0, 0) if "our key" in reason else (600_000, 0)), reason


async def test_our_key_in_the_fields_of_a_101_opens_nothing(start: StartStage) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(switching(await peer.read_head(), b"x-fal-note: " + FAL_KEY_SECRET.encode() + b"\r\n"))
        await peer.wait_gone()

    on = await start(script=script)
    refused(await on.refused(on.ada), 500, "upstream_outcome_unknown")
    await on.upstream.left()


async def test_a_fal_that_cannot_be_reached_is_502_and_costs_nothing(start: StartStage) -> None:
    plan = wide(realtime_sessions=5, budget="10.00/day")
    on = await start(plan, realtime=Realtime(usd_per_second=0.01))
    await on.upstream.close()
    refused(await on.refused(on.ada), 502, "upstream_unreachable")
    assert await on.limited.money(on.ada) == (0, 0)
    assert await on.sessions() == 0


async def test_a_fal_that_does_not_answer_in_time_is_an_unknown_outcome(
    start: StartStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fal_proxy.upstream.handshake.HANDSHAKE_SECONDS", 0.2)
    on = await start(wide(realtime_sessions=5, budget="10.00/day"), silent, realtime=Realtime(usd_per_second=0.01))
    refused(await on.refused(on.ada), 500, "upstream_outcome_unknown")
    assert await on.limited.money(on.ada) == (600_000, 0)
    await on.upstream.left()


async def silent(peer: Peer) -> None:
    await peer.read_head()
    await peer.wait_gone()


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("behind", [b"", b"\x81\x80\0\0\0\0"], ids=["nothing", "a message"])
async def test_a_caller_who_leaves_while_fal_is_asked_leaves_nothing_behind(
    start: StartStage, lines: Lines, how: str, behind: bytes
) -> None:
    on = await start(script=silent)
    async with raw_client(on.proxy.port) as client:
        await client.send(handshake(APP, on.ada) + behind)
        peer = await on.upstream.peer()
        async with asyncio.timeout(PATIENCE):
            await peer.arrived(1)
        assert await on.sessions() == 1
        getattr(client, how)()
        await on.upstream.left()
    [_, line] = await lines.exactly(2)
    assert (line["ending"], line["kind"], line["status"]) == ("client_gone", "realtime", None)
    assert await on.sessions() == 0
