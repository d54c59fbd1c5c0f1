"""One line per exchange: exactly one, with what became of it, and never with what was said in it."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from fal_proxy import judging
from fal_proxy.settings import Plan, Settings
from fal_proxy.telemetry.access import AccessLine
from support.lines import Lines, samples
from support.peers import Peer, Serve
from support.proxied import FAL_KEY_ID, FAL_KEY_SECRET, MOUNT, StartProxy, with_server
from support.raw import raw_client, request
from support.scripts import answering, ok, read_request

RUN = MOUNT + "/fal.run/fal-ai/flux/dev"
STREAM = RUN + "/stream"
SUBMIT = MOUNT + "/queue.fal.run/fal-ai/flux/dev"
STATUS = MOUNT + "/queue.fal.run/fal-ai/flux/requests/abc/status"
EVENT = b"data: {}\n\n"
EVENTS = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\na\r\n" + EVENT + b"\r\n"
)
JSON = {"Content-Type": "application/json"}


async def test_run_leaves_one_line_with_what_it_moved_took_and_cost(
    serve: Serve, start: StartProxy, lines: Lines
) -> None:
    answer = ok(b'{"images": []}', b"x-fal-billable-units: 1.50")
    proxy = await start(serve(answering(answer)))
    async with raw_client(proxy.port) as client:
        for _ in range(2):
            await client.send(request("POST", RUN, proxy.bearer | JSON, b'{"prompt": "x"}'))
            assert (await client.answer()).status == 200
    first, second = await lines.exactly(2)
    assert list(first) == list(AccessLine.__struct_fields__)
    expected = {
        "source": "key",
        "plan": "default",
        "kind": "run",
        "endpoint": "fal-ai/flux/dev",
        "decision": "admitted",
        "reason": None,
        "status": 200,
        "bytes_up": 15,
        "bytes_down": 14,
        "units": "1.50",
        "cost_microusd": None,
        "ending": "complete",
    }
    assert {name: first[name] for name in expected} == expected
    assert first["caller"] == second["caller"] != ""
    assert first["id"] != second["id"]
    assert 0 <= first["dial_ms"] <= first["first_byte_ms"] <= first["total_ms"]
    assert second["dial_ms"] is None, "the connection was reused"


REFUSED = [
    ("GET", RUN, {}, None, ("none", None, "unidentified", 401), "a credential that nobody knows"),
    ("POST", MOUNT + "/evil.example/x", None, b"{}", ("none", None, "invalid_target", 400), "no host of fal's"),
    ("DELETE", RUN, None, None, ("none", None, "method_not_allowed", 405), "a method that the plan does not list"),
    ("POST", RUN, None, b"x" * 65, ("run", "fal-ai/flux/dev", "body_too_large", 413), "announced beyond the cap"),
    ("POST", MOUNT + "/fal.run/a/b", None, b"{}", ("run", "a/b", "endpoint_denied", 403), "not in the plan"),
    (
        "OPTIONS",
        RUN,
        {"Access-Control-Request-Method": "POST"},
        None,
        ("preflight", None, "origin_denied", 403),
        "no origin",
    ),
    ("GET", RUN, {"Host": "evil.example"}, None, ("none", None, "misdirected_host", 421), "a name that is not ours"),
]


@pytest.mark.parametrize(("method", "path", "headers", "body", "said", "why"), REFUSED)
async def test_refusal_leaves_one_line_that_names_it(
    method: str,
    path: str,
    headers: dict[str, str] | None,
    body: bytes | None,
    said: tuple[str, str | None, str, int],
    why: str,
    serve: Serve,
    start: StartProxy,
    settings: Settings,
    lines: Lines,
) -> None:
    narrow = msgspec.structs.replace(settings, plans={"default": Plan(endpoints=("fal-ai/flux/**",))})
    proxy = await start(serve(answering(ok())), with_server(narrow, max_body_bytes=64))
    sent = proxy.bearer if headers is None else headers or {"Authorization": "Bearer fpk_unknown"}
    async with raw_client(proxy.port) as client:
        await client.send(request(method, path, sent, body))
        answer = await client.answer()
    [line] = await lines.exactly(1)
    assert (line["kind"], line["endpoint"], line["decision"], line["status"]) == said, why
    assert answer.status == line["status"]
    assert msgspec.json.decode(answer.body)["detail"] == line["reason"]
    assert (line["ending"], line["bytes_up"], line["bytes_down"]) == ("refused", 0, len(answer.body))
    assert line["dial_ms"] is line["first_byte_ms"] is line["units"] is None


async def test_accepted_preflight_leaves_a_line_of_its_own_kind(serve: Serve, start: StartProxy, lines: Lines) -> None:
    proxy = await start(serve(answering(ok())))
    asked = {"Origin": "http://127.0.0.1", "Access-Control-Request-Method": "POST"}
    async with raw_client(proxy.port) as client:
        await client.send(request("OPTIONS", MOUNT, asked))
        await client.answer()
    [line] = await lines.exactly(1)
    assert (line["kind"], line["decision"], line["status"], line["ending"]) == (
        "preflight",
        "admitted",
        204,
        "complete",
    )
    assert line["caller"] is None


@pytest.mark.parametrize(
    ("path", "first", "status", "down"),
    [(RUN, b"", None, 0), (STREAM, EVENTS, 200, len(EVENT))],
    ids=["before the head", "in a stream"],
)
async def test_departure_leaves_one_line_and_nothing_in_flight(
    path: str, first: bytes, status: int | None, down: int, serve: Serve, start: StartProxy, lines: Lines
) -> None:
    arrived = asyncio.Event()

    async def script(peer: Peer) -> None:
        await read_request(peer)
        await peer.send(first)
        arrived.set()
        await peer.wait_gone()

    proxy = await start(serve(script))
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", path, proxy.bearer, b"{}"))
        await arrived.wait()
        assert sum(proxy.app.metrics.in_flight().values()) == 1
        if first:
            await client.read_head()
            await client.read_chunk()
        client.reset()
        [line] = await lines.exactly(1)
    assert (line["ending"], line["decision"], line["status"]) == ("client_gone", "admitted", status)
    assert (line["bytes_up"], line["bytes_down"]) == (2, down)
    gauges = [
        value
        for name, _, value in samples(proxy.app)
        if name in ("fal_proxy_in_flight", "fal_proxy_upstream_open_calls")
    ]
    assert not any(gauges)


@pytest.mark.parametrize(
    ("method", "path", "said", "said_of"),
    [
        ("POST", STREAM, ("cut", "admitted", 200), "a stream that breaks off"),
        ("POST", SUBMIT, ("refused", "upstream_outcome_unknown", 500), "a submit whose answer breaks off"),
    ],
)
async def test_answer_that_breaks_off_says_so_and_why(
    method: str,
    path: str,
    said: tuple[str, str, int],
    said_of: str,
    serve: Serve,
    start: StartProxy,
    lines: Lines,
) -> None:
    async def script(peer: Peer) -> None:
        await read_request(peer)
        await peer.send(EVENTS)
        peer.close()

    proxy = await start(serve(script))
    async with raw_client(proxy.port) as client:
        await client.send(request(method, path, proxy.bearer, b"{}"))
        answer = await client.answer()
    [line] = await lines.exactly(1)
    assert (line["ending"], line["decision"], line["status"]) == said, said_of
    assert "upstream closed the connection" in line["reason"]
    assert line["bytes_down"] == len(answer.body)
    assert line["first_byte_ms"] is not None


async def test_unreachable_upstream_says_how_long_dialling_took(serve: Serve, start: StartProxy, lines: Lines) -> None:
    upstream = serve(answering(ok()))
    await upstream.close()
    proxy = await start(upstream)
    async with raw_client(proxy.port) as client:
        await client.send(request("GET", STATUS, proxy.bearer))
        assert (await client.answer()).status == 502
    [line] = await lines.exactly(1)
    assert (line["decision"], line["ending"], line["bytes_up"]) == ("upstream_unreachable", "refused", 0)
    assert line["dial_ms"] is not None


async def test_fault_of_ours_leaves_a_line_without_its_text(
    serve: Serve, start: StartProxy, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret of the machine room")

    monkeypatch.setattr(judging, "resolve", broken)
    proxy = await start(serve(answering(ok())))
    async with raw_client(proxy.port) as client:
        await client.send(request("GET", STATUS, proxy.bearer))
        assert (await client.answer()).status == 500
    [line] = await lines.exactly(1)
    assert (line["decision"], line["ending"], line["status"]) == ("internal_error", "fault", 500)
    assert "machine room" not in lines.text[0]


@pytest.mark.parametrize("written", [b"1e9", b"-1", b"1.123456789", b"1\r\nx-fal-billable-units: 2", b"\xb2"])
async def test_units_that_are_no_plain_number_are_no_units(
    written: bytes, serve: Serve, start: StartProxy, lines: Lines
) -> None:
    proxy = await start(serve(answering(ok(b"{}", b"x-fal-billable-units: " + written))))
    async with raw_client(proxy.port) as client:
        await client.send(request("POST", RUN, proxy.bearer, b"{}"))
        await client.answer()
    [line] = await lines.exactly(1)
    assert line["units"] is None


async def test_no_line_and_no_metric_holds_a_key_a_credential_a_query_a_field_or_a_prompt(
    serve: Serve, start: StartProxy, lines: Lines
) -> None:
    canaries = ["canary-query", "canary-prompt", "canary-cookie", "canary-agent", "canary-answer", "fpk_canary"]
    proxy = await start(serve(answering(ok(b'{"x": "canary-answer"}'))))
    fields = {"Cookie": "a=canary-cookie", "User-Agent": "canary-agent", **JSON}
    asked = [
        request("POST", RUN + "?q=canary-query", proxy.bearer | fields, b'{"prompt": "canary-prompt"}'),
        request("POST", SUBMIT + "?canary-query=1", proxy.bearer | fields, b'{"prompt": "canary-prompt"}'),
        request("POST", RUN, {"Authorization": "Bearer fpk_canary", **fields}, b'{"prompt": "canary-prompt"}'),
        request("GET", MOUNT + "?canary-query", proxy.bearer | fields | {"x-fal-target-url": "canary-query"}),
        request("GET", MOUNT + "/canary-query.example/canary-query", proxy.bearer | fields),
    ]
    for one in asked:
        async with raw_client(proxy.port) as client:
            await client.send(one)
            await client.answer()
    await lines.exactly(len(asked))
    written = "\n".join(lines.text) + proxy.app.metrics.exposition().decode()
    leaked = [canary for canary in [*canaries, FAL_KEY_ID, FAL_KEY_SECRET, proxy.user_key] if canary in written]
    assert leaked == []
    assert "key::ada" not in written, "people see the hash of a caller's id"


async def test_what_lies_beside_the_mount_leaves_no_line(serve: Serve, start: StartProxy, lines: Lines) -> None:
    proxy = await start(serve(answering(ok())))
    async with raw_client(proxy.port) as client:
        await client.send(request("GET", "/healthz"))
        assert (await client.answer()).status == 200
    await lines.exactly(0)
