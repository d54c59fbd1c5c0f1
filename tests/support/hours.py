"""What happens in the scripted day, hour by hour: whom fal fails, who leaves, what ends by itself, what is killed."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import NamedTuple

import pytest

from fal_proxy.admission.gate import Gate, Grant
from fal_proxy.exchange import Caller
from fal_proxy.identity.key import add
from fal_proxy.relay import websocket as sessions
from support.counts import Person, Tally
from support.day import Day, Ends, Target, until
from support.ledger import cost
from support.limited import INITIATE, OURS, Fields, wide
from support.redis import Unsteady
from support.websocket import SHAKE, opened

MIDNIGHT = 1_799_971_200.0
HOUR = 3600.0
SPEED = 1000.0
SOCKET = "/fal.run/fal-ai/fast-lcm/realtime"
FLUX, ECHO, FAIL, SLOW = "fal-ai/flux/dev", "emulator/echo", "emulator/fail", "emulator/slow"
PRICES = {FLUX: "0.0333333", FAIL: "0.0200001", SLOW: "0.0071", "default": "0.0012345"}
RESERVE_UNITS = {SLOW: "4"}
SECOND = "0.001"  # of a socket, of a world model
PICTURE = b'{"prompt":"a horse","image_size":{"width":64,"height":64},"num_images":2}'
OFFER = b'{"app_id":"fal-ai/world","sdp":"v=0\\r\\no=- 1 1 IN IP4 0.0.0.0\\r\\ns=-\\r\\nt=0 0\\r\\n","type":"offer"}'
PLANS = {
    "free": wide(budget="50.00/hour", total_budget="900.00/day"),
    "paid": wide(budget="90.00/day", total_budget="900.00/week"),
    "poor": wide(budget="0.002/total", submit="2/hour", total_budget="900.00/day"),
    "visitors": wide(budget="50.00/hour", total_budget="900.00/total"),
}


def run(endpoint: str) -> Target:
    """Return the request for a run."""
    return ("POST", f"/fal.run/{endpoint}")


def job(id_: str, end: str = "", app: str = ECHO) -> Target:
    """Return the request about a job."""
    return ("PUT" if end == "/cancel" else "GET", f"/queue.fal.run/{app}/requests/{id_}{end}")


class Call(NamedTuple):
    """A run or a stream, what strikes it, and what is owed by section 4 of the contract."""

    reason: str
    target: Target
    body: bytes
    fault: str
    ends: Ends
    status: int | None  # that its caller sees


CALLS = [
    Call("as it should be", run(FLUX), PICTURE, "", "billed", 200),
    Call("compressed", run(FLUX), PICTURE, f"{FLUX}:gzip", "billed", 200),
    Call("an input that fal refuses is free", run(FLUX), b"{}", "", "billed", 422),
    Call("a runner's fault, without a word about money", run(FAIL), b'{"status":500}', "", "nothing", 500),
    Call("cancelled, without a word about money", run(FAIL), b'{"status":499}', "", "reserved", 499),
    Call("fal is busy", run(ECHO), b"{}", f"{ECHO}:status=429", "nothing", 429),
    Call("fal is away", run(ECHO), b"{}", f"{ECHO}:nginx502", "nothing", 502),
    Call("cut before the head: nobody knows", run(ECHO), b"{}", f"{ECHO}:reset", "reserved", 500),
    Call("cut in the body: the head has said it", run(FLUX), PICTURE, f"{FLUX}:truncate", "billed", 500),
    Call("reset in the body", run(FLUX), PICTURE, f"{FLUX}:reset=9", "billed", 500),
    Call("a stream says nothing about money", run(ECHO + "/stream"), b"{}", "", "reserved", 200),
    Call("a stream that is cut", run(ECHO + "/stream"), b"{}", f"{ECHO}:truncate", "reserved", 200),
    Call("a stream that does not exist is free", run("fal-ai/whisper/stream"), b"{}", "", "billed", 422),
    Call("a stream that never began", run(ECHO + "/stream"), b"{}", f"{ECHO}:status=503", "nothing", 503),
]


async def people(day: Day) -> None:
    """Let everybody come: key holders of three plans, and visitors with a cookie and without."""
    for name, plan in (("ada", "free"), ("bob", "free"), ("cyd", "paid"), ("eve", "poor")):
        await _welcome(day, name, [("Authorization", f"Bearer {add(day.folder / 'users.toml', name, plan)}")], plan)
    await _welcome(day, "network", [], "visitors")


async def _welcome(day: Day, name: str, fields: Fields, plan: str) -> None:
    answer = await day.ask("", ("GET", "/me"), fields=fields)
    assert answer is not None
    assert answer.status == 200, answer
    day.people[name] = Person(fields, plan, json.loads(answer.body)["id"])


async def night(day: Day) -> None:
    """Everything that a run and a stream can come to, from two plans, and over the end of an hour."""
    for who in ("ada", "cyd"):
        for call in CALLS:
            answer = await day.pay(who, call.target, call.body, ends=call.ends, fault=call.fault)
            assert (answer.status if answer else None) == call.status, call.reason
        await day.pass_(HOUR)


async def strangers(day: Day) -> None:
    """What is refused, and what costs nothing."""
    cases: list[tuple[Fields, Target, int]] = [
        ([("Authorization", "Bearer fpk_nobodys")], run(ECHO), 401),
        ([("Origin", "https://elsewhere.example")], run(ECHO), 403),
        (day.people["ada"].fields, ("POST", "/fal.run"), 400),
        (day.people["ada"].fields, ("DELETE", "/fal.run/" + ECHO), 405),
        (day.people["ada"].fields, job("nobodys"), 404),
    ]
    for fields, target, status in cases:
        answer = await day.ask("ada", target, fields=fields, reaches=False)
        assert answer is not None
        assert answer.status == status, answer
    upload = await day.ask("bob", INITIATE, b'{"file_name":"a.png","content_type":"image/png"}')
    assert upload is not None
    assert upload.status == 200
    preflight = [OURS, ("Access-Control-Request-Method", "POST")]
    answer = await day.ask("bob", ("OPTIONS", "/fal.run/" + ECHO), fields=preflight, reaches=False)
    assert answer is not None


async def morning(day: Day) -> None:
    """Jobs: polled, streamed, fetched twice, fetched never, cancelled, failed, refused, and with an unknown outcome."""
    polled = await day.submit("ada")
    await day.ask("ada", job(polled.request_id, "/status"))
    await day.pass_(1)
    for end in ("/status", "/status/stream", "", ""):
        await day.ask("ada", job(polled.request_id, end))
    day.ended(polled, "billed")
    unpolled = [await day.submit("bob"), await day.submit("cyd", PICTURE, ("POST", "/queue.fal.run/" + FLUX))]
    await day.pass_(10)
    for each in unpolled:
        day.ended(each, "billed")
    waiting = b'{"seconds":1,"queue_seconds":50000}'
    unstarted = await day.submit("ada", waiting, ("POST", "/queue.fal.run/" + SLOW))
    await day.ask("ada", job(unstarted.request_id, "/cancel", SLOW))
    day.ended(unstarted, "nothing")
    started = await day.submit("ada", b'{"seconds":60000,"queue_seconds":0}', ("POST", "/queue.fal.run/" + SLOW))
    await day.pass_(1)
    await day.ask("ada", job(started.request_id, "/cancel", SLOW))
    await day.pass_(10)
    day.ended(started, "reserved")
    for status in (422, 500):
        failed = await day.submit("cyd", b'{"status":%d}' % status, ("POST", "/queue.fal.run/" + FAIL))
        await day.pass_(10)
        day.ended(failed, "nothing")
    for fault, ends in (("status=429", "nothing"), ("reset", "reserved")):
        deed = day.deed("bob", ("POST", "/queue.fal.run/" + ECHO))
        before = day._bills()
        await day.ask("bob", ("POST", "/queue.fal.run/" + ECHO), fault=f"{ECHO}:{fault}")
        await day.pass_(1)
        deed.billed = [bill for bill in day._bills() if bill not in before]
        assert len(deed.billed) == (ends == "reserved"), "fal has run what nobody here knows of"
        deed.owed = deed.reserved if ends == "reserved" else 0


async def departures(day: Day) -> None:
    """Callers who leave: in a run, in a stream, and behind a submit, which is carried on."""
    slowly = b'{"seconds":80000}'
    for target in (run(SLOW), run(SLOW + "/stream")):
        deed = day.deed("ada", target)
        before = day._bills()
        await day.leave(
            "ada", target, slowly, lambda entry: entry.status is not None or "stream" not in entry.target.decode()
        )
        deed.owed, deed.billed = deed.reserved, [bill for bill in day._bills() if bill not in before]


async def visitors(day: Day) -> None:
    """A first visit is its network's, and what it submits is fetched by the cookie that it was given."""
    answer = await day.ask("network", ("GET", "/me"), fields=[OURS])
    assert answer is not None
    cookie = (answer.one(b"set-cookie") or b"").decode().partition(";")[0]
    await _welcome(day, "visitor", [OURS, ("Cookie", cookie)], "visitors")
    await day.pay("visitor", run(ECHO), ends="billed")
    await day.pay("network", run(ECHO), ends="billed")
    answer = await day.ask("network", ("POST", "/queue.fal.run/" + ECHO), fields=[OURS])
    assert answer is not None
    cookie = (answer.one(b"set-cookie") or b"").decode().partition(";")[0]
    deed = day.deed("network", ("POST", "/queue.fal.run/" + ECHO), "a first submit")
    deed.request_id = str(json.loads(answer.body)["request_id"])
    await _welcome(day, "returned", [OURS, ("Cookie", cookie)], "visitors")
    await day.pass_(1)
    answer = await day.ask("returned", job(deed.request_id))
    assert answer is not None
    assert answer.status == 200, answer
    day.ended(deed, "billed")
    await day.settle()


