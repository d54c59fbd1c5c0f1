"""What the app's own server is told of its jobs, over real sockets: what arrives, what counts as told, and what comes after."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import pytest

from contract.bench import NOON
from contract.post import event
from fal_proxy.environment import Secret
from fal_proxy.errors import StoreUnavailable
from fal_proxy.stores.mailbox import CLAIM_SECONDS, Delivery, Event
from fal_proxy.stores.mailbox_memory import MemoryMailbox
from fal_proxy.upstream.dial import Address, Dialer, Route
from fal_proxy.webhooks import deliveries
from fal_proxy.webhooks.deliveries import PAUSES
from fal_proxy.webhooks.signing import Signer
from support.certificates import authority, server_context, stranger, trusting
from support.delivering import HOOK, HOST, LONG_AGO, Arrived, Delivering, answering, delivering, read_post
from support.peers import Peer, Serve
from support.proxied import WEBHOOK_SECRET

FIELDS = ("x-fal-webhook-request-id", "x-fal-webhook-user-id", "x-fal-webhook-timestamp", "x-fal-webhook-signature")
FAL = (*((name, f"{name} as it came") for name in FIELDS), ("content-type", "application/json; charset=Latin-1"))
Start = Callable[..., Delivering]


@pytest.fixture
async def start(serve: Serve) -> AsyncIterator[Start]:
    """Return a function that makes deliveries to a server which these scripts lead."""
    made: list[Delivering] = []

    def begin(*scripts: Callable[[Peer], Awaitable[object]]) -> Delivering:
        made.append(delivering(f"http://127.0.0.1:{serve(*scripts).port}"))
        return made[-1]

    yield begin
    for each in made:
        await each.close()


async def test_app_gets_fals_body_and_fields_unchanged_and_a_signature_of_ours(start: Start) -> None:
    arrived: list[Arrived] = []
    app = start(answering(200, arrived=arrived))
    body = b'{"request_id": "job-1", "payload": "\xe2\x82\xac \\u0000 "}\n'
    await app.mailbox.file(Event("job-1", "fal-ai/flux", ("me",), True, FAL, body, f"{HOOK}/a%2Fb?x=%20&y"))
    await app.turn()
    (post,) = arrived
    assert post.target == f"/{HOST}/hook/a%2Fb?x=%20&y"
    assert post.body == body
    ours = {"host", "content-length", "user-agent", "webhook-id", "webhook-timestamp", "webhook-signature"}
    assert {name: value for name, value in post.headers.items() if name not in ours} == dict(FAL)
    assert (post.headers["webhook-id"], post.headers["webhook-timestamp"]) == ("msg_job-1", str(int(NOON)))
    assert post.signed_with(WEBHOOK_SECRET)
    assert not post.signed_with(LONG_AGO.reveal())
    assert await app.counts() == (1, 0, 0)
    assert app.attempts() == {"delivered": 1, "failed": 0, "given_up": 0}


async def test_while_secrets_are_rotated_both_can_judge(start: Start) -> None:
    arrived: list[Arrived] = []
    app = start(answering(arrived=arrived))
    app.deliveries(secrets=(LONG_AGO, Secret(WEBHOOK_SECRET)))
    await app.file("job", forward_url=HOOK)
    await app.turn()
    assert arrived[0].headers["webhook-signature"].count("v1,") == 2
    assert arrived[0].signed_with(WEBHOOK_SECRET)
    assert arrived[0].signed_with(LONG_AGO.reveal())


def test_signature_is_that_of_the_specifications_own_libraries() -> None:
    # The vector that the libraries of Standard Webhooks and of Svix test themselves by.
    signer = Signer([Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")])
    fields = signer.fields("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert dict(fields)[b"webhook-signature"] == b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_id_stays_through_all_attempts_and_the_timestamp_is_each_ones_own(start: Start) -> None:
    arrived: list[Arrived] = []
    app = start(answering(500, 503, 200, arrived=arrived))
    await app.file("job", forward_url=HOOK)
    for pause in (0, *PAUSES[:2]):
        app.now += pause
        await app.turn()
    assert {post.headers["webhook-id"] for post in arrived} == {"msg_job"}
    assert [int(post.headers["webhook-timestamp"]) - int(NOON) for post in arrived] == [0, 5, 35]
    assert all(post.signed_with(WEBHOOK_SECRET) for post in arrived)


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


async def test_pauses_grow_to_ten_hours_and_then_it_is_a_dead_letter(start: Start) -> None:
    app = start(answering(503))
    app.deliveries(chance=lambda: 1.0)
    filed = await app.file("job", forward_url=HOOK)
    await app.turn()
    for attempt, pause in enumerate([5, 30, 300, 1800, 7200, 18000, 36000], start=1):
        assert app.attempts() == {"delivered": 0, "failed": attempt, "given_up": 0}
        app.now += pause * 1.1 - 0.5
        await app.turn()
        assert app.attempts()["failed"] == attempt, f"before a tenth was added to {pause}"
        app.now += 0.51
        await app.turn()
    assert app.attempts() == {"delivered": 0, "failed": 7, "given_up": 1}
    (letter,) = await app.mailbox.dead_letters(9)
    assert (letter.number, letter.attempts, letter.reason) == (filed.number, 8, "status 503")
    app.now += 86400
    await app.turn()
    assert app.attempts()["given_up"] == 1
    assert await app.mailbox.revive(filed.number)
    await app.turn()
    assert app.attempts() == {"delivered": 0, "failed": 8, "given_up": 1}


async def test_host_that_is_not_listed_any_more_is_not_even_connected_to(start: Start) -> None:
    arrived: list[Arrived] = []
    app = start(answering(arrived=arrived))
    for at, url in enumerate(
        ["https://other.example/hook", "http://app.example.com/hook", "https://app.example.com:8443/"]
    ):
        await app.file(f"job-{at}", forward_url=url)
    await app.turn()
    assert arrived == []
    assert await app.counts() == (3, 0, 3)
    assert await app.reason() == "its host is not in webhooks.allowed_hosts"
    assert app.attempts()["given_up"] == 3
    number = (await app.mailbox.dead_letters(9))[-1].number
    await app.mailbox.revive(number)
    await app.turn(app.deliveries(hosts=("other.example",)))
    assert [post.target for post in arrived] == ["/other.example/hook"]


async def test_address_is_judged_where_the_socket_opens_at_every_attempt(serve: Serve) -> None:
    upstream, asked = serve(answering()), []

    async def rebound(host: str, port: int) -> list[Address]:
        asked.append((host, port))
        return [(socket.AF_INET, "127.0.0.1", upstream.port), (socket.AF_INET, "169.254.169.254", 80)]

    app = delivering()
    app.deliveries(route=Route(), dialer=Dialer(1, resolver=rebound))
    await app.file("job", forward_url=HOOK)
    for pause in (0, 5, 30):
        app.now += pause
        await app.turn()
    assert asked == [(HOST, 443)] * 3
    assert upstream.peers == []
    assert await app.counts() == (1, 1, 0)
    await app.close()


@pytest.mark.parametrize("known", [True, False])
async def test_certificate_is_verified(known: bool, serve: Serve) -> None:
    arrived: list[Arrived] = []
    context = server_context("127.0.0.1", ca=authority() if known else stranger())
    upstream = serve(answering(arrived=arrived), tls=context)
    app = delivering(f"https://127.0.0.1:{upstream.port}")
    app.deliveries(dialer=Dialer(1, context=trusting(ssl.create_default_context())))
    await app.file("job", forward_url=HOOK)
    await app.turn()
    assert len(arrived) == (1 if known else 0)
    assert (await app.counts())[1] == (0 if known else 1)
    await app.close()


async def test_slow_host_holds_up_no_other(start: Start) -> None:
    paths: list[str] = []

    async def script(peer: Peer) -> None:
        post = await read_post(peer)
        paths.append(post.target)
        if "fast" in post.target:
            await peer.send(b"HTTP/1.1 200 X\r\ncontent-length: 0\r\n\r\n")
        await peer.wait_gone()

    app = start(script)
    made = app.deliveries(hosts=("slow.example", "fast.example"))
    for at in range(40):
        await app.file(f"slow-{at}", forward_url="https://slow.example/hook")
    for at in range(20):
        await app.file(f"fast-{at}", forward_url="https://fast.example/hook")
    running = asyncio.create_task(made.run())
    async with asyncio.timeout(10):
        while app.attempts()["delivered"] < 20:  # noqa: ASYNC110 -- the metrics tell nobody
            await asyncio.sleep(0.005)
    assert paths.count("/slow.example/hook") == 4
    assert paths.count("/fast.example/hook") == 20
    running.cancel()
    await asyncio.wait([running])


async def test_sixteen_are_under_way_at_most(start: Start) -> None:
    at_once = most = 0

    async def script(peer: Peer) -> None:
        nonlocal at_once, most
        await read_post(peer)
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.02)
        at_once -= 1
        await peer.send(b"HTTP/1.1 200 X\r\ncontent-length: 0\r\n\r\n")
        await peer.wait_gone()

    app = start(script)
    made = app.deliveries(hosts=[f"host-{at}.example" for at in range(10)])
    for at in range(80):
        await app.file(f"job-{at}", forward_url=f"https://host-{at % 10}.example/")
    running = asyncio.create_task(made.run())
    async with asyncio.timeout(10):
        while app.attempts()["delivered"] < 80:  # noqa: ASYNC110 -- the metrics tell nobody
            await asyncio.sleep(0.005)
    assert most == 16
    running.cancel()
    await asyncio.wait([running])


async def test_event_that_is_filed_is_delivered_at_once_not_at_the_next_look(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "TICK_SECONDS", 3600)
    arrived: list[Arrived] = []
    app = start(answering(arrived=arrived))
    running = asyncio.create_task(app.deliveries().run())
    for at in range(3):
        await asyncio.sleep(0)
        await app.file(f"job-{at}", forward_url=HOOK)
        async with asyncio.timeout(5):
            while app.attempts()["delivered"] <= at:  # noqa: ASYNC110 -- the metrics tell nobody
                await asyncio.sleep(0.002)
    running.cancel()
    await asyncio.wait([running])


async def test_attempt_that_is_cut_by_the_end_of_the_process_is_made_again(start: Start) -> None:
    gone = asyncio.Event()

    async def stall(peer: Peer) -> None:
        await read_post(peer)
        await peer.wait_gone()
        gone.set()

    arrived: list[Arrived] = []
    app = start(stall, answering(arrived=arrived))
    running = asyncio.create_task(app.deliveries().run())
    await app.file("job", forward_url=HOOK)
    async with asyncio.timeout(5):
        while not app.running[0].under_way:  # noqa: ASYNC110 -- it tells nobody
            await asyncio.sleep(0.002)
    await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])
    async with asyncio.timeout(5):
        await gone.wait()
    assert app.running[0].under_way == 0
    again = app.deliveries()
    await app.turn(again)
    assert arrived == [], "its claim has not ended"
    app.now += CLAIM_SECONDS
    await app.turn(again)
    assert [post.headers["webhook-id"] for post in arrived] == ["msg_job"]
    assert await app.counts() == (1, 0, 0)


async def test_mailbox_that_is_away_when_it_should_hear_of_a_success_is_told_by_the_next_one(start: Start) -> None:
    arrived: list[Arrived] = []
    app = start(answering(arrived=arrived))

    class Away(MemoryMailbox):
        away = True

        async def delivered(self, number: int) -> None:
            if self.away:
                raise StoreUnavailable("Redis does not answer")
            await super().delivered(number)

    app.mailbox = mailbox = Away(clock=lambda: app.now)
    await app.file("job", forward_url=HOOK)
    await app.turn()
    assert await app.counts() == (1, 1, 0)
    mailbox.away = False
    app.now += CLAIM_SECONDS
    await app.turn()
    assert await app.counts() == (1, 0, 0)
    assert len(arrived) == 2


async def test_mailbox_that_is_away_ends_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "TICK_SECONDS", 0.01)

    class Away(MemoryMailbox):
        away = 3

        async def claim(self, limit: int, per_host: int, busy: Mapping[str, int]) -> Sequence[Delivery]:
            self.away -= 1
            if self.away > 0:
                raise StoreUnavailable("Redis does not answer")
            if self.away == 0:
                raise RuntimeError("a fault of ours")
            return await super().claim(limit, per_host, busy)

    app = start(answering())
    app.mailbox = Away(clock=lambda: app.now)
    await app.mailbox.file(event("job", forward_url=HOOK))
    running = asyncio.create_task(app.deliveries().run())
    async with asyncio.timeout(5):
        while app.attempts()["delivered"] == 0:  # noqa: ASYNC110 -- the metrics tell nobody
            await asyncio.sleep(0.005)
    running.cancel()
    await asyncio.wait([running])


async def test_metrics_show_what_is_kept(start: Start) -> None:
    app = start(answering(410))
    await app.file("read")
    await app.file("dead", forward_url=HOOK)
    await app.file("elsewhere", forward_url="https://other.example/")
    made = app.deliveries(hosts=(HOST, "other.example"))
    await app.turn(made)
    await app.turn(app.deliveries())
    text = app.telemetry.metrics.exposition().decode()
    for line in ("fal_proxy_events 3.0", "fal_proxy_waiting_deliveries 0.0", "fal_proxy_dead_letters 2.0"):
        assert f"\n{line}\n" in text
