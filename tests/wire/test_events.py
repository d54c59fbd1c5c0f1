"""`GET <mount>/events`: whom it tells of what, from where on, for how long, and in which form."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from fal_proxy.errors import StoreUnavailable
from fal_proxy.lifecycle import Stage
from fal_proxy.settings import Cors, Identity, KeySource
from fal_proxy.stores.mailbox import MAX_EVENTS_PER_OWNER, Event
from fal_proxy.stores.mailbox_memory import MemoryMailbox
from fal_proxy.webhooks import events
from support.hub import EVENTS, PAGE, StartHub, starting
from support.limited import NETWORK, Fields, refused
from support.lines import Lines
from support.proxied import FAL_KEY_SECRET, MOUNT
from support.raw import raw_client, request

start = starting
PAYLOAD = {"images": [{"url": "https://v3b.fal.media/a.png"}]}


@pytest.fixture(autouse=True)
def fast_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let streams beat often: the first beat says that a backlog is over."""
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.05)


async def filed(mailbox: MemoryMailbox, count: int, owner: str = "key::ada", body: bytes = b"{}") -> list[int]:
    """File events of jobs called j-0, j-1, … and return their numbers."""
    numbers = []
    for at in range(count):
        event = await mailbox.file(Event(f"j-{at}", "a/b", (owner,), True, (), body))
        assert event is not None
        numbers.append(event.number)
    return numbers


async def test_it_is_a_stream_of_events_that_nothing_keeps_or_buffers(start: StartHub) -> None:
    hub = await start()
    async with hub.listen(hub.limited.ada) as stream:
        assert stream.headers[b"content-type"] == b"text/event-stream"
        assert stream.headers[b"cache-control"] == b"no-store"
        assert stream.headers[b"x-accel-buffering"] == b"no"
        assert stream.headers[b"x-content-type-options"] == b"nosniff"
        assert await stream.block() == b"retry: 2000"
        assert await stream.block() == b":", "it beats"
        assert await stream.block() == b":"


async def test_a_caller_is_told_of_their_own_jobs_and_of_nobody_elses(start: StartHub) -> None:
    hub = await start()
    ada, bob, page, other = hub.limited.ada, hub.limited.user("bob"), await hub.page(), await hub.page()
    async with hub.listen(bob) as bobs, hub.listen(other) as others, hub.listen(ada) as adas, hub.listen(page) as pages:
        for stream in (bobs, others, adas, pages):
            assert await stream.backlog() == []
        job, second = await hub.finish(ada, PAYLOAD), await hub.finish(page, PAYLOAD)
        assert (await adas.next())["request_id"] == job
        assert (await pages.next())["request_id"] == second
        assert [await stream.backlog() for stream in (bobs, others, adas, pages)] == [[], [], [], []]
    assert await hub.told(bob) == await hub.told(other) == []
    assert await hub.told(ada) == [job]
    assert await hub.told(page) == [second]


async def test_a_network_is_many_and_is_told_of_nothing(start: StartHub) -> None:
    hub = await start()
    first = await hub.limited.ask(("POST", "/queue.fal.run/fal-ai/flux/dev"), PAGE)
    cookie = (first.one(b"set-cookie") or b"").decode().partition(";")[0]
    job = str(json.loads(first.body)["request_id"])
    assert (await hub.post(hub.webhook(job, PAYLOAD))).status == 200, "received and settled all the same"
    nobodys = await hub.finish(NETWORK, PAYLOAD)
    neighbour = await hub.page()
    assert await hub.told(neighbour) == await hub.told(NETWORK) == await hub.told(PAGE) == []
    assert await hub.told([*PAGE, ("Cookie", cookie)]) == [job], "the cookie that came with the answer is one browser"
    assert hub.receipts() == {"filed": 2}
    assert nobodys


async def test_a_job_started_before_logging_in_is_told_after_it(start: StartHub) -> None:
    hub = await start()
    page = await hub.page()
    job = await hub.finish(page, PAYLOAD)
    assert await hub.told([*page, *hub.limited.ada]) == [job]
    assert await hub.told(hub.limited.ada) == []


async def test_whoever_comes_back_with_a_number_gets_what_came_after_it(start: StartHub) -> None:
    hub = await start()
    ada = hub.limited.ada
    jobs = [await hub.finish(ada, PAYLOAD) for _ in range(3)]
    async with hub.listen(ada) as stream:
        assert (await stream.next())["request_id"] == jobs[0]
        last = stream.last
    assert await hub.told(ada, last) == jobs[1:]
    assert await hub.told(ada, "0") == jobs
    for nonsense in ("", "-1", "x", "9" * 30):
        assert await hub.told(ada, nonsense) == jobs, "whoever comes with nonsense comes for the first time"


