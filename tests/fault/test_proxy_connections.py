"""Upstream cannot be reached, or only now and then: what that costs, and that repeating what may be repeated gets there."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from fal_proxy.upstream.connection import Connection
from fal_proxy.upstream.dial import Dialer, Origin
from fal_proxy.upstream.pool import Pool
from support.certificates import server_context
from support.emulated import emulated
from support.faults import CLEAN, GARBAGE, REDIRECT, STATUS_600, Answered, Fault, Faulty, call, through
from support.limited import Limited, limited, limits, result
from support.limited import status as status_of
from support.peers import PATIENCE, Peer, Serve, Upstream, turns
from support.proxied import MOUNT
from support.raw import request
from support.rigged import KINDS, PRICE, WIRES, Rig, rigged

rig = rigged
StartLimited = Callable[[Upstream], Awaitable[Limited]]


@pytest.fixture
async def start_limited(tmp_path: Path) -> AsyncIterator[StartLimited]:
    """Return a function that runs a proxy that counts in front of an upstream until the test ends."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(upstream: Upstream) -> Limited:
            return await stack.enter_async_context(limited(upstream, tmp_path, limits(tmp_path)))

        yield start


NO_CONNECTION = [
    ("refused", 502, b"upstream_unreachable"),
    ("no-such-name", 502, b"upstream_unreachable"),
    ("black-hole", 504, b"upstream_timeout"),
    ("bad-certificate", 502, b"upstream_unreachable"),
]


@pytest.mark.parametrize(("why", "status", "error_type"), NO_CONNECTION, ids=[row[0] for row in NO_CONNECTION])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_connection_that_never_came_to_be_costs_nothing_and_is_told_as_repeatable(
    kind: str, why: str, status: int, error_type: bytes, rig: Rig, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = Dialer.connect

    async def silent(peer: Peer) -> None:
        await peer.wait_gone()

    async def elsewhere(self: Dialer, origin: Origin) -> Connection:
        places = {
            "refused": Origin("http", "127.0.0.1", 1, trusted=True),
            "no-such-name": Origin("http", "no-such-name.invalid", 80, trusted=True),
            # A handshake that is never answered takes the same budget as a SYN that is not.
            "black-hole": Origin("https", "127.0.0.1", quiet.port, trusted=True),
            "bad-certificate": Origin("https", "localhost", stranger.port, trusted=True),
        }
        return await connect(self, places[why])

    quiet = serve(silent)
    stranger = serve(silent, tls=server_context("localhost"))
    rig.app.engine._pool.close()
    rig.app.engine._dialer._connect_seconds = 0.15 if why == "black-hole" else PATIENCE
    monkeypatch.setattr(Dialer, "connect", elsewhere)
    answer = (await call(rig.limited.proxy.port, rig.raw(kind))).answer
    assert (answer.status, answer.fields[b"x-fal-error-type"]) == (status, error_type)
    await rig.quiet()
    assert await rig.money() == (0, PRICE), "only the job that was there before"
    monkeypatch.setattr(Dialer, "connect", connect)
    rig.app.engine._pool = Pool()
    await rig.fine()


async def test_the_next_request_after_a_refusal_finds_upstream_as_soon_as_it_is_back(rig: Rig) -> None:
    rig.app.engine._pool.expire()
    port = rig.upstream.port
    await rig.upstream.close()
    refused = (await call(rig.limited.proxy.port, rig.raw("run"))).answer
    assert (refused.status, refused.fields[b"x-fal-error-type"]) == (502, b"upstream_unreachable")
    server = await asyncio.start_server(_answer_like_fal, "127.0.0.1", port)
    async with server:
        assert (await call(rig.limited.proxy.port, rig.raw("run"))).answer.status == 200
    assert await rig.money() == (2 * PRICE, PRICE)


async def _answer_like_fal(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n{}")
    writer.write(WIRES["run"])
    writer.close()


@pytest.mark.parametrize("seed", range(3))
async def test_a_caller_who_repeats_what_may_be_repeated_gets_the_emulators_result_through_any_faults(
    seed: int, serve: Serve, start_limited: StartLimited
) -> None:
    chance = random.Random(seed)
    faults = [
        Fault(after=0, end="reset"),
        Fault(after=25, end="close"),
        Fault(after=-1, end="reset"),
        Fault(instead=GARBAGE),
        Fault(instead=REDIRECT),
        Fault(instead=STATUS_600),
        Fault(extra=GARBAGE),
        Fault(drip=True),
        CLEAN,
    ]
    async with emulated() as fal:
        faulty = Faulty(through(fal.port), lambda head: CLEAN if head.startswith(b"POST") else chance.choice(faults))
        proxy = await start_limited(serve(faulty.script))
        job = await proxy.submit(proxy.ada, b'{"prompt": "a cat"}')

        async def until(where: tuple[str, str], wanted: bytes) -> Answered:
            data = request(where[0], MOUNT + where[1], [*proxy.ada, ("Connection", "close")])
            async with asyncio.timeout(30):
                while True:
                    heard = await call(proxy.proxy.port, data)
                    answer = heard.answer
                    assert answer.status in (200, 202, 400, 502), heard
                    if answer.whole and answer.status == 200 and wanted in answer.body:
                        return answer

        await until(status_of(job), b"COMPLETED")
        assert (await until(result(job), b"images")).fields[b"x-fal-request-id"] == job.encode()
        submits = [entry for entry in fal.app.journal if entry.method == "POST"]
        assert len(submits) == 1, "what is paid was asked for once"
        async with asyncio.timeout(PATIENCE):
            while await proxy.in_use(proxy.ada):
                await turns(1)
