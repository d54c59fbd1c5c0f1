"""What the emulator's webhooks may cost it: connections, jobs, bytes of an answer, and how they end with it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import httpx2
import pytest

from fal_proxy.emulator import Emulator, webhooks
from support.emulated import emulated
from support.receiver import KEY, Received, receiving, status_answer, submit

MOST_AT_ONCE = 64


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(headers=KEY, timeout=10) as made:
        yield made


def slow(seconds: float) -> dict[str, float]:
    return {"seconds": seconds, "queue_seconds": 0}


async def shut_down(app: Emulator) -> None:
    """End an app as a server does."""
    kinds = ["lifespan.startup", "lifespan.shutdown"]
    said: list[str] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": kinds[len(said)]}

    async def send(message: MutableMapping[str, Any]) -> None:
        said.append(message["type"])

    await app({"type": "lifespan"}, receive, send)
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_no_more_than_so_many_connections_are_open_at_once(client: httpx2.AsyncClient) -> None:
    now, at_work, most = 1000.0, 0, 0
    full = asyncio.Event()

    async def count(_: Received) -> bytes:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        if at_work == MOST_AT_ONCE:
            asyncio.get_running_loop().call_later(0.3, full.set)  # time for one more, were it allowed
        await full.wait()
        at_work -= 1
        return status_answer(200)

    async with emulated(speed=1, clock=lambda: now) as fal, receiving(answer=count) as hook:
        jobs = MOST_AT_ONCE + 16
        await asyncio.gather(*(submit(client, fal, hook.url, "/emulator/slow", slow(10)) for _ in range(jobs)))
        now += 10
        assert {each.status for each in await fal.delivered(jobs)} == {200}
    assert most == MOST_AT_ONCE


async def test_the_oldest_job_is_given_up_when_too_many_wait(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "KEPT_JOBS", 2)
    async with emulated(speed=100) as fal, receiving() as hook:
        ids = [await submit(client, fal, hook.url, "/emulator/slow", slow(seconds)) for seconds in (100, 120, 140)]
        assert [each.request_id for each in await hook.arrived(2)] == ids[1:]


@pytest.mark.parametrize("end", [Emulator.close, shut_down])
async def test_an_emulator_that_has_ended_delivers_nothing_more(
    client: httpx2.AsyncClient, end: Callable[[Emulator], Awaitable[None]]
) -> None:
    async with emulated(speed=200) as fal, receiving(500) as hook:
        await submit(client, fal, hook.url)
        await fal.delivered()
        await end(fal.app)
        begun = len(fal.app.deliveries)
        # Longer than the pause before the next attempt would have been.
        later = await submit(client, fal, hook.url, "/emulator/slow", slow(30))
        assert (await fal.delivered(begun + 1))[begun].request_id == later


async def test_a_submit_that_waits_for_its_early_webhook_does_not_wait_for_one_that_was_given_up(
    client: httpx2.AsyncClient,
) -> None:
    never = asyncio.Event()

    async def silent(_: Received) -> bytes:
        await never.wait()
        return b""

    async with emulated(faults="a/b:webhook_early", speed=1) as fal, receiving(answer=silent) as hook:
        submitting = asyncio.create_task(submit(client, fal, hook.url))
        await hook.arrived(1)
        await fal.app.close()
        assert await submitting == hook.received[0].request_id
        never.set()


async def test_an_answer_that_never_ends_is_read_no_further_than_it_needs(client: httpx2.AsyncClient) -> None:
    over = asyncio.Event()

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\n" + b"x" * 200_000)
        await over.wait()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with emulated(speed=200) as fal, server:
        await submit(client, fal, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        [delivery] = await fal.delivered()
        assert (delivery.error, delivery.outcome) == (None, "delivered")
        over.set()
