"""What the app's own server answers to a delivery decides what becomes of it, and nothing of it is shown or held for long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest

from fal_proxy.webhooks import deliveries
from fal_proxy.webhooks.deliveries import PAUSES
from support.delivering import HOOK, Start, answering, delivering, read_post, start_delivering
from support.peers import Peer, Serve

start = start_delivering


async def reset_at_once(peer: Peer) -> None:
    peer.reset()


async def reset_after_reading(peer: Peer) -> None:
    await read_post(peer)
    peer.reset()


async def say_nothing(peer: Peer) -> None:
    await peer.wait_gone()


def saying(answer: bytes, then: Callable[[Peer], Awaitable[object]] | None = None) -> Callable[[Peer], Awaitable[None]]:
    async def script(peer: Peer) -> None:
        await read_post(peer)
        await peer.send(answer)
        await (then or Peer.wait_gone)(peer)

    return script


async def reset(peer: Peer) -> None:
    await peer.delivered()
    peer.reset()


async def drip_head(peer: Peer) -> None:
    await read_post(peer)
    await peer.send(b"HTTP/1.1 200 X\r\nx: ")
    while True:
        await peer.send(b"x")
        await asyncio.sleep(0.01)


class Answer(NamedTuple):
    """What the app's server does, and what follows."""

    reason: str
    script: Callable[[Peer], Awaitable[object]]
    left: tuple[int, int]  # deliveries that wait, dead letters
    said: str = ""  # in the mailbox


ANSWERS = [
    Answer("200", answering(200), (0, 0)),
    Answer("204, without a body", saying(b"HTTP/1.1 204 X\r\n\r\n"), (0, 0)),
    Answer("299 is 2xx too", answering(299), (0, 0)),
    Answer(
        "an interim answer is none",
        saying(b"HTTP/1.1 102 X\r\n\r\nHTTP/1.1 200 X\r\ncontent-length: 0\r\n\r\n"),
        (0, 0),
    ),
    Answer(
        "2xx whose body is cut: it has heard", saying(b"HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\nok", reset), (0, 0)
    ),
    Answer("2xx whose body never ends", saying(b"HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\nok"), (0, 0)),
    Answer(
        "2xx before it has read anything",
        lambda peer: peer.send(b"HTTP/1.1 200 X\r\ncontent-length: 0\r\n\r\n"),
        (0, 0),
    ),
    Answer("a redirect is not followed", answering(302), (1, 0), "status 302 (redirects are not followed)"),
    Answer("nor one that keeps the method", answering(307), (1, 0), "status 307 (redirects are not followed)"),
    Answer("gone is for good", answering(410), (0, 1), "status 410"),
    Answer("a mistake may be mended", answering(404), (1, 0), "status 404"),
    Answer("a refusal too", answering(401), (1, 0), "status 401"),
    Answer("a fault", answering(500), (1, 0), "status 500"),
    Answer("it is told to slow down", answering(429), (1, 0), "status 429"),
    Answer("reset before it read", reset_at_once, (1, 0), "reset"),
    Answer("reset before it answered", reset_after_reading, (1, 0), "reset"),
    Answer("closed without an answer", lambda peer: read_post(peer), (1, 0), ""),
    Answer("never answers", say_nothing, (1, 0), "no answer within 0.3 s"),
    Answer("an answer that never gets as far as a status", drip_head, (1, 0), "0.3 s"),
    Answer("no HTTP at all", saying(b"220 mail.example.com ESMTP\r\n"), (1, 0), "breaks HTTP"),
    Answer("a head of 100 kB", saying(b"HTTP/1.1 200 X\r\nx: " + b"x" * 100_000 + b"\r\n\r\n"), (1, 0), "too large"),
]


@pytest.mark.parametrize("case", ANSWERS, ids=lambda case: case.reason.replace(" ", "-"))
async def test_answer_decides_what_becomes_of_a_delivery(
    case: Answer, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deliveries, "ATTEMPT_SECONDS", 0.3)
    caplog.set_level(logging.DEBUG)

    async def once(peer: Peer) -> None:
        await case.script(peer)
        peer.close()

    app = start(once, say_nothing)
    filed = await app.file("job", forward_url=HOOK + "?token=in-the-address", body=b"what the job has made")
    await app.turn()
    assert (await app.counts())[1:] == case.left
    assert sum(app.attempts().values()) == 1
    kept = app.mailbox.state.kept[filed.number]  # type: ignore[attr-defined]
    assert case.said in kept.reason, kept.reason
    for shown in (kept.reason, caplog.text):
        assert "what the job has made" not in shown
        assert "in-the-address" not in shown
        assert "whsec_" not in shown
    if case.left[0]:
        assert (kept.attempt, kept.due) == (1, app.now + PAUSES[0])


async def test_nobody_listening_is_tried_again(serve: Serve) -> None:
    upstream = serve(say_nothing)
    await upstream.close()
    app = delivering(f"http://127.0.0.1:{upstream.port}")
    await app.file("job", forward_url=HOOK)
    await app.turn()
    assert await app.counts() == (1, 1, 0)
    await app.close()


async def test_huge_answer_is_read_for_a_moment_and_then_left(start: Start) -> None:
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await read_post(peer)
        await peer.send(b"HTTP/1.1 200 X\r\ncontent-length: 999999999999\r\n\r\n")
        while True:
            await peer.send(bytes(65536))
            sent += 65536

    app = start(script)
    await app.file("job", forward_url=HOOK)
    await app.turn()
    assert await app.counts() == (1, 0, 0)
    assert sent < 32 * 1024 * 1024, "beyond what sockets hold"
