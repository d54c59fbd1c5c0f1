"""Webhooks that are none: each is refused with a reason, counted, and has changed nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fal_proxy.callbacks import CALLBACK_SECONDS
from fal_proxy.errors import StoreUnavailable
from fal_proxy.exchange import Caller, Kind, Receipt, Target
from fal_proxy.gateway import Gateway
from fal_proxy.settings import Server, Webhooks
from fal_proxy.stores.mailbox import Event
from fal_proxy.stores.mailbox_memory import MemoryMailbox
from fal_proxy.stores.memory import MemoryStore
from support.hub import Hub, Signed, StartHub, hubbed, key_of, starting, verifications
from support.limited import COMPLETED, NAMED, Clock, refused, reset, units, wide
from support.lines import Lines
from support.peers import Serve
from support.raw import RawAnswer
from support.scripts import ok

start, count = starting, verifications
SIGNATURE, TIMESTAMP = "X-Fal-Webhook-Signature", "X-Fal-Webhook-Timestamp"
REQUEST_ID, USER_ID = "X-Fal-Webhook-Request-Id", "X-Fal-Webhook-User-Id"


def gateway_of(hub: Hub) -> Gateway:
    """Return the proxy's inside."""
    return hub.limited.proxy.app._gateway


async def nothing_changed(hub: Hub, job: str, seen: int) -> None:
    """Assert that no event was filed, and that fal is not asked about the job."""
    mailbox = hub.limited.proxy.app._hub
    assert mailbox is not None
    assert not await mailbox.mailbox.filed(job)
    await hub.limited.turn()
    asked = [kind for kind in hub.fal.seen[seen:] if kind != "initiate"]
    assert asked == [], "the settler was not told"


Bend = Callable[[Signed], Signed]


def changed(**fields: str | None) -> Bend:
    """Return what replaces header fields after signing."""
    return lambda webhook: replace(webhook, changes={name.replace("_", "-"): value for name, value in fields.items()})


def stamped(text: str = "", ago: int = 0) -> Bend:
    """Return what signs another time: a text, or so many seconds ago."""
    return lambda webhook: replace(webhook, timestamp=text or str(int(time.time()) - ago))


def said(body: bytes) -> Bend:
    """Return what signs another body."""
    return lambda webhook: replace(webhook, body=body)


REFUSED: list[tuple[str, Bend, int, str, Receipt]] = [
    ("another key", lambda webhook: replace(webhook, key=key_of(2)), 401, "unidentified", Receipt.FORGED),
    ("a changed body", lambda w: replace(w, changes={SIGNATURE: dict(w.fields)[SIGNATURE]}, body=w.body.replace(b"OK", b"NO")),
     401, "unidentified", Receipt.FORGED),
    ("another user id", changed(X_Fal_Webhook_User_Id="github|43"), 401, "unidentified", Receipt.FORGED),
    ("another time than was signed", lambda w: replace(w, changes={TIMESTAMP: str(int(w.timestamp) - 60)}), 401, "unidentified", Receipt.FORGED),
    ("zeros for a signature", changed(X_Fal_Webhook_Signature="0" * 128), 401, "unidentified", Receipt.FORGED),
    ("ten minutes old", stamped(ago=600), 401, "unidentified", Receipt.UNTIMELY),
    ("ten minutes too new", stamped(ago=-600), 401, "unidentified", Receipt.UNTIMELY),
    ("a time in milliseconds", stamped("1800000000000"), 400, "bad_request", Receipt.MALFORMED),
    ("a time as a date", stamped("2026-01-01T00:00:00Z"), 400, "bad_request", Receipt.MALFORMED),
    ("a truncated signature", changed(X_Fal_Webhook_Signature="0" * 126), 400, "bad_request", Receipt.MALFORMED),
    ("no signature", changed(X_Fal_Webhook_Signature=None), 400, "bad_request", Receipt.MALFORMED),
    ("no user", changed(X_Fal_Webhook_User_Id=None), 400, "bad_request", Receipt.MALFORMED),
    ("no time", changed(X_Fal_Webhook_Timestamp=None), 400, "bad_request", Receipt.MALFORMED),
    ("no request id", changed(X_Fal_Webhook_Request_Id=None), 400, "bad_request", Receipt.MALFORMED),
    ("field and body disagree", lambda w: replace(w, request_id="another"), 400, "bad_request", Receipt.MALFORMED),
    ("no JSON", said(b"request_id=job-1"), 400, "bad_request", Receipt.MALFORMED),
    ("half a body", said(b'{"request_id": "job-1", "status": "OK", "payload": {'), 400, "bad_request", Receipt.MALFORMED),
    ("no status", said(b'{"request_id": "job-1"}'), 400, "bad_request", Receipt.MALFORMED),
    ("an id that is no text", said(b'{"request_id": 1, "status": "OK"}'), 400, "bad_request", Receipt.MALFORMED),
    ("endless brackets", said(b'{"request_id": "job-1", "status": "OK", "payload": ' + b"[" * 100_000), 400, "bad_request", Receipt.MALFORMED),
    ("no body", said(b""), 400, "bad_request", Receipt.MALFORMED),
    ("too much", said(b'{"request_id": "job-1", "status": "OK", "payload": "' + b"a" * 200_000 + b'"}'), 413, "body_too_large", Receipt.TOO_LARGE),
    ("an unknown id", lambda w: replace(w, request_id="job-9", body=w.body.replace(b"job-1", b"job-9")), 404, "unknown_request", Receipt.UNKNOWN_REQUEST),
    ("no capability", lambda w: replace(w, path="/webhooks/"), 404, "not_found", Receipt.NO_CAPABILITY),
    ("a made-up capability", lambda w: replace(w, path="/webhooks/" + "A" * 200), 404, "not_found", Receipt.NO_CAPABILITY),
    ("a capability cut short", lambda w: replace(w, path=w.path[:-1]), 404, "not_found", Receipt.NO_CAPABILITY),
    ("a segment behind it", lambda w: replace(w, path=w.path + "/x"), 404, "not_found", Receipt.NO_CAPABILITY),
    ("a query behind it", lambda w: replace(w, path=w.path + "?x"), 404, "not_found", Receipt.NO_CAPABILITY),
]  # fmt: skip


