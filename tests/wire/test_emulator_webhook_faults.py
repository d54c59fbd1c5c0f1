"""Webhooks as they go wrong: late, early, twice, out of order, forged, foreign, old, huge, cut."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import httpx2
import pytest

from fal_proxy.emulator import webhooks
from support.emulated import emulated
from support.receiver import KEY, Received, receiving, shown_keys, status_answer, submit

NOW = {"seconds": 0, "queue_seconds": 0}


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(headers=KEY, timeout=30) as made:
        yield made


async def test_a_late_webhook_comes_so_many_seconds_after_the_end_scaled_by_speed(client: httpx2.AsyncClient) -> None:
    async with emulated(faults="emulator/slow:webhook_late=20", speed=100) as fal, receiving() as hook:
        started = time.monotonic()
        late = await submit(client, fal, hook.url, "/emulator/slow", NOW)
        status = await client.get(fal.at("queue.fal.run", f"/emulator/slow/requests/{late}/status"))
        assert status.json()["status"] == "COMPLETED"
        await hook.arrived(1)
        assert time.monotonic() - started >= 0.2
        assert fal.app.deliveries[0].notes == ["fault: webhook_late"]


async def test_an_early_webhook_is_answered_before_the_submit_is(client: httpx2.AsyncClient) -> None:
    async with emulated(faults="emulator/slow:webhook_early", speed=1) as fal:
        seen: list[str] = []

        async def look(_: Received) -> bytes:
            seen.append(f"status of the submit: {fal.last.status}")
            return status_answer(200)

        async with receiving(answer=look) as hook:
            request_id = await submit(client, fal, hook.url, "/emulator/slow", {"seconds": 1000})
            assert seen == ["status of the submit: None"]
            assert hook.received[0].request_id == request_id
        result = await client.get(fal.at("queue.fal.run", f"/emulator/slow/requests/{request_id}"))
        assert (result.status_code, result.json()) == (200, {"seconds": 1000})


async def test_an_early_webhook_that_nobody_answers_holds_the_submit_no_longer_than_its_timeout(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def after_the_submit(_: Received) -> bytes:
        await submitted.wait()
        return status_answer(200)

    submitted = asyncio.Event()
    monkeypatch.setattr(webhooks, "_LEAST_TIMEOUT_SECONDS", 0.2)
    async with emulated(faults="a/b:webhook_early", speed=100) as fal, receiving(answer=after_the_submit) as hook:
        await submit(client, fal, hook.url)
        submitted.set()
        first, second = await fal.delivered(2)
        assert (first.error, second.outcome) == ("no answer within 0.2 s", "delivered")


async def test_an_early_webhook_outlives_a_client_who_leaves(client: httpx2.AsyncClient) -> None:
    left = asyncio.Event()

    async def after_that(_: Received) -> bytes:
        await left.wait()
        return status_answer(200)

    async with emulated(faults="a/b:webhook_early") as fal, receiving(answer=after_that) as hook:
        submitting = asyncio.create_task(submit(client, fal, hook.url))
        await hook.arrived(1)
        submitting.cancel()
        entry = await fal.finished()
        left.set()
        [delivery] = await fal.delivered()
        assert (entry.disconnected, delivery.outcome) == (True, "delivered")


async def test_twice_is_the_same_bytes_under_the_same_signature(client: httpx2.AsyncClient) -> None:
    async with emulated(faults="a/b:webhook_twice", speed=200) as fal, receiving() as hook:
        await submit(client, fal, hook.url)
        first, second = await hook.arrived(2)
        assert first == second
        assert first.signed(await shown_keys(client, fal))
        both = await fal.delivered(2)
        assert [(each.number, each.outcome) for each in both] == [(1, "delivered")] * 2
        assert len(fal.app.deliveries) == 2


@pytest.mark.parametrize(
    ("statuses", "numbers", "reason"),
    [
        ((500, 200, 200), [1, 1], "one of the two was taken"),
        ((500, 500, 200), [1, 1, 2], "only the first attempt is made twice"),
    ],
)
async def test_what_was_sent_twice_is_tried_again_once_if_neither_was_taken(
    client: httpx2.AsyncClient, statuses: tuple[int, ...], numbers: list[int], reason: str
) -> None:
    async with emulated(faults="a/b:webhook_twice", speed=200) as fal, receiving(*statuses) as hook:
        await submit(client, fal, hook.url)
        await fal.delivered(len(numbers))
        # Longer than the pauses before further attempts would be.
        other = await submit(client, fal, hook.url, "/emulator/slow", {"seconds": 30, "queue_seconds": 0})
        seen = await fal.delivered(len(numbers) + 1)
        assert [each.number for each in seen if each.request_id != other] == numbers, reason


@pytest.mark.parametrize(
    ("endpoint", "reason"), [("/a/b", "one that is not struck"), ("/emulator/slow", "one that would be held itself")]
)
async def test_out_of_order_a_webhook_follows_that_of_a_job_that_ended_later(
    client: httpx2.AsyncClient, endpoint: str, reason: str
) -> None:
    # Held for no longer than ten minutes: a minute at that speed.
    async with emulated(faults="emulator/slow:webhook_disorder", speed=10) as fal, receiving() as hook:
        held = await submit(client, fal, hook.url, "/emulator/slow", NOW)
        status = await client.get(fal.at("queue.fal.run", f"/emulator/slow/requests/{held}/status"))
        assert status.json()["status"] == "COMPLETED"
        later = await submit(client, fal, hook.url, endpoint, {"seconds": 2, "queue_seconds": 0})
        assert [each.request_id for each in await hook.arrived(2)] == [later, held], reason


async def test_a_held_webhook_does_not_wait_for_ever(client: httpx2.AsyncClient) -> None:
    async with emulated(faults="a/b:webhook_disorder", speed=5000) as fal, receiving() as hook:
        await submit(client, fal, hook.url)
        await hook.arrived(1)


async def test_a_forged_webhook_verifies_with_no_key_that_is_ever_shown(client: httpx2.AsyncClient) -> None:
    async with emulated(faults="a/b:webhook_forged", speed=200) as fal, receiving(401, 401, 200) as hook:
        await submit(client, fal, hook.url)
        await hook.arrived(3)
        for _ in range(3):
            keys = await shown_keys(client, fal)
            assert not any(webhook.signed(keys) for webhook in hook.received)
            fal.app.rotate_webhook_key(keep_old=True)
        assert len(bytes.fromhex(hook.received[0].headers["x-fal-webhook-signature"])) == 64
        assert {each.notes[0] for each in fal.app.deliveries} == {"fault: webhook_forged"}


async def test_a_fault_of_attempts_is_drawn_anew_for_each(client: httpx2.AsyncClient) -> None:
    async with emulated(faults="a/b:webhook_forged@0.5", speed=1000) as fal:
        keys = await shown_keys(client, fal)

        async def judged(webhook: Received) -> bytes:
            return status_answer(200 if webhook.signed(keys) else 401)

        async with receiving(answer=judged) as hook:
            ids = {await submit(client, fal, hook.url) for _ in range(8)}
            async with asyncio.timeout(10):
                while {each.request_id for each in fal.app.deliveries if each.outcome == "delivered"} != ids:
                    await fal.delivered(len(fal.app.deliveries))
                    await asyncio.sleep(0)
        assert any(each.outcome == "retry" for each in fal.app.deliveries)


async def test_an_unknown_webhook_is_signed_well_for_a_request_that_nobody_submitted(
    client: httpx2.AsyncClient,
) -> None:
    async with emulated(faults="a/b:webhook_unknown", speed=200) as fal, receiving() as hook:
        request_id = await submit(client, fal, hook.url)
        [webhook] = await hook.arrived(1)
        assert webhook.signed(await shown_keys(client, fal))
        assert webhook.request_id == webhook.headers["x-fal-webhook-request-id"] != request_id
        status = await client.get(fal.at("queue.fal.run", f"/a/b/requests/{webhook.request_id}/status"))
        assert status.json() == {"status": "NOT_FOUND"}


@pytest.mark.parametrize(("fault", "age"), [("webhook_expired", 600), ("webhook_expired=301", 301)])
async def test_an_expired_webhook_is_signed_well_with_an_old_timestamp(
    client: httpx2.AsyncClient, fault: str, age: int
) -> None:
    async with emulated(faults=f"a/b:{fault}", speed=1, clock=lambda: now) as fal, receiving() as hook:
        now = 1_000_000.9
        await submit(client, fal, hook.url)
        now += 100
        [webhook] = await hook.arrived(1)
        assert webhook.timestamp == 1_000_100 - age
        assert webhook.signed(await shown_keys(client, fal))


async def test_a_rotated_key_signs_what_the_keys_of_a_moment_ago_do_not_verify(client: httpx2.AsyncClient) -> None:
    async with emulated(faults="a/b:webhook_rotated", speed=200) as fal, receiving() as hook:
        before = await shown_keys(client, fal)
        await submit(client, fal, hook.url)
        [webhook] = await hook.arrived(1)
        after = await shown_keys(client, fal)
        assert (webhook.signed(before), webhook.signed(after)) == (False, True)
        assert len(after["keys"]) == 1


@pytest.mark.parametrize(
    ("fault", "size"), [("webhook_huge", 20 * 1024 * 1024), ("webhook_huge=100000", 100_000), ("webhook_huge=1", 0)]
)
async def test_a_huge_webhook_has_exactly_the_size_it_was_asked_for_and_is_signed_well(
    client: httpx2.AsyncClient, fault: str, size: int
) -> None:
    async with emulated(faults=f"a/b:{fault}", speed=200) as fal, receiving() as hook:
        request_id = await submit(client, fal, hook.url, given={"x": 1})
        [webhook] = await hook.arrived(1)
        assert len(webhook.body) == size or (size == 0 and webhook.told["padding"] == "")
        assert webhook.told["request_id"] == request_id
        assert webhook.told["payload"]["input"] == {"x": 1}
        assert webhook.signed(await shown_keys(client, fal))
        [delivery] = await fal.delivered()
        assert delivery.body_bytes == len(webhook.body)
        assert delivery.body == webhook.body[: len(delivery.body)]


async def test_a_server_that_refuses_a_huge_body_unread_is_heard(client: httpx2.AsyncClient) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(status_answer(413))
        await writer.drain()
        await over.wait()
        writer.close()

    over = asyncio.Event()
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with emulated(faults="a/b:webhook_huge", speed=200) as fal, server:
        await submit(client, fal, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        delivery = (await fal.delivered())[0]
        assert (delivery.status, delivery.outcome) == (413, "retry")
        over.set()


@pytest.mark.parametrize(("fault", "sent"), [("webhook_truncated", None), ("webhook_truncated=7", 7)])
async def test_a_truncated_webhook_ends_short_of_its_length_and_is_tried_again(
    client: httpx2.AsyncClient, fault: str, sent: int | None
) -> None:
    async with emulated(faults=f"a/b:{fault}", speed=200) as fal, receiving() as hook:
        await submit(client, fal, hook.url)
        cut, again = (await hook.arrived(2))[:2]
        assert not cut.complete
        assert not again.complete
        length = int(cut.headers["content-length"])
        assert len(cut.body) == (length // 2 if sent is None else sent)
        delivery = (await fal.delivered())[0]
        assert (delivery.status, delivery.outcome, delivery.body_bytes) == (None, "retry", length)
        assert delivery.error == f"cut after {len(cut.body)} of {length} bytes"


async def test_a_webhooks_fault_leaves_requests_alone_and_the_reverse(client: httpx2.AsyncClient) -> None:
    faults = "a/b:webhook_forged;c/d:gzip;c/d:delay=0.01;other/app:webhook_late=10000"
    async with emulated(faults=faults, speed=200) as fal, receiving() as hook:
        await submit(client, fal, hook.url)
        await submit(client, fal, hook.url, "/c/d")
        keys = await shown_keys(client, fal)
        signed = {json.dumps(each.told["payload"]["endpoint"]): each.signed(keys) for each in await hook.arrived(2)}
        assert signed == {'"a/b"': False, '"c/d"': True}
