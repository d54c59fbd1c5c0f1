"""The handshake: what is refused before the 101, what goes up with it, and what of fal's own refusal comes down."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging

import pytest

from fal_proxy._version import __version__
from fal_proxy.admin import Admin
from fal_proxy.server import Listener, bind, serving
from fal_proxy.settings import InputRule, Realtime, Server
from support.limited import refused, wide
from support.lines import Lines
from support.peers import Peer
from support.proxied import FAL_KEY, FAL_KEY_SECRET, MOUNT, Proxy
from support.raw import raw_client, request
from support.sockets import StartStage, stage
from support.websocket import APP, NONCE, SHAKE, TEXT, FalEnd, Fields, Frame, answered, handshake, opened, switching

start = stage
PATIENCE = 10.0


def lines_of(end: FalEnd) -> list[tuple[bytes, bytes]]:
    """Return the fields that reached fal, names in lower case."""
    pairs = [line.partition(b":") for line in end.head.split(b"\r\n")[1:] if line]
    return [(name.lower(), value.strip()) for name, _, value in pairs]


async def test_fal_is_asked_with_our_key_and_nothing_of_the_callers(start: StartStage) -> None:
    on = await start()
    nosy: Fields = [
        ("Cookie", "fal_proxy_anon=x; session=secret"),
        ("Origin", "http://127.0.0.1"),
        ("X-Forwarded-For", "10.0.0.1"),
        ("X-Forwarded-User", "ada"),
        ("Forwarded", "for=10.0.0.1"),
        ("Sec-WebSocket-Protocol", "chat"),
        ("Sec-WebSocket-Extensions", "permessage-deflate"),
        ("X-Fal-Runner-Hint", "x"),
        ("Accept-Language", "de"),
        ("User-Agent", "browser/1 \xe9"),
        ("Traceparent", "00-1-1-01"),
    ]
    async with opened(on.proxy, [*on.ada, *nosy], APP + "?max_buffering=5"):
        end = await on.fal.next()
    assert end.head.startswith(b"GET /fal.run/fal-ai/fast-lcm/realtime?max_buffering=5 HTTP/1.1\r\n")
    found = dict(lines_of(end))
    assert len(found) == len(lines_of(end)), "no field twice"
    nonce = found.pop(b"sec-websocket-key")
    assert nonce != NONCE.encode()
    assert len(base64.b64decode(nonce)) == 16
    assert found == {
        b"host": b"127.0.0.1:%d" % on.upstream.port,
        b"upgrade": b"websocket",
        b"connection": b"Upgrade",
        b"sec-websocket-version": b"13",
        b"user-agent": b"browser/1 \xe9",
        b"traceparent": b"00-1-1-01",
        b"x-fal-client-proxy": f"fal-proxy/{__version__}".encode(),
        b"authorization": b"Key " + FAL_KEY.reveal().encode(),
    }


async def test_a_field_that_the_caller_calls_hop_by_hop_does_not_go_up(start: StartStage) -> None:
    on = await start()
    shake = [("Connection", "Upgrade, User-Agent, Authorization"), *SHAKE[1:], ("User-Agent", "x"), *on.ada]
    async with raw_client(on.proxy.port) as client:
        await client.send(request("GET", MOUNT + APP, shake))
        assert (await client.read_head())[0] == 101
        found = dict(lines_of(await on.fal.next()))
    assert b"user-agent" not in found
    assert found[b"authorization"] == b"Key " + FAL_KEY.reveal().encode()


async def test_the_101_carries_fals_own_fields_and_not_its_secrets(start: StartStage) -> None:
    async def script(peer: Peer) -> None:
        fields = b"X-Fal-Request-Id: r1\r\nSet-Cookie: a=b\r\nX-Fal-Cdn-Token: t\r\nServer: fal\r\nX-Fal-Note: \xe9\r\n"
        await peer.send(switching(await peer.read_head(), fields))
        await peer.wait_gone()

    on = await start(script=script)
    async with opened(on.proxy, on.ada) as caller:
        names = {name for name, _ in caller.headers}
        assert (b"x-fal-request-id", b"r1") in caller.headers
        assert (b"x-fal-note", b"\xe9") in caller.headers
    assert names == {
        b"upgrade",
        b"connection",
        b"sec-websocket-accept",
        b"x-fal-request-id",
        b"x-fal-note",
    }


def without(name: str, *more: tuple[str, str]) -> Fields:
    return [*(pair for pair in SHAKE if pair[0] != name), *more]


UNREADABLE: list[tuple[bytes, str]] = [
    (request("POST", MOUNT + APP, SHAKE), "a POST"),
    (request("GET", MOUNT + APP, [*SHAKE, ("Content-Length", "5")]) + b"hello", "a body"),
    (request("GET", MOUNT + APP, [*SHAKE, ("Transfer-Encoding", "chunked")]) + b"0\r\n\r\n", "a chunked body"),
    (request("GET", MOUNT + APP, SHAKE).replace(b"HTTP/1.1", b"HTTP/1.0"), "HTTP/1.0"),
    (request("GET", MOUNT + APP, without("Upgrade", ("Upgrade", "h2c"))), "h2c"),
    (request("GET", MOUNT + APP, without("Upgrade", ("Upgrade", "websocket, h2c"))), "two protocols"),
    (request("GET", MOUNT + APP, [*SHAKE, ("Upgrade", "websocket")]), "two Upgrade lines"),
    (request("GET", MOUNT + APP, without("Sec-WebSocket-Version", ("Sec-WebSocket-Version", "12"))), "version 12"),
    (request("GET", MOUNT + APP, without("Sec-WebSocket-Version")), "no version"),
    (request("GET", MOUNT + APP, without("Sec-WebSocket-Key")), "no key"),
    (request("GET", MOUNT + APP, without("Sec-WebSocket-Key", ("Sec-WebSocket-Key", "short"))), "a short key"),
    (request("GET", MOUNT + APP, [*SHAKE, ("Sec-WebSocket-Key", NONCE)]), "two keys"),
]


@pytest.mark.parametrize(("raw", "reason"), UNREADABLE, ids=[row[1] for row in UNREADABLE])
async def test_what_is_no_handshake_is_refused_in_our_form_and_ends(start: StartStage, raw: bytes, reason: str) -> None:
    on = await start()
    async with raw_client(on.proxy.port) as client:
        await client.send(raw)
        async with asyncio.timeout(PATIENCE):
            refused(await client.answer(), 400, "bad_request")
            assert await client.reader.read() == b"", reason
    assert not on.upstream.peers


async def test_an_upgrade_without_its_connection_field_is_an_ordinary_get(start: StartStage) -> None:
    on = await start()
    async with raw_client(on.proxy.port) as client:
        await client.send(request("GET", MOUNT + APP, [*without("Connection"), *on.ada]))
        refused(await client.answer(), 405, "method_not_allowed")


HEADS: list[tuple[str, Fields, int, str | None, str]] = [
    (APP, [("Cookie", "x" * 20_000)], 101, None, "one long field, within the head's bound"),
    (APP + "?x=" + "x" * 7_000, [], 101, None, "a long query"),
    (APP + "?x=" + "x" * 9_000, [], 400, "invalid_target", "a target that is too long"),
    (APP, [("Cookie", "x" * 40_000)], 431, "header_too_large", "more than 32 KiB"),
    (APP, [(f"X-{n}", "1") for n in range(100)], 431, "header_too_large", "more than 100 fields"),
    (APP, [("Host", "evil.example")], 421, "misdirected_host", "another Host"),
    (APP, [("Host", "127.0.0.1"), ("Host", "127.0.0.1")], 400, "bad_request", "two Hosts"),
    ("/fal.run/fal-ai", [], 400, "invalid_target", "no app"),
    ("/queue.fal.run/fal-ai/fast-lcm", [], 400, "invalid_target", "a host without sockets"),
    ("/ws.fal.run/fal-ai/fast-lcm", [], 400, "invalid_target", "HTTP over WebSocket"),
    ("/rest.fal.ai/tokens/", [], 400, "invalid_target", "no socket"),
    ("/evil.example/a/b", [], 400, "invalid_target", "another host"),
    ("/fal.run/a/../b/realtime", [], 400, "invalid_target", "a dot segment"),
    ("/fal.run/a/b\xe9/realtime", [], 400, "bad_request", "bytes beyond ASCII"),
    ("/fal.run/a/b/realtime?", [], 400, "invalid_target", "an empty query"),
    (APP + "?fal%5Fjwt_token=x", [], 400, "invalid_target", "a token under another spelling"),
    (APP + "?fal_key=x", [], 400, "invalid_target", "a key in the query"),
    (APP, [("X-Fal-Target-Url", "https://fal.run/fal-ai/fast-lcm/realtime")], 400, "invalid_target", "two targets"),
    ("", [("X-Fal-Target-Url", "https://fal.run/fal-ai/fast-lcm/realtime")], 404, "not_found", "the header form"),
    ("/me", [], 400, "invalid_target", "another route"),
]


@pytest.mark.parametrize(("path", "more", "status", "error", "reason"), HEADS, ids=[row[4] for row in HEADS])
async def test_a_handshakes_head_is_judged_as_every_head(
    start: StartStage, path: str, more: Fields, status: int, error: str | None, reason: str
) -> None:
    on = await start()
    if error is None:
        async with opened(on.proxy, [*on.ada, *more], path):
            await on.fal.next()
        return
    async with raw_client(on.proxy.port) as client:
        await client.send(handshake(path, [*on.ada, *more]))
        async with asyncio.timeout(PATIENCE):
            refused(await client.answer(), status, error)
    assert not on.upstream.peers, reason


async def test_outside_the_mount_there_is_no_socket(start: StartStage) -> None:
    on = await start()
    async with raw_client(on.proxy.port) as client:
        await client.send(handshake("/healthz", on.ada, mount=""))
        refused(await client.answer(), 404, "not_found")


async def test_a_listener_without_websockets_refuses_an_upgrade(start: StartStage) -> None:
    on = await start()
    admin = Admin("127.0.0.1", None, on.proxy.app.metrics)
    async with serving(Listener(admin, bind("127.0.0.1", 0))) as origin:
        other = Proxy(origin, "", on.proxy.app)
        refused(await answered(other, [], "/metrics"), 400, "bad_request")


CALLERS: list[tuple[Fields, int, str, str]] = [
    ([("Authorization", "Bearer fpk_nobody")], 401, "unidentified", "a key that nobody has"),
    ([("Origin", "https://evil.example")], 403, "origin_denied", "a foreign page"),
    ([("Origin", "null")], 403, "origin_denied", "a page without an origin"),
    ([("Origin", "http://127.0.0.1.evil.example")], 403, "origin_denied", "ours as a prefix"),
    ([("Origin", "http://127.0.0.1:1")], 403, "origin_denied", "our name on another port"),
    ([("Origin", "http://127.0.0.1"), ("Origin", "http://127.0.0.1")], 400, "bad_request", "two Origins"),
    ([("Sec-Fetch-Site", "cross-site")], 403, "origin_denied", "a browser without an Origin"),
]


@pytest.mark.parametrize(("fields", "status", "error", "reason"), CALLERS, ids=[row[3] for row in CALLERS])
async def test_who_may_not_call_is_refused_before_the_101(
    start: StartStage, fields: Fields, status: int, error: str, reason: str
) -> None:
    on = await start()
    refused(await on.refused(fields), status, error)
    assert not on.upstream.peers, reason


@pytest.mark.parametrize("fields", [row[0] for row in CALLERS if row[2] == "origin_denied"] + [[]])
async def test_a_cookie_opens_nothing_for_another_page_nor_for_none(start: StartStage, fields: Fields) -> None:
    on = await start()
    cookie = dict(await on.limited.page())["Cookie"]
    refused(await on.refused([*fields, ("Cookie", cookie)]), 403, "origin_denied")


async def test_our_own_page_opens_a_socket_with_its_cookie(start: StartStage) -> None:
    on = await start()
    async with opened(on.proxy, await on.limited.page()):
        await on.fal.next()


PLANS: list[tuple[dict[str, object], dict[str, object], int, str, str]] = [
    ({"endpoints": ("other/*",)}, {}, 403, "endpoint_denied", "the plan does not open it"),
    ({"realtime_sessions": 0}, {}, 429, "concurrency_limited", "a plan without sessions"),
    ({}, {"realtime": Realtime(mode="off")}, 403, "mode_off", "realtime is off"),
    ({}, {"inputs": (InputRule(endpoint="fal-ai/fast-lcm", drop=("x",)),)}, 403, "endpoint_denied", "judged inputs"),
    ({"budget": "1.00/day"}, {}, 403, "endpoint_denied", "a budget and no price"),
    ({"total_budget": "1.00/day"}, {}, 403, "endpoint_denied", "a plan's budget and no price"),
    ({}, {"total_budget": "1.00/day"}, 403, "endpoint_denied", "everybody's budget and no price"),
]


@pytest.mark.parametrize(("plan", "changes", "status", "error", "reason"), PLANS, ids=[row[4] for row in PLANS])
async def test_what_the_settings_do_not_allow_is_refused_before_the_101(
    start: StartStage, plan: dict[str, object], changes: dict[str, object], status: int, error: str, reason: str
) -> None:
    on = await start(wide(**{"realtime_sessions": 5, **plan}), **changes)
    refused(await on.refused(on.ada), status, error)
    assert not on.upstream.peers, reason


def saying(answer: bytes, *, end: bool = True) -> object:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(answer)
        if end:
            peer.half_close()
        await peer.wait_gone()

    return script


DETAIL = b'{"detail":"no"}'
LENGTH = b"content-length: 15\r\n"
JSON = b"content-type: application/json\r\n"
REFUSALS: list[tuple[bytes, int, bytes, str]] = [
    (b"HTTP/1.1 401 U\r\n" + JSON + LENGTH + b"\r\n" + DETAIL, 401, DETAIL, "no key"),
    (b"HTTP/1.1 403 F\r\n" + JSON + LENGTH + b"\r\n" + DETAIL, 403, DETAIL, "no access"),
    (b"HTTP/1.1 404 N\r\n" + JSON + LENGTH + b"\r\n" + DETAIL, 404, DETAIL, "no app"),
    (b"HTTP/1.1 422 X\r\n" + JSON + LENGTH + b"\r\n" + DETAIL, 422, DETAIL, "a bad query"),
    (b"HTTP/1.1 429 X\r\nretry-after: 3\r\n" + JSON + LENGTH + b"\r\n" + DETAIL, 429, DETAIL, "too many"),
    (b"HTTP/1.1 503 X\r\n" + JSON + LENGTH + b"\r\n" + DETAIL, 503, DETAIL, "an app that is away"),
    (b"HTTP/1.1 403 F\r\ncontent-length: 0\r\n\r\n", 403, b"", "an empty body"),
    (b"HTTP/1.1 404 F\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", 404, b"abcde", "chunked"),
    (b"HTTP/1.1 404 F\r\n\r\nto the end", 404, b"to the end", "a body up to the connection's end"),
    (b"HTTP/1.1 404 \r\n" + LENGTH + b"\r\n" + DETAIL, 404, DETAIL, "no reason phrase"),
]


@pytest.mark.parametrize(("answer", "status", "body", "reason"), REFUSALS, ids=[row[3] for row in REFUSALS])
async def test_fals_refusal_comes_down_as_it_was_and_costs_nothing(
    start: StartStage, lines: Lines, answer: bytes, status: int, body: bytes, reason: str
) -> None:
    plan = wide(realtime_sessions=5, budget="10.00/day")
    on = await start(plan, saying(answer), realtime=Realtime(usd_per_second=0.01))
    found = await on.refused(on.ada)
    assert (found.status, found.body, found.complete) == (status, body, True), reason
    assert found.one(b"x-fal-error-type") is None
    assert found.one(b"cache-control") == b"no-store"
    if JSON in answer:
        assert found.one(b"content-type") == b"application/json"
    if b"retry-after" in answer:
        assert found.one(b"retry-after") == b"3"
    assert await on.limited.money(on.ada) == (0, 0)
    assert await on.sessions() == 0
    line = (await lines.exactly(3))[0]
    assert (line["status"], line["kind"], line["decision"]) == (status, "realtime", "admitted")


NO_ANSWERS: list[tuple[bytes, str]] = [
    (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "a 200"),
    (b"HTTP/1.1 302 F\r\nlocation: https://evil.example\r\ncontent-length: 0\r\n\r\n", "a redirect"),
    (b"HTTP/1.1 204 N\r\n\r\n", "a 204"),
    (b"HTTP/1.1 403 F\r\ncontent-length: 99999999\r\n\r\n" + b"x" * 2_000_000, "a huge body"),
    (b"HTTP/1.1 403 F\r\ntransfer-encoding: chunked\r\n\r\nffffffff\r\n" + b"x" * 2_000_000, "a huge chunk"),
    (b"HTTP/1.1 403 F\r\ncontent-length: 10\r\n\r\nx", "a body that is cut"),
    (
        b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: bad\r\n\r\n",
        "a bad accept",
    ),
    (b"HTTP/1.1 101 S\r\n\r\n", "a bare 101"),
    (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP"),
    (b"\x16\x03\x01" * 5000, "bytes"),
    (b"", "nothing"),
    (b"HTTP/1.1 101 S\r\n" + b"X-A: " + b"a" * 70_000 + b"\r\n\r\n", "an endless field"),
    (b"HTTP/1.1 101 S\r\n" + b"X-A: 1\r\n" * 1000 + b"\r\n", "fields without end"),
    (
        b"HTTP/1.1 403 F\r\nx-fal-note: " + FAL_KEY_SECRET.encode() + b"\r\ncontent-length: 0\r\n\r\n",
        "our key in a field",
    ),
    (b"HTTP/1.1 403 F\r\ncontent-length: 32\r\n\r\n" + FAL_KEY_SECRET.encode(), "our key in the body"),
]


@pytest.mark.parametrize(("answer", "reason"), NO_ANSWERS, ids=[row[1] for row in NO_ANSWERS])
async def test_what_is_no_answer_to_a_handshake_is_a_fault_of_fals_and_its_outcome_unknown(
    start: StartStage, answer: bytes, reason: str
) -> None:
    plan = wide(realtime_sessions=5, budget="10.00/day")
    on = await start(plan, saying(answer), realtime=Realtime(usd_per_second=0.01))
    found = await on.refused(on.ada)
    refused(found, 500, "upstream_outcome_unknown")
    assert await on.sessions() == 0
    spent, reserved = await on.limited.money(on.ada)
    # A whole 4xx is fal's word that nothing was opened, whatever keeps it from going down.
    assert (spent, reserved) == ((0, 0) if "our key" in reason else (600_000, 0)), reason


async def test_our_key_in_the_fields_of_a_101_opens_nothing(start: StartStage) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(switching(await peer.read_head(), b"x-fal-note: " + FAL_KEY_SECRET.encode() + b"\r\n"))
        await peer.wait_gone()

    on = await start(script=script)
    refused(await on.refused(on.ada), 500, "upstream_outcome_unknown")
    await on.upstream.left()


async def test_a_fal_that_cannot_be_reached_is_502_and_costs_nothing(start: StartStage) -> None:
    plan = wide(realtime_sessions=5, budget="10.00/day")
    on = await start(plan, realtime=Realtime(usd_per_second=0.01))
    await on.upstream.close()
    refused(await on.refused(on.ada), 502, "upstream_unreachable")
    assert await on.limited.money(on.ada) == (0, 0)
    assert await on.sessions() == 0


async def test_a_fal_that_does_not_answer_in_time_is_an_unknown_outcome(
    start: StartStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fal_proxy.upstream.websocket.HANDSHAKE_SECONDS", 0.2)
    on = await start(wide(realtime_sessions=5, budget="10.00/day"), silent, realtime=Realtime(usd_per_second=0.01))
    refused(await on.refused(on.ada), 500, "upstream_outcome_unknown")
    assert await on.limited.money(on.ada) == (600_000, 0)
    await on.upstream.left()


async def silent(peer: Peer) -> None:
    await peer.read_head()
    await peer.wait_gone()


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("behind", [b"", b"\x81\x80\0\0\0\0"], ids=["nothing", "a message"])
async def test_a_caller_who_leaves_while_fal_is_asked_leaves_nothing_behind(
    start: StartStage, lines: Lines, how: str, behind: bytes
) -> None:
    on = await start(script=silent)
    async with raw_client(on.proxy.port) as client:
        await client.send(handshake(APP, on.ada) + behind)
        peer = await on.upstream.peer()
        async with asyncio.timeout(PATIENCE):
            await peer.arrived(1)
        assert await on.sessions() == 1
        getattr(client, how)()
        await on.upstream.left()
    [_, line] = await lines.exactly(2)
    assert (line["ending"], line["kind"], line["status"]) == ("client_gone", "realtime", None)
    assert await on.sessions() == 0


async def test_a_socket_is_one_of_its_addresss_connections_until_it_ends(
    start: StartStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fal_proxy.downstream.peers.MAX_PER_PEER", 1)
    on = await start(server=Server(hosts=("127.0.0.1",)))
    async with opened(on.proxy, on.ada) as caller:
        await on.fal.next()
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await on.refused(on.ada)
        await caller.close(1000)
        await caller.end()
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                async with opened(on.proxy, on.ada):
                    return


async def test_no_log_line_holds_a_ticket_or_a_credential_at_any_level(
    start: StartStage, caplog: pytest.LogCaptureFixture, lines: Lines
) -> None:
    with caplog.at_level(logging.DEBUG):
        on = await start()
        ticket = await on.ticket([*on.ada])
        async with opened(on.proxy, [], APP + "?fal_jwt_token=" + ticket) as caller:
            end = await on.fal.next()
            await caller.send(TEXT, b"a secret prompt")
            assert await end.frame() == Frame(TEXT, b"a secret prompt")
            await end.send(TEXT, b"a secret picture")
            assert await caller.frame() == Frame(TEXT, b"a secret picture")
            await caller.close(1000)
            await caller.end()
        refused(await on.refused([], APP + "?fal_jwt_token=" + ticket), 401, "unidentified")
        await lines.exactly(3)
    said = caplog.text + "\n".join(lines.text)
    for secret in (ticket, on.proxy.user_key, "secret prompt", "secret picture", FAL_KEY_SECRET, "fal_jwt_token"):
        assert secret not in said.replace("fal_jwt_token is", ""), secret