@pytest.mark.parametrize(("why", "bend", "status", "error_type", "receipt"), REFUSED, ids=[row[0] for row in REFUSED])
async def test_what_is_no_webhook_of_fals_is_refused_counted_and_changes_nothing(
    why: str, bend: Bend, status: int, error_type: str, receipt: Receipt, start: StartHub, lines: Lines
) -> None:
    hub = await start(max_body_bytes=150_000)
    job = await hub.submit(hub.limited.ada)
    good = hub.webhook(job, {"images": []})
    seen = len(hub.fal.seen)
    refused(await hub.post(bend(good)), status, error_type)
    assert hub.receipts() == {receipt.value: 1}
    line = (await lines.exactly(2))[-1]
    assert (line["kind"], line["decision"], line["caller"]) == ("webhook", error_type, None)
    assert line["reason"]
    assert job not in str(line)
    await nothing_changed(hub, job, seen)
    assert (await hub.post(good)).status == 200, "and the real one still comes in"


async def test_each_field_must_be_there_once(start: StartHub) -> None:
    hub = await start()
    job = await hub.submit(hub.limited.ada)
    good = hub.webhook(job)
    for name in (REQUEST_ID, USER_ID, TIMESTAMP, SIGNATURE):
        twice = [*good.fields, (name, dict(good.fields)[name])]
        refused(await hub.limited.ask(("POST", good.path), twice, good.body), 400, "bad_request")
    assert hub.receipts() == {"malformed": 4}


async def test_only_a_post_is_a_webhook(start: StartHub) -> None:
    hub = await start()
    await hub.submit(hub.limited.ada)
    for method in ("GET", "PUT", "DELETE"):
        answer = await hub.limited.ask((method, hub.callback), [])
        refused(answer, 405, "method_not_allowed")
        assert answer.one(b"allow") == b"POST"
    refused(await hub.limited.ask(("GET", "/webhooks/x"), []), 404, "not_found")


async def test_a_capability_ends_an_hour_after_its_job(start: StartHub) -> None:
    hub = await start()
    job = await hub.submit(hub.limited.ada)
    seals = gateway_of(hub).callbacks.seals
    assert seals is not None
    seals._clock = lambda: time.time() + CALLBACK_SECONDS + 1
    refused(await hub.post(hub.webhook(job)), 410, "capability_expired")
    assert hub.receipts() == {"expired": 1}


async def test_a_capability_is_for_the_job_it_was_made_for(start: StartHub) -> None:
    hub = await start()
    job = await hub.submit(hub.limited.ada)
    of_ada = hub.callback
    other = await hub.submit(hub.limited.user("bob"))
    of_bob = hub.callback
    refused(await hub.post(hub.webhook(job, path=of_bob)), 404, "unknown_request")
    refused(await hub.post(hub.webhook(other, path=of_ada)), 404, "unknown_request")
    seals = gateway_of(hub).callbacks.seals
    assert seals is not None
    found = seals.find(of_ada.rpartition("/")[2].encode())
    assert found is not None
    ada = Caller(found.owners[0], "key", "default", ambient=False, owners=found.owners)
    elsewhere = gateway_of(hub).callbacks.judge(Target(b"queue.fal.run", b"/x/y", None, Kind.SUBMIT, "x/y"), ada)
    path = (elsewhere.query or b"").decode().rpartition("%2F")[2]
    refused(await hub.post(hub.webhook(job, path=f"/webhooks/{path}")), 404, "unknown_request")
    assert hub.receipts() == {"unknown_request": 3}
    assert (await hub.post(hub.webhook(job, path=of_ada))).status == 200


