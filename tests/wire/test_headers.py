"""What passes in the fields of a request and of an answer, on the wire, and what never does."""

from __future__ import annotations

import msgspec
import pytest

from fal_proxy.settings import Plan, Settings
from support.peers import Serve, Upstream
from support.proxied import FAL_KEY, MOUNT, Proxy, StartProxy
from support.raw import RawAnswer, raw_client, request
from support.scripts import answering, ok

RUN = "/fal.run/fal-ai/flux/dev"
KEY_FIELD = b"authorization: Key " + FAL_KEY.reveal().encode()


async def _run(proxy: Proxy, headers: list[tuple[str, str]], path: str = RUN, method: str = "POST") -> RawAnswer:
    async with raw_client(proxy.port) as client:
        await client.send(request(method, MOUNT + path, headers, b"{}"))
        return await client.answer()


def _sent_lines(upstream: Upstream) -> list[bytes]:
    heads = [bytes(peer.received).partition(b"\r\n\r\n")[0] for peer in upstream.peers]
    return b"\r\n".join(heads).split(b"\r\n")


def _sent_names(upstream: Upstream) -> list[bytes]:
    return [line.partition(b":")[0] for line in _sent_lines(upstream)[1:]]


async def test_upstream_sees_the_allow_list_our_marks_and_the_key_last(serve: Serve, start: StartProxy) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    passed = [
        ("Accept", "application/json"),
        ("Content-Type", "application/json"),
        ("User-Agent", "app/1"),
        ("X-Fal-Request-Timeout", "5"),
        ("X-Fal-Request-Start-Timeout", "6"),
        ("X-Fal-Queue-Priority", "low"),
        ("X-Fal-Object-Lifecycle", "{}"),
        ("X-Fal-Object-Lifecycle-Preference", "{}"),
        ("X-App-Fal-Disable-Fallback", "true"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ]
    assert (await _run(proxy, passed + list(proxy.bearer.items()))).status == 200
    lines = _sent_lines(upstream)
    assert lines[0] == b"POST /fal.run/fal-ai/flux/dev HTTP/1.1"
    assert lines[1] == b"host: 127.0.0.1:%d" % upstream.port
    assert lines[2:12] == [f"{name.lower()}: {value}".encode() for name, value in passed]
    assert lines[12] == b"accept-encoding: identity"
    assert lines[13].startswith(b"x-fal-client-proxy: fal-proxy/")
    assert lines[14:] == [KEY_FIELD, b"content-length: 2"]


NEVER_UP = [
    ("Cookie", "session=abc", "one caller's cookies are nobody else's business"),
    ("X-Forwarded-For", "203.0.113.9", "who is behind us stays behind us"),
    ("X-Forwarded-Host", "evil.example", "as above"),
    ("Forwarded", "for=203.0.113.9", "as above"),
    ("Origin", "http://127.0.0.1", "fal must not judge our pages"),
    ("Referer", "http://127.0.0.1/secret", "paths of the app are private"),
    ("Range", "bytes=0-1", "only files know ranges"),
    ("Accept-Encoding", "gzip", "we ask for plain bytes"),
    ("Proxy-Authorization", "Basic eDp5", "hop by hop"),
    ("TE", "trailers", "hop by hop"),
    ("Upgrade", "h2c", "hop by hop"),
    ("X-Fal-User-Id", "somebody", "would act for another account"),
    ("X-Fal-Store-IO", "0", "a plan must open it"),
    ("X-Fal-Cdn-Token", "t", "a token of fal's"),
    ("X-Fal-Client-Proxy", "forged/1", "ours to say"),
    ("X-Fal-Queue-Priority", "urgent", "a value that fal does not know"),
    ("X-Custom", "1", "not on the list"),
]


@pytest.mark.parametrize(("name", "value", "reason"), NEVER_UP)
async def test_field_of_the_caller_never_reaches_upstream(
    name: str, value: str, reason: str, serve: Serve, start: StartProxy
) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    answer = await _run(proxy, [(name, value), *proxy.bearer.items()])
    assert answer.status == 200, "dropped, not refused"
    assert all(value.encode() not in line for line in _sent_lines(upstream) if name.lower().encode() in line), reason


async def test_user_key_never_reaches_upstream(serve: Serve, start: StartProxy) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    await _run(proxy, list(proxy.bearer.items()))
    assert proxy.user_key.encode() not in bytes(upstream.peers[0].received)
    assert _sent_names(upstream).count(b"authorization") == 1


@pytest.mark.parametrize(
    "connection", ["authorization", "Authorization, keep-alive", "close, authorization, x-fal-client-proxy, host"]
)
async def test_client_cannot_remove_injected_key_via_connection_header(
    connection: str, serve: Serve, start: StartProxy
) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    assert (await _run(proxy, [("Connection", connection), *proxy.bearer.items()])).status == 200
    assert KEY_FIELD in _sent_lines(upstream)
    assert b"connection" not in _sent_names(upstream)


async def test_connection_nominated_field_is_hop_by_hop_even_when_allowed(serve: Serve, start: StartProxy) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    headers = [("Connection", "x-fal-request-timeout"), ("X-Fal-Request-Timeout", "5"), *proxy.bearer.items()]
    assert (await _run(proxy, headers)).status == 200
    assert b"x-fal-request-timeout" not in _sent_names(upstream)


async def test_plan_can_open_further_fields(serve: Serve, start: StartProxy, settings: Settings) -> None:
    upstream = serve(answering(ok()))
    plans = {"default": Plan(endpoints=("**",), allow_headers=("x-fal-store-io", "X-Fal-Tags"))}
    proxy = await start(upstream, msgspec.structs.replace(settings, plans=plans))
    headers = [("X-Fal-Store-IO", "0"), ("X-Fal-Tags", "a=b"), ("X-Fal-No-Retry", "1"), *proxy.bearer.items()]
    assert (await _run(proxy, headers)).status == 200
    lines = _sent_lines(upstream)
    assert b"x-fal-store-io: 0" in lines
    assert b"x-fal-tags: a=b" in lines
    assert b"x-fal-no-retry" not in _sent_names(upstream)


@pytest.mark.parametrize("name", ["Content-Type", "Host", "Origin", "X-Fal-Target-URL"])
async def test_second_line_of_a_field_that_we_judge_is_refused(name: str, serve: Serve, start: StartProxy) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    value = {"Host": "127.0.0.1", "Origin": "http://127.0.0.1"}.get(name, "application/json")
    async with raw_client(proxy.port) as client:
        head = f"POST {MOUNT}{RUN} HTTP/1.1\r\nHost: 127.0.0.1\r\n{name}: {value}\r\n"
        second = "" if name == "Host" else f"{name}: {value}\r\n"
        bearer = f"Authorization: Bearer {proxy.user_key}\r\n"
        await client.send((head + second + bearer + "Content-Length: 2\r\n\r\n{}").encode())
        assert (await client.answer()).status == 400
    assert all(not peer.received for peer in upstream.peers)


NEVER_DOWN = [
    b"set-cookie: session=upstream",
    b"server: nginx",
    b"x-powered-by: fal",
    b"access-control-allow-origin: *",
    b"access-control-allow-credentials: true",
    b"cache-control: public, max-age=600",
    b"x-fal-cdn-token: secret",
    b"www-authenticate: Basic",
    b"clear-site-data: *",
    b"alt-svc: h3=:443",
    b"strict-transport-security: max-age=1",
    b"service-worker-allowed: /",
    b"link: </x>; rel=preload",
    b"refresh: 0; url=https://evil.example",
]


async def test_answer_carries_the_allow_list_and_our_marks_only(serve: Serve, start: StartProxy) -> None:
    kept = [
        b"date: Sun, 22 Nov 2026 11:00:00 GMT",
        b"x-fal-request-id: 1",
        b"x-fal-billable-units: 2.5",
        b"x-fal-anything-new: 3",
        b"retry-after: 7",
        b'etag: "e"',
        b"content-disposition: inline",
    ]
    upstream = serve(answering(ok(b"{}", *kept, *NEVER_DOWN)))
    proxy = await start(upstream)
    answer = await _run(proxy, list(proxy.bearer.items()))
    ours = {
        b"content-type": b"application/json",
        b"content-length": b"2",
        b"cache-control": b"no-store",
        b"vary": b"x-fal-target-url, origin",
        b"x-content-type-options": b"nosniff",
        b"content-security-policy": b"sandbox; default-src 'none'",
        b"cross-origin-resource-policy": b"same-origin",
    }
    limits = {b"ratelimit", b"ratelimit-policy"}  # their values are other tests' business
    answer = answer._replace(headers=[field for field in answer.headers if field[0] not in limits])
    expected = ours | {line.partition(b":")[0]: line.partition(b":")[2].strip() for line in kept}
    assert dict(answer.headers) == expected
    assert len(answer.headers) == len(expected), "no field twice"


async def test_field_that_upstreams_connection_field_nominates_does_not_pass(serve: Serve, start: StartProxy) -> None:
    upstream = serve(answering(ok(b"{}", b"connection: x-fal-hop", b"x-fal-hop: 1")))
    proxy = await start(upstream)
    assert (await _run(proxy, list(proxy.bearer.items()))).one(b"x-fal-hop") is None


ACTIVE = [
    (b"text/html; charset=utf-8", b"text/plain; charset=utf-8"),
    (b"TEXT/HTML", b"text/plain"),
    (b"image/svg+xml", b"text/plain"),
    (b"application/xml", b"text/plain"),
    (b"application/xhtml+xml", b"text/plain"),
    (b"text/plain", b"text/plain"),
    (b"image/png", b"image/png"),
    (b"application/vnd.openxmlformats-officedocument", b"application/vnd.openxmlformats-officedocument"),
]


@pytest.mark.parametrize(("sent", "received"), ACTIVE)
async def test_markup_of_upstream_comes_down_as_text(
    sent: bytes, received: bytes, serve: Serve, start: StartProxy
) -> None:
    upstream = serve(
        answering(b"HTTP/1.1 502 Bad Gateway\r\ncontent-type: " + sent + b"\r\ncontent-length: 3\r\n\r\n<b>")
    )
    proxy = await start(upstream)
    answer = await _run(proxy, list(proxy.bearer.items()))
    assert (answer.status, answer.one(b"content-type"), answer.body) == (502, received, b"<b>")


async def test_one_callers_traces_never_reach_the_next_on_a_shared_connection(serve: Serve, start: StartProxy) -> None:
    upstream = serve(answering(ok(b"{}", b"set-cookie: who=first"), ok()))
    proxy = await start(upstream)
    first = [("Cookie", "mine=1"), ("X-Fal-Request-Timeout", "77"), *proxy.bearer.items()]
    await _run(proxy, first)
    answer = await _run(proxy, list(proxy.bearer.items()))
    assert len(upstream.peers) == 1, "the connection was shared"
    second = bytes(upstream.peers[0].received).split(b"POST ")[2]
    assert b"cookie" not in second.lower()
    assert b"77" not in second.partition(b"\r\n\r\n")[0].replace(FAL_KEY.reveal().encode(), b"")
    assert answer.one(b"set-cookie") is None
