"""What the app's own server is told of its jobs, over real sockets: what arrives, when, and where it never goes."""

from __future__ import annotations

import socket
import ssl

import pytest

from contract.bench import NOON
from fal_proxy.environment import Secret
from fal_proxy.stores.mailbox import Event
from fal_proxy.upstream.dial import Address, Dialer, Route
from fal_proxy.webhooks.deliveries import PAUSES
from fal_proxy.webhooks.signing import Signer
from support.certificates import authority, server_context, stranger, trusting
from support.delivering import HOOK, HOST, LONG_AGO, Arrived, Start, answering, delivering, start_delivering
from support.peers import Serve
from support.proxied import WEBHOOK_SECRET

FIELDS = ("x-fal-webhook-request-id", "x-fal-webhook-user-id", "x-fal-webhook-timestamp", "x-fal-webhook-signature")
FAL = (*((name, f"{name} as it came") for name in FIELDS), ("content-type", "application/json; charset=Latin-1"))

start = start_delivering


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