async def test_who_comes_for_the_first_time_gets_the_newest_hundred(start: StartHub) -> None:
    mailbox = MemoryMailbox()
    hub = await start(mailbox=mailbox)
    await filed(mailbox, MAX_EVENTS_PER_OWNER)
    await filed_others(mailbox)
    told = await hub.told(hub.limited.ada)
    assert told == [f"j-{at}" for at in range(MAX_EVENTS_PER_OWNER - events.BACKLOG, MAX_EVENTS_PER_OWNER)]
    assert len(await hub.told(hub.limited.ada, "1")) == MAX_EVENTS_PER_OWNER, "who has a number gets all after it"


async def filed_others(mailbox: MemoryMailbox) -> None:
    """File what is somebody else's."""
    for at in range(200):
        await mailbox.file(Event(f"other-{at}", "a/b", ("key::bob",), True, (), b"{}"))


ERROR = b'"status": "ERROR", "error": "Invalid status code: 422", "payload": {"detail": []}'
BODIES: list[tuple[bytes, dict[str, Any], str]] = [
    (b'"status": "OK", "payload": {"a": 1}', {"payload": {"a": 1}}, "a result"),
    (ERROR, {"error": "Invalid status code: 422", "payload": {"detail": []}}, "a failure with its answer"),
    (b'"status": "ERROR", "error": "gone"', {"error": "gone"}, "a failure without one"),
    (b'"status": "OK", "payload": null, "payload_error": "no JSON"', {"payload": None, "payload_error": "no JSON"}, "no payload"),
    (b'"status": "OK",\r\n"payload":\n{"a":\r[1,\n\n2]}', {"payload": {"a": [1, 2]}}, "lines between tokens"),
    (b'"status": "OK", "payload": "a\\nid: 1\\n\\ndata: x"', {"payload": "a\nid: 1\n\ndata: x"}, "lines inside text"),
    ('"status": "OK", "payload": "\u2028 \u0085 🐎"'.encode(), {"payload": "\u2028 \u0085 🐎"}, "what other readers call lines"),
    (b'"status": "OK", "payload": 12345678901234567890123', {"payload": 12345678901234567890123}, "fal's own digits"),
    (b'"status": "OK", "payload": "\xff"', {"payload_omitted": True}, "no UTF-8"),
    (b'"status": "OK", "payload": "' + b"a" * events.MAX_PAYLOAD_BYTES + b'"', {"payload_omitted": True}, "large"),
    (b'"status": "OK", "payload": "' + FAL_KEY_SECRET.encode() + b'"', {"payload_omitted": True}, "the fal key"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "told", "why"), BODIES, ids=[row[2] for row in BODIES])
async def test_a_body_of_whatever_form_is_one_line_of_fals_own_json(
    said: bytes, told: dict[str, Any], why: str, start: StartHub
) -> None:
    hub = await start()
    job = await hub.submit(hub.limited.ada)
    webhook = hub.webhook(job)
    webhook.body = b'{"request_id": "' + job.encode() + b'", ' + said + b"}"
    async with hub.listen(hub.limited.ada) as stream:
        assert (await hub.post(webhook)).status == 200
        event = await stream.next()
        assert await stream.backlog() == []
    assert event.pop("received_at") > 1_000_000_000
    assert event.pop("endpoint_id") == "fal-ai/flux/dev"
    assert event.pop("request_id") == job
    assert event.pop("status") == ("ERROR" if b"ERROR" in said else "OK")
    assert event == told, why


DENIED = [
    ("GET", [("Authorization", "Bearer fpk_nobody")], "", 401, "unidentified", "a key that nobody has"),
    ("GET", [("Origin", "https://evil.example")], "", 403, "origin_denied", "a foreign page"),
    ("GET", [("Sec-Fetch-Site", "cross-site")], "", 403, "origin_denied", "an image in a foreign page"),
    ("POST", [], "", 405, "method_not_allowed", "it is only read"),
    ("GET", [], "?a=b", 405, "method_not_allowed", "it has no query"),
    ("GET", [], "/x", 404, "not_found", "there is nothing below it"),
]


@pytest.mark.parametrize(("method", "fields", "tail", "status", "error_type", "reason"), DENIED)
async def test_it_is_refused_to_whoever_must_not_read_it(
    method: str, fields: Fields, tail: str, status: int, error_type: str, reason: str, start: StartHub
) -> None:
    hub = await start()
    refused(await hub.limited.ask((method, "/events" + tail), fields), status, error_type)


