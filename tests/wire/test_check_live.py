"""`check --live`: what fal says to each key, told without showing one, and nothing asked that could cost anything."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from fal_proxy.platform_api import live
from fal_proxy.platform_api.live import Heard, ask_fal
from fal_proxy.settings import Plan, PriceFeed, Realtime, Settings, Storage
from support import hearing
from support.emulated import emulated
from support.hearing import ADMIN, BAD, GOOD, INVALID, LOCKED, NOT_FOUND, PRICED, Fal
from support.proxied import FAL_KEY_ID, FAL_KEY_SECRET
from support.services import Reply

fal, url = hearing.fal, hearing.url


async def _hear(url: str, settings: Settings | None = None, **environ: str) -> Heard:
    return await ask_fal(settings or Settings(), {"FAL_KEY": GOOD, "FAL_PROXY_UPSTREAM": url, **environ})


def _told(heard: Heard) -> list[tuple[str, str]]:
    return [(finding.level, finding.path) for finding in heard.findings]


async def test_a_good_key_is_no_finding_and_everything_is_told(url: str) -> None:
    heard = await _hear(url)
    assert heard.findings == []
    assert heard.hosts == {"127.0.0.1": 1}
    [key] = heard.keys
    assert (key["key"], key["accepted"]) == (FAL_KEY_ID[:8] + "…", True)
    assert 0 < key["milliseconds"] < 10_000
    assert heard.clock_seconds is not None
    assert abs(heard.clock_seconds) < 5
    assert [line.split(" ")[0] for line in heard.lines()] == ["127.0.0.1", "fal", "fal's"]
    json.dumps(heard.answers)


async def test_nothing_is_asked_that_could_be_billed(url: str, fal: Fal) -> None:
    await _hear(url)
    assert sorted(fal.asked) == [
        "/api.fal.ai/v1/models/pricing?endpoint_id=fal-ai/flux/dev",
        "/queue.fal.run/fal-ai/flux/requests/00000000-0000-4000-8000-000000000000/status",
    ]


SAYS = [
    (INVALID, PRICED, [("error", "calls it invalid")], "a bad key"),
    (LOCKED, PRICED, [("error", "its account is locked (403), Exhausted balance")], "no money"),
    (Reply(403, b'{"detail":"User is locked. Reason: \\u001b[2J"}'), PRICED, [("error", "is locked (403): see")], "a reason that nobody knows"),
    (Reply(401, b'{"detail":"Cannot access application"}'), PRICED, [("error", "refuses it with 401")], "another no"),
    (Reply(403, b"<html>Just a moment...</html>"), PRICED, [("error", "refuses it with 403")], "something in front"),
    (NOT_FOUND, Reply(401, b'{"error":{"type":"authorization_error","message":"x"}}'), [("error", "lacks the API scope")], "the queue says 404 to anybody"),
    (NOT_FOUND, Reply(403, b"<html>Just a moment...</html>"), [("warning", "not certain to be valid")], "a challenge"),
    (NOT_FOUND, Reply(500, b'{"error":{"type":"server_error","message":"x"}}'), [("warning", "500 server_error")], "the list is broken"),
    (NOT_FOUND, Reply(500, b'{"error":{"type":"\\u001b[2J","message":"x"}}'), [("warning", "it answered 500;")], "in words of nobody's"),
    (NOT_FOUND, Reply(404, b"{}"), [], "a list without the sample"),
    (Reply(200, b"{}"), PRICED, [], "the request was, after all"),
    (Reply(429, b"{}"), PRICED, [("warning", "answers 429")], "too many questions"),
    (Reply(503, b"{}"), PRICED, [("warning", "answers 503")], "fal has trouble"),
]  # fmt: skip


@pytest.mark.parametrize(("queue", "prices", "told", "why"), SAYS)
async def test_what_fal_says_to_a_key_is_a_finding(
    queue: Reply, prices: Reply, told: list[tuple[str, str]], why: str, url: str, fal: Fal
) -> None:
    fal.queue[GOOD], fal.prices[GOOD] = queue, prices
    heard = await _hear(url)
    assert [(finding.level, finding.path) for finding in heard.findings] == [(level, "FAL_KEY") for level, _ in told], (
        why
    )
    for finding, (_, text) in zip(heard.findings, told, strict=True):
        assert text in finding.message, why
        assert finding.message.startswith(f"key {FAL_KEY_ID[:8]}…: ")
        assert finding.message.isprintable()
    assert heard.keys[0]["accepted"] is not any(level == "error" for level, _ in told)


async def test_every_key_is_asked_about_and_named_by_what_fals_dashboard_shows(
    url: str, fal: Fal, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{GOOD}\n{BAD} 3\nshort:{'c3' * 16}\n")
    fal.queue[BAD] = INVALID
    heard = await ask_fal(Settings(), {"FAL_KEY_FILE": str(file), "FAL_PROXY_UPSTREAM": url})
    [finding] = heard.findings
    assert (finding.level, finding.path) == ("error", "FAL_KEY_FILE")
    assert finding.message.startswith("key bbbbbbbb…: ")
    assert [key["accepted"] for key in heard.keys] == [True, False, True]
    text = json.dumps(heard.answers) + "".join(heard.lines()) + finding.message
    assert not any(half in text for half in (FAL_KEY_SECRET, "b2" * 16, "c3" * 16, "short", FAL_KEY_ID, BAD[:36]))


SKEWS = [
    (0, None, "as ours"),
    (25, None, "a little"),
    (45, "is 4", "ours is slow"),
    (-45, "is 4", "ours is fast"),
    (86_400, "is 86", "a day"),
    (None, None, "a Date that is none"),
]


@pytest.mark.parametrize(("ahead", "says", "why"), SKEWS)
async def test_a_clock_that_differs_by_more_than_half_a_minute_is_a_warning(
    ahead: float | None, says: str | None, why: str, url: str, fal: Fal
) -> None:
    fal.ahead_seconds = ahead
    heard = await _hear(url)
    assert _told(heard) == ([("warning", "clock")] if says else []), why
    if says:
        assert says in heard.findings[0].message
        assert ("behind fal's" in heard.findings[0].message) is (ahead is not None and ahead > 0)
    if ahead is None:
        assert heard.clock_seconds is None
    else:
        assert heard.clock_seconds == pytest.approx(ahead, abs=5)


async def test_a_fal_that_cannot_be_reached_is_an_error(fal: Fal) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        heard = await _hear(f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert _told(heard) == [("error", "FAL_KEY")]
    assert "cannot be reached" in heard.findings[0].message
    assert heard.keys == [{"key": FAL_KEY_ID[:8] + "…", "accepted": False, "milliseconds": None}]


async def test_a_slow_fal_is_a_warning(url: str, fal: Fal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SLOW_SECONDS", 0.0)
    heard = await _hear(url)
    assert _told(heard) == [("warning", "FAL_KEY")]
    assert "to answer" in heard.findings[0].message


async def test_a_fal_that_never_answers_is_an_error(url: str, fal: Fal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "ASK_SECONDS", 0.1)
    fal.service.gate.clear()
    heard = await _hear(url)
    assert _told(heard) == [("error", "FAL_KEY")]
    assert "no answer within" in heard.findings[0].message


Addresses = list[tuple[int, str, int]]


async def test_hosts_that_do_not_resolve_or_lead_inside_are_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "fal.run": ["8.8.8.8", "8.8.4.4"],
        "queue.fal.run": ["10.0.0.1"],
        "api.fal.ai": ["8.8.8.8"],
        "v3.fal.media": ["8.8.8.8"],
    }

    async def resolve(host: str, port: int) -> Addresses:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "unknown name")
        return [(socket.AF_INET, address, port) for address in known[host]]

    monkeypatch.setattr(live, "resolve", resolve)
    settings = Settings(storage=Storage(mode="relay", hosts=("v3.fal.media",)), realtime=Realtime(wma=True))
    heard = await ask_fal(settings, {})
    assert heard.hosts == {
        "fal.run": 2,
        "queue.fal.run": 1,
        "rest.fal.ai": 0,
        "api.fal.ai": 1,
        "wma.fal.run": 0,
        "v3.fal.media": 1,
    }
    assert sorted(_told(heard)) == [("error", "queue.fal.run"), ("warning", "rest.fal.ai"), ("warning", "wma.fal.run")]


BUDGETED = Plan(endpoints=("fal-ai/flux/dev", "fal-ai/gone", "fal-ai/own", "fal-ai/**"), budget="1.00/day")


async def test_prices_of_what_plans_name_are_asked_for(url: str, fal: Fal) -> None:
    settings = Settings(
        plans={"default": BUDGETED, "other": Plan(endpoints=("fal-ai/free",))},
        prices={"fal-ai/own": 1},
        price_feed=PriceFeed(mode="fetch"),
    )
    heard = await _hear(url, settings)
    assert heard.prices == {"fal-ai/flux/dev": "$0.025 per images", "fal-ai/gone": None}
    assert _told(heard) == [("warning", "prices")]
    assert "fal-ai/gone" in heard.findings[0].message
    assert "fal-ai/gone costs what fal does not say" in heard.lines()


async def test_a_wrong_price_list_is_left_to_the_other_findings(url: str, fal: Fal) -> None:
    settings = Settings(plans={"default": BUDGETED}, prices={"fal-ai/own": "x"})
    assert (await _hear(url, settings)).prices == {}


BILLS = [
    (Reply(200, b"{}"), [], "it may"),
    (Reply(403, b'{"error":{"type":"authorization_error"}}'), [("error", "FAL_ADMIN_KEY")], "an API key"),
    (Reply(401, b"{}"), [("error", "FAL_ADMIN_KEY")], "a bad one"),
    (Reply(500, b"{}"), [("warning", "FAL_ADMIN_KEY")], "nobody knows"),
]


@pytest.mark.parametrize(("bills", "told", "why"), BILLS)
async def test_the_key_for_bills_is_asked_for_bills(
    bills: Reply, told: list[tuple[str, str]], why: str, url: str, fal: Fal
) -> None:
    fal.bills = bills
    heard = await _hear(url, FAL_ADMIN_KEY=ADMIN)
    assert _told(heard) == told, why
    assert sum("billing-events" in path for path in fal.asked) == 1
    assert len(heard.keys) == 1, "it is no key that requests are sent with"


async def test_the_emulator_is_a_fal_that_answers_all_of_it() -> None:
    async with emulated(api_keys=[GOOD], admin_keys=[ADMIN]) as fal:
        assert (await _hear(fal.url, FAL_ADMIN_KEY=ADMIN)).findings == []
        heard = await _hear(fal.url, FAL_KEY=BAD, FAL_ADMIN_KEY=GOOD)
    assert _told(heard) == [("error", "FAL_KEY"), ("error", "FAL_ADMIN_KEY")]
