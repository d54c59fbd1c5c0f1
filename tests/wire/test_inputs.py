"""Input rules through the live server: what reaches upstream was judged, and what was denied reaches nothing."""

from __future__ import annotations

import gzip
import json

import msgspec
import pytest

from fal_proxy.settings import InputRule, Plan, Settings
from support.peers import Peer, Script, Serve
from support.proxied import MOUNT, Proxy, StartProxy, with_server
from support.raw import RawAnswer, raw_client, request
from support.scripts import answering, ok, read_request

RULE = InputRule(
    endpoint="fal-ai/flux/**",
    default={"num_images": 1},
    clamp={"num_images": (1, 2)},
    force={"enable_safety_checker": True},
    drop=("sync_mode",),
    reject=("loras",),
)
RUN = f"{MOUNT}/fal.run/fal-ai/flux/dev"
ASKED = b'{"prompt": "a pier", "num_images": 8, "num_images": 9, "sync_mode": true}'
SENT = b'{"prompt":"a pier","num_images":2,"enable_safety_checker":true}'
CHUNKED = ("Transfer-Encoding", "chunked")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings with a rule for flux and every method opened."""
    plan = Plan(endpoints=("**",), methods=("POST", "GET", "PUT", "DELETE", "PATCH"))
    return msgspec.structs.replace(settings, inputs=(RULE,), plans={"default": plan})


def _recording(received: list[tuple[bytes, bytes]]) -> Script:
    async def script(peer: Peer) -> None:
        while True:
            received.append(await read_request(peer))
            await peer.send(ok())

    return script


async def _ask(proxy: Proxy, data: bytes) -> RawAnswer:
    async with raw_client(proxy.port) as client:
        await client.send(data)
        return await client.answer()


def _chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


REACHED = [
    ("POST", "fal.run/fal-ai/flux/dev", "a run"),
    ("POST", "fal.run/fal-ai/flux/dev/", "a trailing slash"),
    ("POST", "fal.run/fal-ai/flux/dev/stream", "a stream is the same endpoint"),
    ("POST", "fal.run/fal-ai/flux/realtime", "so is the last segment of a socket"),
    ("POST", "queue.fal.run/fal-ai/flux/dev", "a submit"),
    ("POST", "queue.fal.run/fal-ai/flux/dev/stream", "a submit with a suffix"),
    ("POST", "queue.fal.run/fal-ai/flux", "the app itself"),
    ("POST", "fal.run/FAL-AI/flux/dev", "another case"),
]


@pytest.mark.parametrize("form", ["path", "header"])
@pytest.mark.parametrize(("method", "target", "reason"), REACHED, ids=[row[2] for row in REACHED])
async def test_what_reaches_upstream_is_the_judged_input_encoded_anew(
    method: str, target: str, reason: str, form: str, serve: Serve, start: StartProxy
) -> None:
    received: list[tuple[bytes, bytes]] = []
    proxy = await start(serve(_recording(received)))
    fields = {"Content-Type": "text/plain", **proxy.bearer}
    path = f"{MOUNT}/{target}"
    if form == "header":
        path, fields["x-fal-target-url"] = MOUNT, f"https://{target}"
    assert (await _ask(proxy, request(method, path, fields, ASKED))).status == 200, reason
    head, body = received[0]
    assert body == SENT
    assert head.startswith(f"POST /{target} HTTP/1.1\r\n".encode()), "the address is still the accepted bytes"
    lines = head.lower().split(b"\r\n")
    assert [line for line in lines if line.startswith(b"content-")] == [
        b"content-type: application/json",
        b"content-length: %d" % len(SENT),
    ]
    assert not [line for line in lines if line.startswith(b"transfer-encoding")]


@pytest.mark.parametrize(
    ("body", "sent"),
    [(None, b'{"num_images":1,"enable_safety_checker":true}'), (b"", b'{"num_images":1,"enable_safety_checker":true}')],
)
async def test_request_without_a_body_is_an_empty_input(
    body: bytes | None, sent: bytes, serve: Serve, start: StartProxy
) -> None:
    received: list[tuple[bytes, bytes]] = []
    proxy = await start(serve(_recording(received)))
    assert (await _ask(proxy, request("POST", RUN, proxy.bearer, body))).status == 200
    assert received[0][1] == sent


@pytest.mark.parametrize("prompt_bytes", [10, 256 * 1024, 3 * 1024 * 1024])
async def test_chunked_and_long_inputs_are_read_whole_and_sent_with_their_length(
    prompt_bytes: int, serve: Serve, start: StartProxy
) -> None:
    received: list[tuple[bytes, bytes]] = []
    proxy = await start(serve(_recording(received)))
    body = json.dumps({"prompt": "x" * prompt_bytes, "num_images": 9}).encode()
    cut = len(body) // 2
    chunked = request("POST", RUN, [CHUNKED, *proxy.bearer.items()]) + _chunks(body[:cut], body[cut:])
    for data in (chunked, request("POST", RUN, proxy.bearer, body)):
        assert (await _ask(proxy, data)).status == 200
    for head, sent in received:
        assert json.loads(sent) == {"prompt": "x" * prompt_bytes, "num_images": 2, "enable_safety_checker": True}
        assert b"content-length: %d\r\n" % len(sent) in head
        assert b"transfer-encoding" not in head.lower()


PACKED = gzip.compress(b"{}", mtime=0)  # without a time: it is in names of tests, which all workers must agree on
JSON = {"Content-Type": "application/json"}
DENIED: list[tuple[str, str, dict[str, str], bytes | None, str]] = [
    ("POST", "fal.run/fal-ai/flux/dev", JSON, b'{"loras": []}', "a rejected field"),
    ("POST", "fal.run/fal-ai/flux/dev/stream", JSON, b'{"loras": []}', "on a stream"),
    ("POST", "queue.fal.run/fal-ai/flux/dev", JSON, b'{"loras": []}', "on a submit"),
    ("POST", "queue.fal.run/fal-ai/flux/dev/stream", JSON, b'{"loras": []}', "on a submit with a suffix"),
    ("POST", "fal.run/fal-ai/flux/dev", {}, b'{"loras": []}', "without a content-type"),
    ("POST", "fal.run/fal-ai/flux/dev", {"Content-Type": "image/png"}, b'{"loras": 1}', "under a false flag"),
    ("POST", "fal.run/fal-ai/flux/dev", JSON, b'{"num_images": "4"}', "a number as text"),
    ("POST", "fal.run/fal-ai/flux/dev", JSON, b'{"num_images": ' + b"9" * 100_000 + b"}", "a huge integer"),
    ("POST", "fal.run/fal-ai/flux/dev", JSON, b"[" * 200_000, "deep nesting"),
    ("POST", "fal.run/fal-ai/flux/dev", JSON, b'{"a": NaN}', "NaN"),
    ("POST", "fal.run/fal-ai/flux/dev", JSON, b"not JSON", "not JSON"),
    ("POST", "fal.run/fal-ai/flux/dev", JSON, b'{"a": "\xff"}', "no UTF-8"),
    ("POST", "fal.run/fal-ai/flux/dev", JSON, b"[]", "no object"),
    ("POST", "fal.run/fal-ai/flux/dev", JSON | {"Content-Encoding": "gzip"}, PACKED, "an encoded body"),
    ("POST", "fal.run/fal-ai/flux/dev", JSON | {"Content-Encoding": "identity"}, b"{}", "an encoding without effect"),
    ("POST", "fal.run/fal-ai/flux/dev", JSON, PACKED, "an encoded body that does not say so"),
    ("POST", "fal.run/fal-ai/flux/dev?num_images=9", JSON, b"{}", "input in the query"),
    ("POST", "queue.fal.run/fal-ai/flux/dev?fal_max_queue_length=1", JSON, b"{}", "any query of the queue"),
    ("GET", "fal.run/fal-ai/flux/dev?num_images=9", {}, None, "a GET that the plan opens"),
    ("PUT", "fal.run/fal-ai/flux/dev", JSON, b"{}", "a PUT that the plan opens"),
    ("DELETE", "fal.run/fal-ai/flux/dev", {}, None, "a DELETE that the plan opens"),
    ("PATCH", "fal.run/fal-ai/flux/dev", JSON, b"{}", "a PATCH that the plan opens"),
]


@pytest.mark.parametrize("form", ["path", "header"])
@pytest.mark.parametrize(("method", "target", "headers", "body", "reason"), DENIED, ids=[row[4] for row in DENIED])
async def test_denied_input_is_a_clean_422_and_reaches_nothing(
    method: str,
    target: str,
    headers: dict[str, str],
    body: bytes | None,
    reason: str,
    form: str,
    serve: Serve,
    start: StartProxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    fields = {**headers, **proxy.bearer}
    path = f"{MOUNT}/{target}"
    if form == "header":
        path, fields["x-fal-target-url"] = MOUNT, f"https://{target}"
    answer = await _ask(proxy, request(method, path, fields, body))
    assert (answer.status, answer.one(b"x-fal-error-type")) == (422, b"input_denied"), reason
    told = json.loads(answer.body)
    assert told["detail"] == told["message"]
    assert told["error_type"] == "input_denied"
    assert not upstream.peers
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_judged_input_over_the_cap_is_413_and_reaches_nothing(
    framing: str, serve: Serve, start: StartProxy, settings: Settings
) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream, with_server(settings, max_body_bytes=1000))
    body = json.dumps({"prompt": "x" * 1000}).encode()
    data = request("POST", RUN, proxy.bearer, body)
    if framing == "chunked":
        data = request("POST", RUN, [CHUNKED, *proxy.bearer.items()]) + _chunks(body[:900], body[900:])
    answer = await _ask(proxy, data)
    assert (answer.status, answer.one(b"x-fal-error-type")) == (413, b"body_too_large")
    assert not upstream.peers


async def test_half_a_judged_input_reaches_nothing(serve: Serve, start: StartProxy) -> None:
    received: list[tuple[bytes, bytes]] = []
    proxy = await start(upstream := serve(_recording(received)))
    async with raw_client(proxy.port) as client:
        head = request("POST", RUN, [("Content-Length", str(len(ASKED) + 1)), *proxy.bearer.items()])
        await client.send(head + ASKED)
    assert (await _ask(proxy, request("POST", RUN, proxy.bearer, ASKED))).status == 200
    assert len(upstream.peers) == 1
    assert [body for _, body in received] == [SENT]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (ASKED, "a repeated key is fal's to judge"),
        (b'{"loras": [],  "n": 1.00}', "spacing and spelling stay"),
        (b"not JSON", "it is not even read as JSON"),
        (PACKED, "nor decoded"),
    ],
)
@pytest.mark.parametrize("target", ["fal.run/fal-ai/whisper?x=1", "queue.fal.run/fal-ai/whisper", "fal.run/a/b/stream"])
async def test_body_passes_byte_for_byte_where_no_rule_matches(
    target: str, body: bytes, reason: str, serve: Serve, start: StartProxy
) -> None:
    received: list[tuple[bytes, bytes]] = []
    proxy = await start(serve(_recording(received)))
    fields = {"Content-Type": "application/json; charset=utf-8", **proxy.bearer}
    assert (await _ask(proxy, request("POST", f"{MOUNT}/{target}", fields, body))).status == 200
    head, sent = received[0]
    assert sent == body, reason
    assert b"content-type: application/json; charset=utf-8\r\n" in head


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "queue.fal.run/fal-ai/flux/requests/abc/status?logs=1"),
        ("GET", "queue.fal.run/fal-ai/flux/requests/abc"),
        ("PUT", "queue.fal.run/fal-ai/flux/requests/abc/cancel"),
    ],
)
async def test_reads_and_cancels_of_a_ruled_endpoint_are_not_judged(
    method: str, target: str, serve: Serve, start: StartProxy
) -> None:
    received: list[tuple[bytes, bytes]] = []
    proxy = await start(serve(_recording(received)))
    assert (await _ask(proxy, request(method, f"{MOUNT}/{target}", proxy.bearer))).status == 200
    assert received[0][0].startswith(f"{method} /{target} ".encode())


async def test_endpoint_that_the_plan_does_not_open_is_403_before_its_input_is_judged(
    serve: Serve, start: StartProxy, settings: Settings
) -> None:
    closed = msgspec.structs.replace(settings, plans={"default": Plan(endpoints=("fal-ai/whisper",))})
    upstream = serve(answering(ok()))
    proxy = await start(upstream, closed)
    answer = await _ask(proxy, request("POST", RUN, proxy.bearer, b'{"loras": []}'))
    assert answer.status == 403
    assert not upstream.peers


async def test_page_can_read_why_its_input_was_denied(serve: Serve, start: StartProxy) -> None:
    proxy = await start(serve(answering(ok())))
    origin = {"Origin": proxy.origin, "Host": f"127.0.0.1:{proxy.port}"}
    answer = await _ask(proxy, request("POST", RUN, {**origin, **proxy.bearer}, b'{"loras": []}'))
    assert answer.status == 422
    assert answer.one(b"access-control-allow-origin") == proxy.origin.encode()
    assert "loras" in json.loads(answer.body)["detail"]
