"""Rates and concurrency on the wire: who is refused, with what words, when it returns, and who never notices."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fal_proxy.settings import AnonymousSource, Identity, KeySource
from support.limited import (
    INITIATE,
    NETWORK,
    OURS,
    RUN,
    STREAM,
    SUBMIT,
    Fields,
    Limit,
    Limited,
    Say,
    cancel,
    events,
    hold,
    limiting,
    refused,
    reset,
    result,
    said,
    status,
    status_stream,
    wide,
)
from support.peers import Peer
from support.proxied import MOUNT
from support.raw import RawAnswer, RawClient, raw_client, request

limit = limiting


def told(answer: RawAnswer) -> tuple[bytes | None, bytes | None]:
    """Return what an answer says about what is left."""
    return answer.one(b"ratelimit-policy"), answer.one(b"ratelimit")


def factor(folder: Path, value: int) -> Identity:
    """Return the ordinary sources with another network factor."""
    key = KeySource(file=str(folder / "users.toml"))
    return Identity(("key", "anonymous"), key=key, anonymous=AnonymousSource(network_factor=value))


@pytest.mark.parametrize("kind", [RUN, STREAM, SUBMIT], ids=["run", "stream", "submit"])
async def test_n_are_admitted_then_it_is_429_until_exactly_the_time_it_says(
    kind: tuple[str, str], limit: Limit
) -> None:
    limited, fal = await limit(wide(submit="3/minute"))
    for left in (2, 1, 0):
        answer = await limited.ask(kind, limited.ada)
        assert answer.status == 200
        assert told(answer) == (b'"submit-60";q=3;w=60', b'"submit-60";r=%d;t=61' % left)
    limited.clock.advance(30.5)
    over = await limited.ask(kind, limited.ada)
    sentence = "the limit is 3/minute runs, streams and submits; the next is possible in 31 s"
    assert refused(over, 429, "rate_limited") == sentence
    assert over.one(b"retry-after") == b"31"
    assert told(over) == (b'"submit-60";q=3;w=60', b'"submit-60";r=0;t=31')
    limited.clock.advance(30.49)
    last = await limited.ask(kind, limited.ada)
    assert (last.status, last.one(b"retry-after")) == (429, b"1"), "a hundredth of a second too early"
    assert len(fal.seen) == 3, "what is refused reaches nobody"
    limited.clock.advance(0.01)
    assert told(await limited.ask(kind, limited.ada))[1] == b'"submit-60";r=2;t=61', "all three places came back"


async def test_refused_requests_consume_nothing_and_another_user_is_unaffected(limit: Limit) -> None:
    limited, fal = await limit(wide(submit="2/minute"))
    bob = limited.user("bob")
    for _ in range(2):
        await limited.ask(RUN, limited.ada)
    for _ in range(20):
        limited.clock.advance(3)
        refused(await limited.ask(RUN, limited.ada), 429, "rate_limited")
    assert told(await limited.ask(RUN, bob))[1] == b'"submit-60";r=1;t=61'
    limited.clock.advance(1)
    assert (await limited.ask(RUN, limited.ada)).status == 200, "however often it was asked meanwhile"
    assert len(fal.seen) == 4


EARLIER = [
    ([("Content-Length", "99999999999")], RUN, 413, "a body that is too large"),
    ([], ("POST", "/rest.fal.ai/storage/auth/token"), 403, "a target that is not open"),
    ([], ("GET", RUN[1]), 405, "a method that does not fit"),
    ([], ("POST", "/evil.example/a/b"), 400, "no target at all"),
]


@pytest.mark.parametrize(("fields", "kind", "code", "reason"), EARLIER)
async def test_what_is_refused_for_another_reason_costs_no_place(
    fields: Fields, kind: tuple[str, str], code: int, reason: str, limit: Limit
) -> None:
    limited, _ = await limit(wide(submit="1/minute"))
    assert (await limited.ask(kind, [*limited.ada, *fields])).status == code, reason
    assert (await limited.ask(RUN, limited.ada)).status == 200, reason


async def test_reads_uploads_and_submits_have_their_own_counters(limit: Limit) -> None:
    limited, _ = await limit(wide(submit="2/minute", read="2/minute", upload="1/minute"))
    job = await limited.submit(limited.ada)
    for _ in range(2):
        answer = await limited.ask(status(job), limited.ada)
    assert told(answer)[1] == b'"read-60";r=0;t=61'
    for kind in (status(job), status_stream(job), result(job), cancel(job)):
        sentence = refused(await limited.ask(kind, limited.ada), 429, "rate_limited")
        assert sentence == "the limit is 2/minute reads; the next is possible in 61 s"
    assert told(await limited.ask(INITIATE, limited.ada))[1] == b'"upload-60";r=0;t=61'
    assert "1/minute uploads" in refused(await limited.ask(INITIATE, limited.ada), 429, "rate_limited")
    assert (await limited.ask(RUN, limited.ada)).status == 200
    assert "submits" in refused(await limited.ask(RUN, limited.ada), 429, "rate_limited")


async def test_the_window_that_is_exhausted_is_named_when_there_are_several(limit: Limit) -> None:
    limited, _ = await limit(wide(submit="2/minute; 3/day; 5/2 hours"))
    answer = await limited.ask(RUN, limited.ada)
    assert told(answer) == (
        b'"submit-60";q=2;w=60, "submit-86400";q=3;w=86400, "submit-7200";q=5;w=7200',
        b'"submit-60";r=1;t=61, "submit-86400";r=2;t=87840, "submit-7200";r=4;t=7320',
    )
    await limited.ask(RUN, limited.ada)
    assert "2/minute" in refused(await limited.ask(RUN, limited.ada), 429, "rate_limited")
    limited.clock.advance(61)
    await limited.ask(RUN, limited.ada)
    over = await limited.ask(RUN, limited.ada)
    assert refused(over, 429, "rate_limited").startswith("the limit is 3/day runs")
    assert over.one(b"retry-after") == b"%d" % (87840 - 61)
    left = b'"submit-60";r=1;t=61, "submit-86400";r=0;t=87779, "submit-7200";r=2;t=7259'
    assert told(over)[1] == left, "what is left of the others is told as well"


async def test_cookie_callers_have_their_own_limit_and_share_their_networks(tmp_path: Path, limit: Limit) -> None:
    limited, fal = await limit(wide(submit="2/minute"), identity=factor(tmp_path, 2))
    pages = [await limited.page() for _ in range(3)]
    for page in pages[:2]:
        assert told(await limited.ask(RUN, page)) == (b'"submit-60";q=2;w=60', b'"submit-60";r=1;t=61')
        assert told(await limited.ask(RUN, page))[1] == b'"submit-60";r=0;t=61'
        assert refused(await limited.ask(RUN, page), 429, "rate_limited").startswith("the limit is 2/minute")
    network = await limited.ask(RUN, pages[2])
    assert refused(network, 429, "rate_limited").startswith("the limit of your network is 4/minute runs")
    assert network.one(b"retry-after") == b"61"
    elsewhere = ("X-Forwarded-For", "192.0.2.7")
    assert (await limited.ask(RUN, [*pages[2], elsewhere])).status == 200, "the same cookie in another network"
    assert (await limited.ask(RUN, limited.ada)).status == 200, "a key holder belongs to no network"
    assert len(fal.seen) == 6


async def test_callers_known_by_network_have_the_factor_only(tmp_path: Path, limit: Limit) -> None:
    limited, _ = await limit(wide(submit="1/minute"), identity=factor(tmp_path, 3))
    answers = [await limited.ask(RUN, caller) for caller in (NETWORK, [OURS], NETWORK)]
    assert [told(answer)[1] for answer in answers] == [b'"submit-60";r=%d;t=61' % left for left in (2, 1, 0)]
    assert told(answers[0])[0] == b'"submit-60";q=3;w=60'
    over = await limited.ask(RUN, NETWORK)
    assert refused(over, 429, "rate_limited").startswith("the limit of your network is 3/minute")
    assert told(over)[1] == b'"submit-60";r=0;t=61'
    refused(await limited.ask(RUN, [OURS]), 429, "rate_limited")
    assert (await limited.ask(RUN, [("X-Forwarded-For", "192.0.2.7")])).status == 200


LOCALS = [f"127.0.0.{last}" for last in range(1, 5)]  # one address may hold 512 connections


async def test_a_thousand_at_once_at_a_limit_of_n_admit_exactly_n(limit: Limit) -> None:
    limited, fal = await limit(wide(submit="17/minute"))
    everyone = [request("POST", MOUNT + RUN[1], limited.ada, b"{}") for _ in range(1000)]
    gate = asyncio.Event()
    connected = 0

    async def one(line: bytes, local: str) -> int:
        nonlocal connected
        async with raw_client(limited.proxy.port, local) as client:
            connected += 1
            if connected == len(everyone):
                gate.set()
            await gate.wait()
            await client.send(line)
            return (await client.answer()).status

    counted = Counter(await asyncio.gather(*map(one, everyone, itertools.cycle(LOCALS))))
    assert counted == {200: 17, 429: 983}
    assert len(fal.seen) == 17


async def started(limited: Limited, kind: tuple[str, str], client: RawClient) -> None:
    """Send a request and do not read its answer."""
    await client.send(request(kind[0], MOUNT + kind[1], limited.ada, b"{}"))


async def test_a_network_holds_the_factor_of_slots(tmp_path: Path, limit: Limit) -> None:
    limited, _ = await limit(wide(concurrent=1), identity=factor(tmp_path, 2))
    pages = [await limited.page() for _ in range(3)]
    for page in pages[:2]:
        await limited.submit(page)
        assert refused(await limited.ask(RUN, page), 429, "concurrency_limited").startswith("you have 1 ")
    for caller in (pages[2], NETWORK):
        over = refused(await limited.ask(RUN, caller), 429, "concurrency_limited")
        assert over.startswith("your network has 2 runs or jobs in progress")
    assert (await limited.ask(RUN, limited.ada)).status == 200


@pytest.mark.parametrize("kind", [RUN, STREAM], ids=["run", "stream"])
@pytest.mark.parametrize("leave", [RawClient.reset, RawClient.close], ids=["reset", "close"])
async def test_a_run_holds_its_slot_until_its_caller_hangs_up(
    kind: tuple[str, str], leave: Callable[[RawClient], None], limit: Limit
) -> None:
    limited, fal = await limit(wide(concurrent=1))
    fal.says["run"] = fal.says["stream"] = hold
    async with raw_client(limited.proxy.port) as client:
        await started(limited, kind, client)
        await fal.arrived.wait()
        assert await limited.in_use(limited.ada) == 1
        over = await limited.ask(SUBMIT, limited.ada)
        sentence = "you have 1 run or job in progress, which is the limit; wait for one to end"
        assert refused(over, 429, "concurrency_limited") == sentence
        assert over.one(b"retry-after") == b"5"
        assert await limited.submit(limited.user("bob")), "another user is unaffected"
        leave(client)
        await limited.idle()
    assert await limited.in_use(limited.ada) == 0
    assert len(fal.seen) == 2


async def test_a_stream_holds_its_slot_until_its_last_event(limit: Limit) -> None:
    limited, fal = await limit(wide(concurrent=1))
    may_end = asyncio.Event()

    async def two_events(peer: Peer) -> None:
        whole = events(b"1", b"2")
        await peer.send(whole[:-9])
        await may_end.wait()
        await peer.send(whole[-9:])

    fal.says["stream"] = two_events
    async with raw_client(limited.proxy.port) as client:
        await started(limited, STREAM, client)
        await client.read_head()
        refused(await limited.ask(RUN, limited.ada), 429, "concurrency_limited")
        may_end.set()
        while await client.reader.read(100) != b"data: 2\n\n":
            pass
    await limited.idle()
    assert (await limited.ask(RUN, limited.ada)).status == 200


CUT = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 99\r\n\r\ndata: {}\n\n"


async def _cut(peer: Peer) -> None:
    await peer.send(CUT)
    peer.close()


ENDS = [
    (RUN, "run", b"", 200, "a whole answer"),
    (RUN, "run", said(500), 500, "an error of fal's"),
    (RUN, "run", reset, 500, "a cut before the head"),
    (STREAM, "stream", _cut, 200, "a cut after the head"),
    (SUBMIT, "submit", said(422), 422, "a submit that fal refuses"),
    (SUBMIT, "submit", reset, 500, "a submit with an unknown outcome"),
    (SUBMIT, "submit", said(200), 200, "a submit that names no job"),
]


@pytest.mark.parametrize(("kind", "name", "say", "code", "reason"), ENDS)
async def test_a_slot_is_free_after_every_end(
    kind: tuple[str, str], name: str, say: Say, code: int, reason: str, limit: Limit
) -> None:
    limited, fal = await limit(wide(concurrent=1))
    fal.says[name] = say
    for _ in range(3):
        assert (await limited.ask(kind, limited.ada)).status == code, reason
        await limited.idle()
        assert await limited.in_use(limited.ada) == 0, reason


async def test_a_slot_is_free_after_upstream_could_not_be_reached(limit: Limit) -> None:
    limited, _ = await limit(wide(concurrent=1), unreachable=True)
    for kind in (RUN, SUBMIT, STREAM):
        refused(await limited.ask(kind, limited.ada), 502, "upstream_unreachable")
        await limited.idle()
        assert await limited.in_use(limited.ada) == 0
