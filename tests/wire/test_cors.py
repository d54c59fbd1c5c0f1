"""CORS on the wire: preflights before identity, the same fields on every answer, nothing for anybody else."""

from __future__ import annotations

import msgspec
import pytest

from fal_proxy.settings import Cors, Settings
from support.peers import Serve
from support.proxied import MOUNT, Proxy, StartProxy, with_server
from support.raw import RawAnswer, raw_client, request
from support.scripts import answering, ok

RUN = "/fal.run/fal-ai/flux/dev"
LISTED = "https://app.example"
FOREIGN = "https://evil.example"
EXPOSED = (
    b"x-fal-request-id, x-fal-request-timeout-type, x-fal-error-type, x-fal-needs-retry, x-fal-retryable, "
    b"x-fal-billable-units, x-fal-served-from, x-fal-runner-hints, retry-after, ratelimit, ratelimit-policy"
)
# What the JavaScript client and pages of their own may ask for.
CLIENT_FIELDS = [
    "x-fal-target-url",
    "authorization",
    "content-type",
    "accept",
    "x-fal-request-timeout",
    "x-fal-request-start-timeout",
    "x-fal-queue-priority",
    "x-fal-object-lifecycle",
    "x-fal-object-lifecycle-preference",
    "x-app-fal-disable-fallback",
    "x-fal-runner-hint",
    "traceparent",
    "range",
    "if-none-match",
]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings that list one origin beside our own."""
    return msgspec.structs.replace(settings, cors=Cors(origins=(LISTED,)))


async def ask(proxy: Proxy, method: str, path: str, *headers: tuple[str, str], body: bytes | None = None) -> RawAnswer:
    """Send one request and read its answer."""
    async with raw_client(proxy.port) as client:
        await client.send(request(method, path, list(headers), body))
        return await client.answer()


async def preflight(proxy: Proxy, origin: str, requested: str | None, path: str = MOUNT) -> RawAnswer:
    """Send one preflight for a POST."""
    headers = [("Origin", origin), ("Access-Control-Request-Method", "POST")]
    if requested is not None:
        headers.append(("Access-Control-Request-Headers", requested))
    return await ask(proxy, "OPTIONS", path, *headers)


def judge(answer: RawAnswer, origin: str | None, policy: bytes = b"cross-origin") -> None:
    """Judge an answer's CORS fields for a page of this origin; None: there must be none."""
    assert b"origin" in [part.strip() for part in (answer.one(b"vary") or b"").split(b",")]
    if origin is None:
        assert not [name for name, _ in answer.headers if name.startswith(b"access-control-")]
        assert answer.one(b"cross-origin-resource-policy") == b"same-origin"
    else:
        assert answer.one(b"access-control-allow-origin") == origin.encode()
        assert answer.one(b"access-control-allow-credentials") == b"true"
        assert answer.one(b"access-control-expose-headers") == EXPOSED
        assert answer.one(b"cross-origin-resource-policy") == policy


@pytest.mark.parametrize("requested", [*CLIENT_FIELDS, ",".join(CLIENT_FIELDS), None])
async def test_preflight_is_granted_before_identity(requested: str | None, serve: Serve, start: StartProxy) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    answer = await preflight(proxy, LISTED, requested)
    assert (answer.status, answer.body) == (204, b"")
    judge(answer, LISTED)
    assert answer.one(b"access-control-allow-methods") == b"GET, HEAD, POST, PUT, PATCH, DELETE"
    assert answer.one(b"access-control-max-age") == b"600"
    allowed = requested.replace(",", ", ").encode() if requested else None
    assert answer.one(b"access-control-allow-headers") == allowed
    assert answer.one(b"set-cookie") is None
    assert answer.one(b"content-length") is None
    assert not upstream.peers


@pytest.mark.parametrize(
    "path", [MOUNT, MOUNT + "/", MOUNT + RUN, MOUNT + "/nonsense", MOUNT + "/queue.fal.run/a/b?logs=1"]
)
async def test_preflight_is_granted_on_any_mount_path(path: str, serve: Serve, start: StartProxy) -> None:
    proxy = await start(serve(answering(ok())))
    answer = await preflight(proxy, f"http://127.0.0.1:{proxy.port}", "content-type", path)
    assert answer.status == 403, "this Host names no port, so that page is not ours"
    answer = await preflight(proxy, "http://127.0.0.1", "content-type", path)
    assert answer.status == 204
    judge(answer, "http://127.0.0.1", b"same-origin")


@pytest.mark.parametrize("origin", [FOREIGN, "null", LISTED + ":444", "http://app.example", LISTED + ".evil.example"])
async def test_preflight_of_another_origin_is_denied_without_cors(origin: str, serve: Serve, start: StartProxy) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    answer = await preflight(proxy, origin, "content-type")
    assert (answer.status, answer.one(b"x-fal-error-type")) == (403, b"origin_denied")
    judge(answer, None)
    assert not upstream.peers


@pytest.mark.parametrize(
    ("requested", "reason"),
    [
        ("a" * 4097, "more than 4 KiB"),
        ("a b", "no token"),
        ("a,,b", "an empty name"),
        ("a;b", "no token"),
        ("é", "bytes"),
    ],
)
async def test_preflight_for_what_is_no_list_of_names_is_refused(
    requested: str, reason: str, serve: Serve, start: StartProxy
) -> None:
    proxy = await start(serve(answering(ok())))
    answer = await preflight(proxy, LISTED, requested)
    assert answer.status == 400, reason
    judge(answer, LISTED)
    assert answer.one(b"access-control-allow-headers") is None