async def test_without_an_anonymous_source_and_for_a_plan_that_is_gone_it_is_closed(
    start: StartHub, tmp_path: Path
) -> None:
    hub = await start(identity=Identity(("key",), key=KeySource(file=str(tmp_path / "users.toml"))))
    refused(await hub.limited.ask(EVENTS, PAGE), 401, "unidentified")
    refused(await hub.limited.ask(EVENTS, hub.limited.user("carl", "gold")), 403, "endpoint_denied")


async def test_a_listed_origin_may_read_it_and_a_browser_is_given_its_cookie(start: StartHub) -> None:
    hub = await start(cors=Cors(origins=("https://app.example.com",)))
    async with hub.listen([("Origin", "https://app.example.com")]) as stream:
        assert stream.headers[b"access-control-allow-origin"] == b"https://app.example.com"
        assert stream.headers[b"access-control-allow-credentials"] == b"true"
        assert stream.headers[b"set-cookie"].startswith(b"fal_proxy_anon=")


async def test_a_ninth_stream_waits_until_one_has_ended(start: StartHub) -> None:
    hub = await start()
    ada = hub.limited.ada
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(hub.listen(ada)) for _ in range(events.MAX_STREAMS)]
        over = await hub.limited.ask(EVENTS, ada)
        refused(over, 429, "concurrency_limited")
        assert over.one(b"retry-after") == b"5"
        async with hub.listen(hub.limited.user("bob")):
            pass
        streams[0].client.close()
        async with asyncio.timeout(5):
            while True:
                async with raw_client(hub.limited.proxy.port) as client:
                    await client.send(request("GET", MOUNT + "/events", ada))
                    if (await client.read_head())[0] == 200:
                        return


async def test_it_costs_nothing_of_the_plan(start: StartHub) -> None:
    hub = await start()
    before = await hub.limited.me(hub.limited.ada)
    assert await hub.told(hub.limited.ada) == []
    assert await hub.limited.me(hub.limited.ada) == before


async def test_a_reader_who_stops_reading_holds_up_nobody_and_loses_nothing(start: StartHub) -> None:
    mailbox = MemoryMailbox()
    hub = await start(mailbox=mailbox)
    large = json.dumps({"payload": "a" * 200_000}).encode()
    async with hub.listen(hub.limited.ada) as slow, hub.listen(hub.limited.ada) as quick:
        await filed(mailbox, 40, body=large)  # more than the sockets between hold
        assert [(await quick.next())["request_id"] for _ in range(40)] == [f"j-{at}" for at in range(40)]
        assert [(await slow.next())["request_id"] for _ in range(40)] == [f"j-{at}" for at in range(40)]


async def test_its_end_is_clean_when_the_process_drains_and_when_its_time_is_over(
    start: StartHub, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = await start()
    monkeypatch.setattr(events, "STREAM_SECONDS", 0.2)
    async with hub.listen(hub.limited.ada) as stream:
        with pytest.raises(EOFError):
            await stream.next()
    monkeypatch.setattr(events, "STREAM_SECONDS", 600.0)
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 600.0)
    async with hub.listen(hub.limited.ada) as stream:
        hub.limited.proxy.app.lifecycle.reach(Stage.DRAINING)
        with pytest.raises(EOFError):
            await stream.next()
    ended = await lines.exactly(2)
    assert [(line["kind"], line["ending"], line["status"]) for line in ended] == [("events", "complete", 200)] * 2


async def test_a_reader_who_leaves_is_forgotten_at_once(
    start: StartHub, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 600.0)
    hub = await start()
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 600.0)
    async with hub.listen(hub.limited.ada) as stream:
        await stream.block()
        stream.client.reset()
    (line,) = await lines.exactly(1)
    assert (line["kind"], line["ending"], line["source"]) == ("events", "client_gone", "key")
    running = hub.limited.proxy.app._hub
    assert running is not None
    assert not running.events._streams
    assert not running.events._waiting


class Ill(MemoryMailbox):
    """A mailbox that cannot answer for a while."""

    ill = False

    async def since(self, identities: frozenset[str], number: int, limit: int) -> Any:
        if self.ill:
            raise StoreUnavailable
        return await super().since(identities, number, limit)

    async def before_newest(self, identities: frozenset[str], count: int) -> int:
        if self.ill:
            raise StoreUnavailable
        return await super().before_newest(identities, count)


async def test_a_stream_outlives_an_outage_of_the_store_and_a_new_one_is_told_to_come_again(start: StartHub) -> None:
    mailbox = Ill()
    hub = await start(mailbox=mailbox)
    async with hub.listen(hub.limited.ada) as stream:
        assert await stream.backlog() == []
        mailbox.ill = True
        await filed(mailbox, 1)
        assert await stream.backlog() == []
        refused(await hub.limited.ask(EVENTS, hub.limited.ada), 503, "store_unavailable")
        mailbox.ill = False
        assert (await stream.next())["request_id"] == "j-0"
