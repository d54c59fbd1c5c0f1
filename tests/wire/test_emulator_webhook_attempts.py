"""Attempts to deliver a webhook, over real sockets: what counts as delivered, what is tried again and for how long."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from fal_proxy.emulator import webhooks
from fal_proxy.emulator.posting import trusted_by_default
from support.certificates import authority, server_context, stranger
from support.emulated import Emulated, emulated
from support.receiver import KEY, Received, receiving, shown_keys, status_answer, submit

NOW = {"seconds": 0, "queue_seconds": 0}


@pytest.fixture
async def fal() -> AsyncIterator[Emulated]:
    async with emulated(speed=200) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(headers=KEY, timeout=10) as made:
        yield made


async def test_a_refused_delivery_is_tried_again_with_a_signature_of_its_own(client: httpx2.AsyncClient) -> None:
    now = 1_000_000.0

    async def later(_: Received) -> bytes:
        nonlocal now
        now += 7
        return status_answer(200 if len(hook.received) == 4 else 503)

    async with emulated(speed=200, clock=lambda: now) as fal, receiving(answer=later) as hook:
        await submit(client, fal, hook.url, "/emulator/slow", NOW)
        await hook.arrived(4)
        deliveries = await fal.delivered(4)
        keys = await shown_keys(client, fal)
        assert all(webhook.signed(keys) for webhook in hook.received)
    assert len({webhook.body for webhook in hook.received}) == 1
    assert [webhook.timestamp for webhook in hook.received] == [1_000_000, 1_000_007, 1_000_014, 1_000_021]
    outcomes = [(each.number, each.status, each.outcome) for each in deliveries]
    assert outcomes == [(1, 503, "retry"), (2, 503, "retry"), (3, 503, "retry"), (4, 200, "delivered")]


async def test_a_redirect_ends_the_deliveries_for_good(client: httpx2.AsyncClient, fal: Emulated) -> None:
    async with receiving(308, 200) as hook, receiving() as other:
        await submit(client, fal, hook.url)
        [delivery] = await fal.delivered()
        assert (delivery.status, delivery.outcome) == (308, "permanent")
        await submit(client, fal, other.url)
        await other.arrived(1)
    assert len(hook.received) == 1


@pytest.mark.parametrize(
    ("webhook", "reason"),
    [
        ("ftp://127.0.0.1/x", "another scheme"),
        ("/relative", "no host"),
        ("http://user:pw@127.0.0.1/", "a password"),
        ("http://127.0.0.1:99999/", "no such port"),
        ("http://[::1/", "a bracket that is never closed"),
    ],
)
async def test_what_is_no_url_is_a_permanent_failure(
    client: httpx2.AsyncClient, fal: Emulated, webhook: str, reason: str
) -> None:
    await submit(client, fal, webhook)
    [delivery] = await fal.delivered()
    assert (delivery.status, delivery.outcome) == (None, "permanent"), reason
    assert delivery.error


async def test_after_31_attempts_nothing_more_is_tried(client: httpx2.AsyncClient) -> None:
    async with emulated(speed=10_000, clock=lambda: 1000.0) as fal, receiving(500) as hook:
        await submit(client, fal, hook.url, "/emulator/slow", NOW)
        deliveries = await fal.delivered(31)
        assert [each.number for each in deliveries] == list(range(1, 32))
        assert [each.outcome for each in deliveries] == [*["retry"] * 30, "given_up"]


@pytest.mark.parametrize(
    ("large", "minutes", "reason"), [(False, 60, "a result is kept for an hour"), (True, 6, "from 10 KB for 6 minutes")]
)
async def test_nothing_is_tried_beyond_the_life_of_the_result(
    client: httpx2.AsyncClient, large: bool, minutes: int, reason: str
) -> None:
    now = 1000.0

    async def later(_: Received) -> bytes:
        nonlocal now
        now += minutes * 60 / 10_000 * 0.3
        return status_answer(500)

    given = {"text": "x" * (20_000 if large else 10)}
    async with emulated(speed=10_000, clock=lambda: now) as fal, receiving(answer=later) as hook:
        await submit(client, fal, hook.url, given=given)
        now += 0.001  # the job's own time
        deliveries = await fal.delivered(5)
        assert [each.outcome for each in deliveries] == [*["retry"] * 4, "given_up"], reason


async def test_who_does_not_answer_in_time_is_tried_again_with_more_of_it(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(_: Received) -> bytes:
        await asyncio.sleep(60 if len(hook.received) == 1 else 0.7)
        return status_answer(204)

    monkeypatch.setattr(webhooks, "_LEAST_TIMEOUT_SECONDS", 0.1)
    # 15 and 120 seconds at that speed.
    async with emulated(speed=30) as fal, receiving(answer=slow) as hook:
        await submit(client, fal, hook.url, "/emulator/slow", NOW)
        first, second = await fal.delivered(2)
    assert (first.error, first.status, first.outcome) == ("no answer within 0.5 s", None, "retry")
    assert (second.error, second.status, second.outcome) == (None, 204, "delivered")


async def test_nobody_gets_less_than_two_seconds_however_fast_time_goes(client: httpx2.AsyncClient) -> None:
    async def slow(_: Received) -> bytes:
        await asyncio.sleep(0.5)
        return status_answer(200)

    async with emulated(speed=10_000) as fal, receiving(answer=slow) as hook:
        await submit(client, fal, hook.url)
        [delivery] = await fal.delivered()
    assert (delivery.number, delivery.outcome) == (1, "delivered")


async def test_who_does_not_listen_is_tried_again(client: httpx2.AsyncClient, fal: Emulated) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, not listening
        await submit(client, fal, f"http://127.0.0.1:{free.getsockname()[1]}/")
        refused = (await fal.delivered(2))[0]
    assert (refused.status, refused.outcome) == (None, "retry")
    assert refused.error


async def test_an_https_target_must_show_a_certificate_that_is_trusted(
    client: httpx2.AsyncClient, fal: Emulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    trusted_by_default.cache_clear()
    try:
        async with receiving(tls=server_context("127.0.0.1")) as hook:
            await submit(client, fal, hook.url)
            [delivery] = await fal.delivered()
            assert (delivery.error, delivery.status) == (None, 200)
            assert hook.received[0].signed(await shown_keys(client, fal))
        async with receiving(tls=server_context("127.0.0.1", ca=stranger())) as hook:
            await submit(client, fal, hook.url)
            refused = (await fal.delivered(2))[1]
            assert (refused.status, refused.outcome, hook.received) == (None, "retry", [])
    finally:
        trusted_by_default.cache_clear()


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n", 202, "interim answers"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, "no length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\n" + b"x" * 200_000, 200, "more than anybody reads"),
        (b"HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\nok", 204, "a body that may not be"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", None, "an interim answer and no other"),
        (b"220 mail ESMTP\r\n", None, "no HTTP"),
        (b"", None, "nothing"),
    ],
)
async def test_any_answer_is_read_as_far_as_its_status(
    client: httpx2.AsyncClient, fal: Emulated, answer: bytes, status: int | None, reason: str
) -> None:
    async def raw(_: Received) -> bytes:
        return answer

    async with receiving(answer=raw) as hook:
        await submit(client, fal, hook.url)
        delivery = (await fal.delivered())[0]
    assert delivery.status == status, reason
    assert (delivery.error is None) is (status is not None)
