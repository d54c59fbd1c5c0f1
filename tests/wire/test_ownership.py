"""Whose request id it is, on the wire: who reads and cancels a job, under which app, and when that is written down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from fal_proxy.settings import State
from fal_proxy.stores import Record
from fal_proxy.stores.memory import MemoryStore
from support.limited import (
    NETWORK,
    OURS,
    SUBMIT,
    Fields,
    Limit,
    Limited,
    cancel,
    limiting,
    refused,
    result,
    status,
    status_stream,
    wide,
)
from support.peers import PATIENCE, Peer, turns
from support.proxied import MOUNT
from support.raw import RawClient, raw_client, request
from support.scripts import ok

limit = limiting
ELSEWHERE = ("X-Forwarded-For", "192.0.2.7")


async def reaches(limited: Limited, caller: Fields, job: str, app: str = "fal-ai/flux") -> bool:
    """Say whether a caller reaches a job; status, result and cancel must agree."""
    kinds = [status(job, app), result(job, app), cancel(job, app)]
    if app == "fal-ai/flux":
        kinds.append(status_stream(job))
    answers = [await limited.ask(kind, caller) for kind in kinds]
    types = {answer.one(b"x-fal-error-type") for answer in answers}
    assert types in ({None}, {b"unknown_request"}), answers
    if types == {b"unknown_request"}:
        told = {refused(answer, 404, "unknown_request") for answer in answers}
        assert told == {"there is no such request, or it is not yours, or not under this app"}
    return types == {None}


async def test_a_key_holder_reaches_their_own_jobs_only_and_strangers_learn_nothing(limit: Limit) -> None:
    limited, fal = await limit()
    job = await limited.submit(limited.ada)
    assert await reaches(limited, limited.ada, job)
    reached = len(fal.seen)
    page = await limited.page()
    for stranger in (limited.user("bob"), NETWORK, page, [OURS]):
        assert not await reaches(limited, stranger, job)
    assert not await reaches(limited, limited.ada, "job-2"), "never submitted: the same words"
    assert len(fal.seen) == reached, "fal is not asked about what is not one's own"


async def test_what_is_not_ones_own_costs_no_read(limit: Limit) -> None:
    limited, _ = await limit(wide(read="1/minute"))
    job = await limited.submit(limited.ada)
    for _ in range(3):
        refused(await limited.ask(status("job-9"), limited.ada), 404, "unknown_request")
    assert (await limited.ask(status(job), limited.ada)).status == 202


APPS = [
    ("fal-ai/flux", True, "the submitted app"),
    ("fal-ai/flux/dev", True, "with the endpoint's path, as fal's pages show it"),
    ("fal-ai/flux/other/path", True, "any path of that app"),
    ("fal-ai/flux-lora", True, "as fal itself names it in response_url"),
    ("fal-ai/other", False, "another app of the same owner"),
    ("acme/flux", False, "the same name of another owner"),
    ("fal-ai/fluxx", False, "a longer name"),
    ("workflows/fal-ai/flux", False, "another namespace"),
]


@pytest.mark.parametrize(("app", "reached", "reason"), APPS)
async def test_a_job_is_found_under_its_own_app_and_fals_name_for_it(
    app: str, reached: bool, reason: str, limit: Limit
) -> None:
    limited, fal = await limit()
    fal.named_app = "fal-ai/flux-lora"
    job = await limited.submit(limited.ada)
    assert await reaches(limited, limited.ada, job, app) is reached, reason


async def test_an_anonymous_cookie_owns_what_it_submits_wherever_it_goes(limit: Limit) -> None:
    limited, _ = await limit()
    page, other = await limited.page(), await limited.page()
    job = await limited.submit(page)
    assert await reaches(limited, page, job)
    assert await reaches(limited, [*page, ELSEWHERE], job), "the phone has changed its network"
    for stranger in (other, NETWORK, [OURS], limited.ada):
        assert not await reaches(limited, stranger, job)


async def test_a_job_started_before_logging_in_stays_reachable_with_the_cookie(limit: Limit) -> None:
    limited, _ = await limit()
    page = await limited.page()
    job = await limited.submit(page)
    cookie = page[1]
    assert await reaches(limited, [*limited.ada, cookie], job)
    assert not await reaches(limited, limited.ada, job)
    after = await limited.submit([*limited.ada, cookie])
    assert await reaches(limited, limited.ada, after)
    assert not await reaches(limited, page, after), "what was submitted logged in is the user's alone"


async def test_a_bare_job_is_owned_by_its_id_alone(limit: Limit) -> None:
    limited, _ = await limit()
    job = await limited.submit(NETWORK)
    page = await limited.page()
    for caller in (NETWORK, [ELSEWHERE], page, [OURS], [*page, ELSEWHERE]):
        assert await reaches(limited, caller, job), "any anonymous caller who knows the id"
    assert not await reaches(limited, limited.ada, job), "a key holder is not anonymous"
    assert not await reaches(limited, NETWORK, job, "fal-ai/other"), "the app is part of the name"
    foreign = await limited.ask(status(job), [("Origin", "https://evil.example")])
    refused(foreign, 403, "origin_denied")


async def test_the_first_request_of_a_browser_is_owned_by_its_network_and_by_its_new_cookie(limit: Limit) -> None:
    limited, _ = await limit()
    first = await limited.ask(SUBMIT, [OURS])
    cookie = ("Cookie", (first.one(b"set-cookie") or b"").decode().partition(";")[0])
    job = msgspec.json.decode(first.body)["request_id"]
    assert await reaches(limited, [OURS, cookie, ELSEWHERE], job), "the cookie from anywhere"
    assert await reaches(limited, [OURS], job), "the network without the cookie: pages that keep none"
    assert await reaches(limited, NETWORK, job)
    assert await reaches(limited, await limited.page(), job), "another cookie in that network"
    assert await reaches(limited, limited.ada, job), "and a key: every identity that a request proves counts"
    away = [[OURS, ELSEWHERE], [ELSEWHERE], await limited.page(ELSEWHERE), [*limited.ada, ELSEWHERE]]
    for stranger in away:
        assert not await reaches(limited, stranger, job)


async def test_ownership_is_recorded_before_the_answer_to_the_submit_leaves(
    limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording, may_record = asyncio.Event(), asyncio.Event()
    submitted = MemoryStore.submitted

    async def slow(self: MemoryStore, record: Record, lease_seconds: float = 3600.0) -> None:
        recording.set()
        await may_record.wait()
        await submitted(self, record, lease_seconds)

    monkeypatch.setattr(MemoryStore, "submitted", slow)
    limited, _ = await limit()
    async with raw_client(limited.proxy.port) as client:
        await client.send(request("POST", MOUNT + SUBMIT[1], limited.ada, b"{}"))
        await recording.wait()
        arriving = asyncio.ensure_future(client.answer())
        await turns()
        assert not arriving.done()
        may_record.set()
        assert (await arriving).status == 200
        await client.send(request("GET", MOUNT + status("job-1")[1], limited.ada))
        assert (await client.answer()).status == 202


@pytest.mark.parametrize("leave", [RawClient.reset, RawClient.close], ids=["reset", "close"])
async def test_a_job_whose_submitter_left_is_recorded_and_read_later(
    leave: Callable[[RawClient], None], limit: Limit
) -> None:
    limited, fal = await limit(wide(concurrent=1))
    submitted, may_answer = asyncio.Event(), asyncio.Event()

    async def late(peer: Peer) -> None:
        submitted.set()
        await may_answer.wait()
        await peer.send(ok(b'{"request_id":"late-1"}'))

    fal.says["submit"] = late
    async with raw_client(limited.proxy.port) as client:
        await client.send(request("POST", MOUNT + SUBMIT[1], limited.ada, b"{}"))
        await submitted.wait()
        leave(client)
        assert await limited.in_use(limited.ada) == 1
    may_answer.set()
    async with asyncio.timeout(PATIENCE):
        await limited.idle()
    assert await limited.in_use(limited.ada) == 1, "the job runs, whoever waits for it"
    assert await reaches(limited, limited.ada, "late-1")
    assert not await reaches(limited, limited.user("bob"), "late-1")


async def test_ownership_ends_after_a_day(limit: Limit) -> None:
    limited, _ = await limit()
    job = await limited.submit(limited.ada)
    limited.clock.advance(24 * 3600 - 1)
    assert (await limited.ask(status(job), limited.ada)).status == 202
    limited.clock.advance(1)
    refused(await limited.ask(status(job), limited.ada), 404, "unknown_request")


async def test_without_ownership_any_caller_reads_any_id(limit: Limit) -> None:
    limited, _ = await limit(state=State(ownership="off"))
    job = await limited.submit(limited.ada)
    for caller in (limited.user("bob"), NETWORK):
        assert await reaches(limited, caller, job)
        assert await reaches(limited, caller, "never-seen", "acme/app")
