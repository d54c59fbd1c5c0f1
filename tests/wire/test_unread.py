"""What is refused before it is a whole request leaves a line and a count too, and a page that may read errors reads this one."""

from __future__ import annotations

import pytest

from fal_proxy.downstream import deadlines
from fal_proxy.downstream.framing import MAX_FIELDS, MAX_HEAD_BYTES
from support.lines import Lines, samples
from support.peers import Serve
from support.proxied import MOUNT, StartProxy
from support.raw import raw_client
from support.scripts import answering, ok

RUN = f"{MOUNT}/fal.run/fal-ai/flux/dev".encode()
HOST = b"Host: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\n"
POST = b"POST " + RUN + b" HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\nAuthorization: Bearer %b\r\nContent-Type: application/json\r\n\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
MANY = b"".join(b"x%d: 1\r\n" % number for number in range(MAX_FIELDS))
# What is sent; error type, status and kind of the line; may the page read it; why it is so.
REFUSED = [
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "bad_request", 400, "none", False, "TLS: nothing is known"),
    (POST + b"x: " + b"a" * MAX_HEAD_BYTES, "header_too_large", 431, "none", False, "a head that was not read whole"),
    (POST + b"a", "request_timeout", 408, "none", False, "a head that does not end"),
    (POST + MANY + b"\r\n", "header_too_large", 431, "none", True, "a head that was read whole, and is too much"),
    (POST + b"Content-Length: x\r\n\r\n", "bad_request", 400, "none", False, "the parser stops in the head"),
    (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", "bad_request", 400, "none", True, "framing that is not clear"),
    (POST.replace(b"127", b"128") + MANY + b"\r\n", "header_too_large", 431, "none", False, "a name that is not ours"),
    (
        POST.replace(b"http://127", b"http://128") + MANY + b"\r\n",
        "header_too_large",
        431,
        "none",
        False,
        "another's page",
    ),
    (b"GET " + RUN + b" HTTP/1.1\r\n" + HOST + UPGRADE + b"\r\n", "bad_request", 400, "none", True, "no handshake"),
    (CHUNKED + b"zz\r\n", "bad_request", 400, "run", True, "a body whose end nobody can find"),
    (
        CHUNKED + b"2\r\n{}\r\n0\r\nx: " + b"a" * 40_000 + b"\r\n\r\n",
        "header_too_large",
        431,
        "run",
        True,
        "trailers beyond all bounds",
    ),
    (CHUNKED + b"2\r\n{}\r\n", "request_timeout", 408, "run", True, "a body that does not end"),
]


@pytest.mark.parametrize(("sent", "error", "status", "kind", "readable", "why"), REFUSED, ids=[r[-1] for r in REFUSED])
async def test_refusal_of_what_is_no_whole_request_is_one_line_one_count_and_readable_where_the_page_is_known(
    sent: bytes,
    error: str,
    status: int,
    kind: str,
    readable: bool,
    why: str,
    serve: Serve,
    start: StartProxy,
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SWEEP_SECONDS", "HEAD_SECONDS", "BODY_IDLE_SECONDS"):
        monkeypatch.setattr(deadlines, name, getattr(deadlines, name) / 50)
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    async with raw_client(proxy.port) as client:
        await client.send(sent.replace(b"%b", proxy.user_key.encode()))
        answer = await client.answer()
        assert await client.reader.read() == b""
    assert (answer.status, answer.one(b"x-fal-error-type")) == (status, error.encode())
    origin = b"http://127.0.0.1" if readable else None
    assert answer.one(b"access-control-allow-origin") == origin, why
    assert answer.one(b"cross-origin-resource-policy") == b"same-origin"
    [line] = await lines.exactly(1)
    assert (line["decision"], line["status"], line["kind"], line["ending"]) == (error, status, kind, "refused"), why
    counted = {"kind": kind, "decision": error, "ending": "refused"}
    assert ("fal_proxy_exchanges_total", counted, 1) in samples(proxy.app)
    assert not upstream.peers


async def test_bytes_that_could_belong_to_an_answered_request_end_without_an_answer_and_with_a_line(
    serve: Serve, start: StartProxy, lines: Lines
) -> None:
    proxy = await start(serve(answering(ok())))
    me = b"GET " + MOUNT.encode() + b"/me HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    async with raw_client(proxy.port) as client:
        await client.send(me + b"\x00\r\n\r\n")
        assert (await client.answer()).status == 200
        assert await client.reader.read() == b""
    [line] = [line for line in await lines.exactly(2) if line["status"] != 200]
    assert (line["decision"], line["status"], line["ending"]) == ("bad_request", None, "cut")


BESIDE = [
    (POST.replace(RUN, b"/healthz") + MANY + b"\r\n", "a route that leaves no lines"),
    (b"", "a caller who said nothing"),
]


@pytest.mark.parametrize(("sent", "why"), BESIDE)
async def test_no_line_where_a_whole_request_would_leave_none(
    sent: bytes, why: str, serve: Serve, start: StartProxy, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SWEEP_SECONDS", "HEAD_SECONDS"):
        monkeypatch.setattr(deadlines, name, getattr(deadlines, name) / 50)
    proxy = await start(serve(answering(ok())))
    async with raw_client(proxy.port) as client:
        await client.send(sent)
        await client.reader.read()
    assert await lines.exactly(0) == [], why
