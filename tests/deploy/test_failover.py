"""A replica that dies, and replicas that are replaced one after the other: what callers, the books and fal see of it."""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest_asyncio

from fal_proxy.emulator import Fault
from support.node import Node
from support.raw import RawAnswer
from support.replicas import SECONDS, SPEED, Deployment, deployed, until

RUN, HELD = "/fal.run/emulator/patient", "emulator/held"
STREAM = "/fal.run/emulator/slow/stream"
UNKNOWN = "upstream_outcome_unknown"
PRICE_MICROUSD = 40_000
HOLD_SECONDS = 4.0  # how long fal takes; whatever is to happen meanwhile happens at once
STREAM_SECONDS = 1.5
PACE_SECONDS = 0.06  # fal's journal keeps a thousand requests, and all of them are to be counted
LEASE_SECONDS = 100  # more than the 90 s after which a process that says nothing is given up
FAULTS = (
    Fault("fal.run/emulator/patient", "delay", HOLD_SECONDS * SPEED),
    Fault("queue.fal.run/emulator/held/requests/*/status", "delay", HOLD_SECONDS * SPEED),
)


@pytest_asyncio.fixture
async def fragile(front_name: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    """Run a deployment of this test's own, at whose fal some things take long."""
    async with deployed(front_name, tmp_path, faults=FAULTS) as running:
        yield running


Asked = asyncio.Task[RawAnswer]


async def spread(site: Deployment, count: int, method: str, path: str, plan: str, **fields: str) -> list[Asked]:
    """Ask so often, each when the one before has reached fal, so that each replica gets some of them."""
    asked = []
    for _ in range(count):
        asked.append(asyncio.ensure_future(site.ask(method, path, plan, **fields)))
        await until(functools.partial(site.has_seen, len(site.fal.app.journal) + 1))
    return asked


def tallied(answers: Iterable[RawAnswer]) -> Counter[object]:
    """Return how often each answer came: a status, an error of ours, or a cut."""
    errors = [(answer, dict(answer.headers).get(b"x-fal-error-type", b"").decode()) for answer in answers]
    return Counter((error or answer.status) if answer.complete else "cut" for answer, error in errors)


async def told(asked: list[Asked]) -> Counter[object]:
    """Return the tally of what is still to be answered."""
    return tallied(await asyncio.gather(*asked))


async def ends_well(site: Deployment, begun: asyncio.Event) -> bool:
    """Read a stream to its end; say whether that was a clean one."""
    async with site.open() as client, asyncio.timeout(SECONDS):
        await client.send(site.request("POST", STREAM, body=json.dumps({"seconds": 4 * SPEED})))
        assert (await client.read_head())[0] == 200
        await client.read_chunk()
        begun.set()
        try:
            while await client.read_chunk():
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
    return True


async def test_a_killed_replica_costs_nobody_a_limit_or_a_job_and_nothing_is_paid_twice(
    fragile: Deployment, node: Node
) -> None:
    site = fragile
    submitted = await site.ask("POST", f"/queue.fal.run/{HELD}")
    status = f"/queue.fal.run/{HELD}/requests/{json.loads(submitted.body)['request_id']}/status"
    options = {"input": {"seconds": 5 * SPEED}}
    following = asyncio.ensure_future(
        site.play(
            node,
            "subscribe.mjs",
            "subscribe",
            endpoint="emulator/slow",
            options=options,
            credentials=site.keys["default"],
        )
    )
    await until(lambda: site.sent("GET", "queue.fal.run/emulator/slow/requests/") > 0)
    site.fal.app.journal.clear()
    few = await spread(site, 2, "POST", RUN, "few")
    runs = await spread(site, 4, "POST", RUN, "default", Origin=site.front.url)
    paid_reads = await spread(site, 4, "GET", RUN, "methods")
    polls = await spread(site, 4, "GET", status, "default")
    streams = []
    for begun in [asyncio.Event() for _ in range(4)]:
        streams.append(asyncio.ensure_future(ends_well(site, begun)))
        await asyncio.wait_for(begun.wait(), SECONDS)
    site.replicas[0].kill()
    await site.replicas[0].ended()

    died = await told(few)
    assert set(died) <= {200, UNKNOWN}
    for asked in (runs, paid_reads):  # GET on fal.run is paid, and no front may repeat it
        seen = await told(asked)
        assert seen == {200: 4 - seen[UNKNOWN], UNKNOWN: seen[UNKNOWN]}
        assert 0 < seen[UNKNOWN] < 4
    for run in runs:
        assert run.result().one(b"access-control-allow-origin") == site.front.url.encode(), "the page may read it"
        assert run.result().one(b"content-type") == b"application/json"
    assert await told(polls) == {200: 4}, "a poll is asked again, of the other replica"
    ends = await asyncio.gather(*streams)
    assert (True in ends, False in ends) == (True, site.front.shows_cuts), "one that is cut looks cut"
    assert (await following)["data"] == {"seconds": 5 * SPEED}, "the client's job went on through the other replica"
    assert site.sent("POST", "fal.run/emulator/patient") == 6
    assert site.sent("GET", "fal.run/emulator/patient") == 4
    assert site.sent("POST", "fal.run/emulator/slow/stream") == 4

    assert (await site.me("few"))["concurrent"]["in_use"] == died[UNKNOWN], "until its lease ends"
    site.redis.command("SET", "fal-proxy:now", f"{time.time() + LEASE_SECONDS:.3f}")
    assert (await site.ask("POST", "/fal.run/emulator/echo", "few")).status == 200
    assert (await site.me("few"))["concurrent"]["in_use"] == 0
    budget = (await site.me("default"))["budget"]
    paid = 4 + 4 + 2  # the runs, the streams, the two jobs: what nobody knows the outcome of is charged as reserved
    assert budget["spent_microusd"] + budget["reserved_microusd"] == paid * PRICE_MICROUSD


async def test_without_any_replica_callers_may_repeat_what_was_not_sent(fragile: Deployment) -> None:
    for replica in fragile.replicas:
        replica.kill()
        await replica.ended()
    asked = [fragile.ask(method, path) for method, path in (("POST", RUN), ("GET", RUN), ("GET", "/me"))]
    for answer in await asyncio.gather(*asked):
        assert (answer.status, json.loads(answer.body)["error_type"]) == (502, "upstream_unreachable")


async def test_a_rolling_restart_loses_no_call_and_repeats_none(fragile: Deployment) -> None:
    site = fragile
    over = asyncio.Event()
    asked: dict[str, list[RawAnswer]] = {"run": [], "stream": [], "poll": []}
    job = json.loads((await site.ask("POST", "/queue.fal.run/emulator/slow", body='{"seconds": 3600}')).body)[
        "request_id"
    ]

    async def keep_asking(kind: str, method: str, path: str, body: str | None = None) -> None:
        fields = {} if body is None else {"body": body}
        while not over.is_set():
            asked[kind].append(await site.ask(method, path, **fields))
            await asyncio.sleep(PACE_SECONDS)

    stream = json.dumps({"seconds": STREAM_SECONDS * SPEED})
    asking = [keep_asking("run", "POST", "/fal.run/emulator/echo") for _ in range(2)]
    asking += [keep_asking("stream", "POST", STREAM, stream) for _ in range(6)]
    asking += [keep_asking("poll", "GET", f"/queue.fal.run/emulator/slow/requests/{job}/status")]
    busy = asyncio.gather(*asking)
    for replica in site.replicas:
        enough = len(asked["stream"]) + 3
        await until(functools.partial(lambda count: len(asked["stream"]) >= count, enough))
        replica.terminate()
        assert await replica.ended() == 0
        served = len(replica.lines)
        await replica.start()
        # Whoever restarts the next one before the front leads calls to this one leaves it with none.
        await until(functools.partial(lambda replica, served: len(replica.lines) > served, replica, served))
    over.set()
    await busy

    seen = {kind: tallied(answers) for kind, answers in asked.items()}
    for each in seen.values():
        # A machine that is too busy to count, or to take a goodbye for one; neither was sent, and clients repeat them.
        del each["store_unavailable"], each["draining"]
    assert {kind: set(each) for kind, each in seen.items()} == {
        "run": {200},
        "stream": {200},
        "poll": {202},
    }, seen
    paid = site.sent("POST", "fal.run/")
    assert paid == seen["run"].total() + seen["stream"].total(), "nothing was sent twice, or for nothing"
