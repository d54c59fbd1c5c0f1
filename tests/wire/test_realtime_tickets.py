"""Tickets on the wire: one socket each, of one app, for the page that asked; spent by the 101 and by nothing else."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from fal_proxy.environment import Secret
from fal_proxy.exchange import Caller
from fal_proxy.identity.ticket import Tickets
from fal_proxy.settings import Realtime
from support.limited import Fields, refused, wide
from support.lines import Lines
from support.peers import Peer
from support.proxied import SIGNING_SECRET
from support.raw import raw_client
from support.sockets import SESSIONS, TOKENS, TOKENS_REALTIME, StartStage, stage, with_ticket
from support.websocket import APP, TEXT, Frame, answered, handshake, opened, switching

start = stage
PAGE: Fields = [("Origin", "http://127.0.0.1")]
ASKED = [
    (TOKENS, b'{"allowed_apps":["fast-lcm"],"token_expiration":120}', "the JavaScript client"),
    (TOKENS, b'{"allowed_apps":["fal-ai/fast-lcm"]}', "owner and alias"),
    (TOKENS_REALTIME, b'{"allowed_apps":["fal-ai/fast-lcm/realtime"],"duration":120}', "the documentation"),
    (TOKENS_REALTIME, b'{"app":"fal-ai/fast-lcm"}', "others"),
]


@pytest.mark.parametrize(("where", "body", "reason"), ASKED, ids=[row[2] for row in ASKED])
async def test_a_ticket_opens_one_socket_from_its_page_and_does_not_go_up(
    start: StartStage, where: tuple[str, str], body: bytes, reason: str
) -> None:
    on = await start()
    page = await on.limited.page()
    answer = await on.limited.ask(where, page, body)
    assert answer.status == 201, reason
    said = msgspec.json.decode(answer.body)
    ticket = said["token"] if where == TOKENS_REALTIME else said
    path = f"{APP}?max_buffering=2&fal_jwt_token={ticket}"
    async with opened(on.proxy, PAGE, path) as caller:
        end = await on.fal.next()
        assert end.head.startswith(b"GET /fal.run/fal-ai/fast-lcm/realtime?max_buffering=2 HTTP/1.1\r\n")
        assert ticket.encode() not in end.head
        await caller.send(TEXT, b"x")
        assert await end.frame() == Frame(TEXT, b"x")
        assert await on.sessions(page) == 1, "the ticket is its caller"
    refused(await on.refused(PAGE, path), 401, "unidentified")
    assert len(on.upstream.peers) == 1


async def test_a_query_that_was_only_the_ticket_is_none(start: StartStage) -> None:
    on = await start()
    async with opened(on.proxy, PAGE, with_ticket(await on.ticket(await on.limited.page()))):
        assert (await on.fal.next()).head.startswith(b"GET /fal.run/fal-ai/fast-lcm/realtime HTTP/1.1\r\n")


WRONG_PAGES: list[tuple[Fields, int, str, str]] = [
    ([("Origin", "https://evil.example")], 403, "origin_denied", "a foreign page"),
    ([("Origin", "null")], 403, "origin_denied", "a page without an origin"),
    ([("Origin", "http://127.0.0.1.evil.example")], 403, "origin_denied", "its origin as a prefix"),
    ([("Origin", "HTTP://127.0.0.1")], 403, "origin_denied", "another spelling"),
    ([], 403, "origin_denied", "no page"),
    ([*PAGE, *PAGE], 400, "bad_request", "two Origins"),
]


@pytest.mark.parametrize(("fields", "status", "error", "reason"), WRONG_PAGES, ids=[row[3] for row in WRONG_PAGES])
async def test_another_page_cannot_use_a_ticket_nor_spend_it(
    start: StartStage, fields: Fields, status: int, error: str, reason: str
) -> None:
    on = await start()
    ticket = await on.ticket(await on.limited.page())
    refused(await on.refused(fields, with_ticket(ticket)), status, error)
    assert not on.upstream.peers, reason
    async with opened(on.proxy, PAGE, with_ticket(ticket)):
        await on.fal.next()


async def test_a_ticket_asked_for_without_a_page_is_none_for_a_page(start: StartStage) -> None:
    on = await start()
    ticket = await on.ticket(on.ada)
    refused(await on.refused(PAGE, with_ticket(ticket)), 403, "origin_denied")
    async with opened(on.proxy, [], with_ticket(ticket)):
        await on.fal.next()


OTHER_APPS = ["/fal.run/fal-ai/flux/realtime", "/fal.run/fal-ai/fast-lcm-2/realtime", "/fal.run/workflows/fast-lcm/x"]


@pytest.mark.parametrize("path", OTHER_APPS)
async def test_a_ticket_is_for_its_app(start: StartStage, path: str) -> None:
    on = await start()
    ticket = await on.ticket(on.ada)
    refused(await on.refused([], with_ticket(ticket, path)), 403, "endpoint_denied")
    async with opened(on.proxy, [], with_ticket(ticket)):
        await on.fal.next()


def made(secret: str = SIGNING_SECRET, ends_in: int = 120) -> str:
    caller = Caller("key::ada", "key", "default", ambient=False, proves=frozenset(["key::ada"]), owners=("key::ada",))
    return Tickets([Secret(secret)], ends_in).issue(caller, "fast-lcm", None)


async def test_what_we_did_not_sign_for_this_opens_nothing(start: StartStage) -> None:
    on = await start()
    page = await on.limited.page()
    cookie = dict(page)["Cookie"].partition("=")[2]
    good = await on.ticket(on.ada)
    for wrong in [
        "",
        "x",
        "eyJhbGciOiJIUzI1NiJ9.e30.x",
        good[:-1],
        good + "x",
        good.swapcase(),
        "x" * 6000,
        cookie,
        made("another secret that is long enough too"),
        made(ends_in=0),
        "%00",
    ]:
        refused(await on.refused([], with_ticket(wrong)), 401, "unidentified")
        refused(await on.refused(on.ada, with_ticket(wrong)), 401, "unidentified")
    refused(await on.refused([], with_ticket(f"{good}&fal_jwt_token={good}")), 400, "bad_request")
    assert not on.upstream.peers
    async with opened(on.proxy, [], with_ticket(made())):
        await on.fal.next()


async def test_a_ticket_is_nothing_but_a_ticket(start: StartStage) -> None:
    on = await start()
    ticket = await on.ticket(on.ada)
    for caller in ([("Authorization", f"Bearer {ticket}")], [("Cookie", f"fal_proxy_anon={ticket}")]):
        refused(
            await on.refused(caller), *((401, "unidentified") if "Bearer" in str(caller) else (403, "origin_denied"))
        )
    refused(await on.limited.ask(("GET", f"/me?fal_jwt_token={ticket}"), on.ada), 405, "method_not_allowed")
    refused(await on.limited.ask(("POST", with_ticket(ticket)), on.ada), 400, "invalid_target")


async def test_a_ticket_without_a_signing_secret_is_refused(start: StartStage) -> None:
    on = await start()
    object.__setattr__(on.proxy.app._gateway, "tickets", None)
    refused(await on.refused([], with_ticket("x")), 403, "mode_off")


async def test_of_two_at_once_exactly_one_is_opened_and_the_other_pays_nothing(start: StartStage) -> None:
    both = asyncio.Barrier(2)

    async def script(peer: Peer) -> None:
        head = await peer.read_head()
        await both.wait()
        await peer.send(switching(head))
        await peer.wait_gone()

    plan = wide(realtime_sessions=SESSIONS, budget="10.00/day")
    on = await start(plan, script, realtime=Realtime(usd_per_second=0.01))
    ticket = await on.ticket(on.ada)
    async with raw_client(on.proxy.port) as one, raw_client(on.proxy.port) as two:
        for client in (one, two):
            await client.send(handshake(with_ticket(ticket), []))
        async with asyncio.timeout(10):
            heads = [await client.read_head() for client in (one, two)]
            assert sorted(status for status, _ in heads) == [101, 401]
            await on.left(1)
            assert await on.limited.money(on.ada) == (0, 600_000), "the reservation of the one that runs"


async def test_a_refusal_leaves_the_ticket_as_it_was(start: StartStage) -> None:
    said = [
        b"HTTP/1.1 429 X\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 X\r\ncontent-length: 0\r\n\r\n",
        b"garbage\r\n\r\n",
    ]

    async def script(peer: Peer) -> None:
        head = await peer.read_head()
        await peer.send(said.pop(0) if said else switching(head))
        await peer.wait_gone()

    on = await start(wide(realtime_sessions=1, submit="5/minute"), script)
    ticket = await on.ticket(on.ada)
    for status in (429, 500, 500):
        assert (await on.refused([], with_ticket(ticket))).status == status
    async with opened(on.proxy, on.ada) as caller:
        refused(await on.refused([], with_ticket(ticket)), 429, "concurrency_limited")
        await caller.close(1000)
        await caller.end()
    await on.left()
    async with opened(on.proxy, on.ada):
        pass
    refused(await on.refused([], with_ticket(ticket)), 429, "rate_limited")
    on.limited.clock.advance(61)
    await on.left()
    async with opened(on.proxy, [], with_ticket(ticket)):
        refused(await on.refused([], with_ticket(ticket)), 401, "unidentified")


async def test_a_ticket_survives_a_fal_that_cannot_be_reached(start: StartStage) -> None:
    on = await start()
    ticket = await on.ticket(on.ada)
    port = on.upstream.port
    await on.upstream.close()
    refused(await on.refused([], with_ticket(ticket)), 502, "upstream_unreachable")
    refused(await on.refused([], with_ticket(ticket)), 502, "upstream_unreachable")
    assert port


async def test_an_open_socket_outlives_its_ticket(start: StartStage) -> None:
    on = await start(realtime=Realtime(token_seconds=1))
    async with opened(on.proxy, [], with_ticket(await on.ticket(on.ada))) as caller:
        end = await on.fal.next()
        on.limited.clock.advance(100)
        await end.send(TEXT, b"still here")
        assert await caller.frame() == Frame(TEXT, b"still here")


BODIES = [
    (b"", "nothing"),
    (b"[]", "no object"),
    (b'{"allowed_apps":[]}', "no app"),
    (b'{"allowed_apps":["a","b"]}', "two apps"),
    (b'{"allowed_apps":["*"]}', "a glob"),
    (b'{"allowed_apps":["a/../b"]}', "a dot segment"),
    (b'{"allowed_apps":["fast-lcm"],"allowed_paths":["/"]}', "an unknown field"),
    (b'{"allowed_apps":["fast-lcm"],"token_expiration":"9"}', "seconds that are text"),
    (b'{"allowed_apps":["fast-lcm"],"token_expiration":0}', "no seconds"),
    (b'{"allowed_apps":["fast-lcm"],"token_expiration":true}', "seconds that are a truth"),
]


@pytest.mark.parametrize(("body", "reason"), BODIES, ids=[row[1] for row in BODIES])
async def test_what_is_no_token_request_is_refused(start: StartStage, body: bytes, reason: str) -> None:
    on = await start()
    refused(await on.limited.ask(TOKENS, on.ada, body), 422, "input_denied")
    assert reason


async def test_a_token_request_is_judged_as_every_request(start: StartStage) -> None:
    on = await start(wide(read="2/minute"))
    body = b'{"allowed_apps":["fast-lcm"]}'
    refused(await on.limited.ask(TOKENS, [("Origin", "https://evil.example")], body), 403, "origin_denied")
    refused(await on.limited.ask(TOKENS, [("Authorization", "Bearer fpk_x")], body), 401, "unidentified")
    for _ in range(2):
        await on.ticket(on.ada)
    refused(await on.limited.ask(TOKENS, on.ada, body), 429, "rate_limited")
    assert not on.upstream.peers


async def test_a_ticket_names_its_caller_in_the_access_line(start: StartStage, lines: Lines) -> None:
    on = await start()
    page = await on.limited.page()
    async with opened(on.proxy, PAGE, with_ticket(await on.ticket(page))) as caller:
        await caller.close(1000)
        await caller.end()
    found = await lines.exactly(3)
    assert found[2]["kind"] == "realtime"
    assert found[2]["caller"] == found[1]["caller"]
    assert found[2]["source"] == "anonymous"
    answer = await answered(on.proxy, PAGE, with_ticket("forged"))
    assert answer.status == 401
    assert (await lines.exactly(4))[3]["caller"] is None