async def refusals(day: Day) -> None:
    """A rate and a budget refuse; the next hour has room again, and what is spent for good stays so."""
    await day.pay("eve", run(ECHO), ends="billed")
    for status in (402, 402):
        answer = await day.ask("eve", run(ECHO), reaches=False)
        assert answer is not None
        assert answer.status == status, answer
    await day.pay("ada", run(ECHO), ends="billed")


async def leases(day: Day) -> None:
    """Jobs about which fal says nothing for an hour; of one it does later."""
    late = await day.submit("ada", b'{"seconds":20000,"queue_seconds":0}', ("POST", "/queue.fal.run/" + SLOW))
    lost = await day.submit("cyd")
    day.clock.advance(HOUR + 2)  # fal was away: no settler has learnt anything
    answer = await day.ask("ada", job(late.request_id, app=SLOW))  # in 20 s fal forgets it, and the other one it has
    assert answer is not None
    assert answer.status == 200, answer
    answer = await day.ask("cyd", job(lost.request_id))
    assert answer is not None
    assert answer.status == 404, answer
    await day.settle()
    day.ended(late, "billed")
    day.ended(lost, "reserved")


async def sockets(day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    """A realtime session of several leases, and a world model that lives by its heartbeats."""
    monkeypatch.setattr(sessions, "LEASE_SECONDS", 0.125)
    leased = 1
    lease = Gate.lease

    async def counting(gate: Gate, caller: Caller, plan: str, grant: Grant) -> None:
        nonlocal leased
        await lease(gate, caller, plan, grant)
        leased += 1

    monkeypatch.setattr(Gate, "lease", counting)
    written = len(day.lines.text)
    async with opened(day.processes[0].running.proxy, day.people["ada"].fields, SOCKET) as caller:
        await until(lambda: leased >= 3)
        await caller.close(1000)
        await caller.end()
    await day.line(written + 1)
    day._sent(("GET", SOCKET), 101)
    day.deed("ada", run("fal-ai/fast-lcm"), "a socket").owed = leased * cost(SECOND, "0.125")
    shaking = [*day.people["ada"].fields, *SHAKE]
    answer = await day.ask("ada", ("GET", SOCKET), fields=shaking, fault="fal-ai/fast-lcm:reset")
    assert answer is not None
    assert answer.status == 500, answer
    day.deed("ada", run("fal-ai/fast-lcm"), "a socket that may have been opened").owed = cost(SECOND, "0.125")

    answer = await day.ask("ada", ("POST", "/wma.fal.run/session"), OFFER)
    assert answer is not None
    session = json.loads(answer.body)["session_id"]
    beaten = Decimal(0)
    for _ in range(3):
        await day.pass_(5)
        await day.ask("ada", ("POST", "/wma.fal.run/session/heartbeat"), json.dumps({"session_id": session}).encode())
        beaten += Decimal(day.fal.last.units or "0")
    await day.pass_(60)
    assert beaten == 15, "what fal bills"
    day.deed("ada", run("fal-ai/world"), "a world model").owed = cost(
        SECOND, str(beaten + 20)
    )  # the rest was paid ahead


async def crash(day: Day) -> None:
    """A process is killed in the middle of a run; the next one, or its twin, finds out what nobody told."""
    process = day.processes[0]
    deed = day.deed("ada", run(SLOW))
    before = len(day.fal.app.journal)
    asking = asyncio.create_task(process.running.ask(run(SLOW), day.people["ada"].fields, b'{"seconds":80000}'))
    await until(lambda: len(day.fal.app.journal) > before)
    day.sent[("POST", f"fal.run/{SLOW}")] += 1
    await day.kill(process, asking)
    await day.start()
    await day.pass_(90)
    deed.owed = deed.reserved


async def hiccups(day: Day) -> None:
    """Redis does not hear how a run ended, or nobody hears its answer."""
    for process in day.processes:
        if isinstance(process.store, Unsteady):
            process.store.fate = ["well", "unheard", "well", "unsent"]
    for _ in range(2 * len(day.processes)):
        await day.pay("bob", run(FLUX), PICTURE, ends="billed")
    for process in day.processes:
        if isinstance(process.store, Unsteady):
            await process.store.heard()
    await day.pass_(1)


async def evening(day: Day) -> None:
    """An ordinary restart while a job is under way; its result is fetched from the next process."""
    deed = await day.submit("cyd")
    await day.stop(day.processes[0])
    await day.start()
    await day.pass_(1)
    await day.ask("cyd", job(deed.request_id))
    day.ended(deed, "billed")


async def lived(day: Day, monkeypatch: pytest.MonkeyPatch) -> Tally:
    """Live through the whole day and count."""
    await people(day)
    await night(day)
    await strangers(day)
    await morning(day)
    await departures(day)
    await visitors(day)
    await leases(day)
    await refusals(day)
    await sockets(day, monkeypatch)
    await crash(day)
    await hiccups(day)
    await evening(day)
    while day.clock.now < MIDNIGHT + 23 * HOUR:
        await day.pass_(HOUR)
        await day.pay("bob", run(FLUX), PICTURE, ends="billed")
    await day.pass_(HOUR / 2)
    return await day.counted()