async def test_a_webhook_that_overtakes_the_answer_to_its_submit_is_taken_when_fal_repeats_it(start: StartHub) -> None:
    hub = await start()
    job = "job-1"
    early: list[RawAnswer] = []

    async def slow_submit(peer: Any) -> None:
        early.append(await hub.post(hub.webhook(job, {"early": True})))
        url = f"https://queue.fal.run/fal-ai/flux/requests/{job}"
        await peer.send(ok(f'{{"request_id": "{job}", "response_url": "{url}"}}'.encode()))

    hub.fal.says["submit"] = slow_submit
    assert await hub.submit(hub.limited.ada) == job
    refused(early[0], 404, "unknown_request")
    assert (await hub.post(hub.webhook(job))).status == 200
    assert hub.receipts() == {"unknown_request": 1, "filed": 1}


async def test_a_replayed_webhook_is_answered_and_changes_nothing_and_nobody_computes_for_it(
    start: StartHub, count: list[bytes]
) -> None:
    hub = await start(wide(budget="1.00/day"), prices={"default": 0.04})
    job = await hub.submit(hub.limited.ada)
    hub.fal.says |= {"status": COMPLETED, "result": ok(b"{}", units("2"), NAMED)}
    good = hub.webhook(job, {"first": True})
    for _ in range(5):
        assert (await hub.post(good)).status == 200
    assert (await hub.post(hub.webhook(job, {"second": True}))).status == 200, "also one that fal signed anew"
    await hub.limited.turn()
    await hub.limited.turn()
    assert hub.receipts() == {"filed": 1, "duplicate": 5}
    assert len(count) == 1
    assert await hub.limited.money(hub.limited.ada) == (80_000, 0)
    assert hub.fal.seen.count("result") == 1, "settled once"
    async with hub.listen(hub.limited.ada) as stream:
        assert (await stream.next())["payload"] == {"first": True}


async def test_of_two_at_once_one_is_filed(start: StartHub) -> None:
    hub = await start()
    job = await hub.submit(hub.limited.ada)
    answers = await asyncio.gather(*(hub.post(hub.webhook(job)) for _ in range(8)))
    assert {answer.status for answer in answers} == {200}
    assert hub.receipts() == {"filed": 1, "duplicate": 7}


async def test_a_new_key_of_fals_is_believed_as_soon_as_it_signs_and_a_withdrawn_one_is_not(
    start: StartHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fal_proxy.identity.published.UNKNOWN_SECONDS", 0.0)
    hub = await start()
    first, second, third = [await hub.submit(hub.limited.ada) for _ in range(3)]
    assert (await hub.post(hub.webhook(first))).status == 200
    old, hub.key = hub.key, key_of(2)
    hub.publish(hub.key)
    assert (await hub.post(hub.webhook(second))).status == 200
    hub.key = old
    refused(await hub.post(hub.webhook(third)), 401, "unidentified")
    assert hub.receipts() == {"filed": 2, "forged": 1}


async def test_while_fals_keys_cannot_be_had_fal_is_asked_to_come_again(start: StartHub) -> None:
    hub = await start()
    job = await hub.submit(hub.limited.ada)
    hub.fal.says["initiate"] = reset
    refused(await hub.post(hub.webhook(job)), 503, "identity_unavailable")
    assert hub.receipts() == {"unavailable": 1}


class Full(MemoryMailbox):
    """A mailbox without room."""

    async def file(self, event: Event) -> Event | None:
        raise StoreUnavailable("the mailbox is full")


async def test_what_cannot_be_kept_is_not_acknowledged(start: StartHub) -> None:
    hub = await start(mailbox=Full())
    job = await hub.submit(hub.limited.ada)
    seen = len(hub.fal.seen)
    answer = await hub.post(hub.webhook(job))
    refused(answer, 503, "store_unavailable")
    assert answer.one(b"retry-after")
    assert hub.receipts() == {"unavailable": 1}
    await nothing_changed(hub, job, seen)


class Forgetful(MemoryStore):
    """A store that is away when the settler is to be told."""

    async def hasten(self, request_id: str) -> None:
        raise StoreUnavailable


async def test_what_is_kept_is_acknowledged_though_the_settler_must_find_out_by_itself(start: StartHub) -> None:
    clock = Clock()
    hub = await start(wide(budget="1.00/day"), prices={"default": 0.04}, store=Forgetful(clock=clock), clock=clock)
    hub.fal.says |= {"status": COMPLETED, "result": ok(b"{}", units("2"), NAMED)}
    await hub.finish(hub.limited.ada)
    await hub.limited.turn()
    assert await hub.limited.money(hub.limited.ada) == (0, 40_000)
    clock.advance(10)
    await hub.limited.turn()
    assert await hub.limited.money(hub.limited.ada) == (80_000, 0)


async def test_without_the_hub_there_is_neither_of_its_routes(serve: Serve, tmp_path: Path) -> None:
    server = Server(hosts=("127.0.0.1",))
    async with hubbed(serve, tmp_path, webhooks=Webhooks(), server=server) as hub:
        refused(await hub.limited.ask(("POST", "/webhooks/x"), []), 403, "mode_off")
        refused(await hub.limited.ask(("GET", "/events"), hub.limited.ada), 403, "mode_off")
        await hub.submit(hub.limited.ada)
        assert "fal_webhook" not in hub.fal.paths[-1]