async def test_options_without_a_requested_method_is_no_preflight(serve: Serve, start: StartProxy) -> None:
    proxy = await start(serve(answering(ok())))
    answer = await ask(proxy, "OPTIONS", MOUNT + RUN, ("Origin", LISTED))
    assert (answer.status, answer.one(b"x-fal-error-type")) == (405, b"method_not_allowed")


@pytest.mark.parametrize(("origin", "policy"), [(LISTED, b"cross-origin"), ("http://127.0.0.1", b"same-origin")])
async def test_success_carries_cors_for_pages_that_may_read_it(
    origin: str, policy: bytes, serve: Serve, start: StartProxy
) -> None:
    foreign = [b"access-control-allow-origin: *", b"access-control-expose-headers: x", b"vary: accept"]
    proxy = await start(serve(answering(ok(b"{}", *foreign))))
    answer = await ask(proxy, "POST", MOUNT + RUN, ("Origin", origin), *proxy.bearer.items(), body=b"{}")
    assert answer.status == 200
    judge(answer, origin, policy)


async def test_success_without_an_origin_carries_no_cors(serve: Serve, start: StartProxy) -> None:
    proxy = await start(serve(answering(ok())))
    answer = await ask(proxy, "POST", MOUNT + RUN, *proxy.bearer.items(), body=b"{}")
    assert answer.status == 200
    judge(answer, None)


OWN_ERRORS = [
    ("POST", MOUNT + RUN, [("Authorization", "Bearer fpk_x")], 401, "unidentified"),
    ("POST", MOUNT, [], 400, "invalid_target"),
    ("POST", MOUNT + "/evil.example/a/b", [], 400, "invalid_target"),
    ("GET", MOUNT + RUN, [], 405, "method_not_allowed"),
    ("POST", MOUNT + "/rest.fal.ai/tokens/", [], 422, "input_denied"),
    ("POST", MOUNT + "/queue.fal.run/a/b?fal_webhook=https://x.example", [], 403, "webhook_denied"),
    ("POST", MOUNT + RUN, [("Content-Type", "a/b"), ("Content-Type", "a/b")], 400, "bad_request"),
    ("POST", MOUNT + RUN, [("Content-Length", "1000000000")], 413, "body_too_large"),
    ("POST", "/elsewhere", [], 404, "not_found"),
    ("POST", "/healthz", [], 405, "method_not_allowed"),
    ("POST", MOUNT + RUN, [("Host", "evil.example")], 421, "misdirected_host"),
]


@pytest.mark.parametrize(("method", "path", "headers", "status", "error_type"), OWN_ERRORS)
async def test_own_error_carries_cors_for_a_listed_page_and_none_for_others(
    method: str,
    path: str,
    headers: list[tuple[str, str]],
    status: int,
    error_type: str,
    serve: Serve,
    start: StartProxy,
) -> None:
    proxy = await start(serve(answering(ok())))
    answer = await ask(proxy, method, path, ("Origin", LISTED), *headers)
    assert (answer.status, answer.one(b"x-fal-error-type")) == (status, error_type.encode())
    judge(answer, LISTED)
    answer = await ask(proxy, method, path, ("Origin", FOREIGN), *headers)
    judge(answer, None)


async def test_error_of_the_upstream_side_carries_cors(serve: Serve, start: StartProxy) -> None:
    proxy = await start(serve(answering(b"HTTP/1.1 301 Moved\r\nlocation: https://x\r\ncontent-length: 0\r\n\r\n")))
    for path, status in ((RUN, 500), ("/queue.fal.run/a/b/requests/1/status", 502)):
        method = "POST" if path == RUN else "GET"
        answer = await ask(proxy, method, MOUNT + path, ("Origin", LISTED), *proxy.bearer.items(), body=b"{}")
        assert answer.status == status
        judge(answer, LISTED)


async def test_error_of_fal_carries_cors(serve: Serve, start: StartProxy) -> None:
    proxy = await start(serve(answering(b"HTTP/1.1 422 No\r\ncontent-length: 2\r\nx-fal-error-type: own\r\n\r\n{}")))
    answer = await ask(proxy, "POST", MOUNT + RUN, ("Origin", LISTED), *proxy.bearer.items(), body=b"{}")
    assert (answer.status, answer.one(b"x-fal-error-type")) == (422, b"own")
    judge(answer, LISTED)


@pytest.mark.parametrize("second", [LISTED, FOREIGN])
async def test_two_origin_lines_are_refused_without_cors(second: str, serve: Serve, start: StartProxy) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    origins = [("Origin", LISTED), ("Origin", second)]
    answer = await ask(proxy, "POST", MOUNT + RUN, *origins, *proxy.bearer.items(), body=b"{}")
    assert (answer.status, answer.one(b"x-fal-error-type")) == (400, b"bad_request")
    judge(answer, None)
    assert not upstream.peers


async def test_with_public_url_only_its_origin_is_ours(serve: Serve, start: StartProxy, settings: Settings) -> None:
    chosen = with_server(settings, public_url="https://proxy.example", hosts=())
    proxy = await start(serve(answering(ok())), chosen)
    host = ("Host", "proxy.example")
    answer = await ask(proxy, "POST", MOUNT + RUN, host, ("Origin", "https://proxy.example"), body=b"{}")
    assert answer.status == 200
    judge(answer, "https://proxy.example", b"same-origin")
    answer = await ask(proxy, "POST", MOUNT + RUN, host, ("Origin", "http://proxy.example"), body=b"{}")
    assert answer.status == 403
    judge(answer, None)
