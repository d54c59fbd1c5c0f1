"""Who is calling, on the wire: credentials, the anonymous cookie, and pages that have no business here."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import msgspec
import pytest

from fal_proxy.identity.key import revoke
from fal_proxy.settings import Cors, Identity, Settings
from support.peers import Serve, Upstream
from support.proxied import MOUNT, Proxy, StartProxy
from support.raw import RawAnswer, raw_client, request
from support.scripts import answering, ok

Fields = list[tuple[str, str]]

RUN = "/fal.run/fal-ai/flux/dev"
HEADER_FORM = ("X-Fal-Target-URL", "https://fal.run/fal-ai/flux/dev")
OURS, LISTED, FOREIGN = "http://127.0.0.1", "https://app.example", "https://evil.example"
# By its form one of fal's own; nobody's in fact.
FAL_LIKE = "0badcafe-1111-4222-8333-444455556666:5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings with anonymous callers and one listed origin."""
    return msgspec.structs.replace(settings, cors=Cors(origins=(LISTED,)))


def keys_only(settings: Settings) -> Settings:
    """Settings without anonymous callers."""
    return msgspec.structs.replace(settings, identity=Identity(sources=("key",), key=settings.identity.key))


async def ask(proxy: Proxy, headers: Fields, path: str = RUN, method: str = "POST") -> RawAnswer:
    """Send one request below the mount and read its answer."""
    async with raw_client(proxy.port) as client:
        await client.send(request(method, MOUNT + path, headers, b"{}"))
        return await client.answer()


def refused(answer: RawAnswer, status: int, error_type: bytes) -> bool:
    """Say whether the answer is this error of ours."""
    return (answer.status, answer.one(b"x-fal-error-type")) == (status, error_type)


def untouched(upstream: Upstream) -> bool:
    """Say whether nothing reached upstream."""
    return not upstream.peers


SPELLINGS = [
    ("Bearer {key}", 200, "as most clients write it"),
    ("Key {key}", 200, "as fal's clients write it"),
    ("bearer {key}", 200, "schemes know no case (RFC 9110 §11.1)"),
    ("KEY {key}", 200, "as above"),
    ("Bearer  {key}", 200, "more than one space"),
    ("Bearer \t{key}", 200, "a tab"),
    ("Bearer\t{key}", 200, "only a tab"),
    ("Bearer fpk_unknown", 401, "never issued"),
    ("Bearer {key}x", 401, "one character more"),
    ("Bearer x {key}", 401, "two words"),
    ("Bearer {key} x", 401, "as above"),
    ("Bearer", 401, "nothing presented is still presented"),
    ("Bearer ", 401, "as above"),
    ("Key", 401, "as above"),
    ("Bearer \xff", 401, "bytes"),
    ("Bearer eyJhbGciOiJIUzI1NiJ9.e30.x", 401, "somebody else's token"),
]


@pytest.mark.parametrize(("spelling", "status", "reason"), SPELLINGS)
async def test_presented_credential_is_known_or_401_and_never_anonymous(
    spelling: str, status: int, reason: str, serve: Serve, start: StartProxy
) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    answer = await ask(proxy, [("Authorization", spelling.format(key=proxy.user_key)), ("Origin", OURS)])
    assert answer.status == status, reason
    assert answer.one(b"set-cookie") is None, "whoever presents something is not anonymous"
    if status == 401:
        assert refused(answer, 401, b"unidentified")
        assert answer.one(b"www-authenticate") == b"Bearer"
        assert untouched(upstream)


@pytest.mark.parametrize("value", ["Basic YTpi", "Digest x", "Bearerx y", "fpk_x", "", "KeyKey x"])
async def test_other_scheme_is_ignored(value: str, serve: Serve, start: StartProxy) -> None:
    proxy = await start(serve(answering(ok())))
    assert (await ask(proxy, [("Authorization", value)])).status == 200, "anonymous, as if nothing had been said"


async def test_other_scheme_is_no_credential_where_one_is_needed(
    serve: Serve, start: StartProxy, settings: Settings
) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream, keys_only(settings))
    for headers in ([("Authorization", "Basic YTpi")], [("Origin", OURS)], []):
        answer = await ask(proxy, headers)
        assert refused(answer, 401, b"unidentified")
        assert b"Authorization: Bearer" in answer.body
        assert answer.one(b"set-cookie") is None
    assert untouched(upstream)


async def test_two_authorization_lines_are_401(serve: Serve, start: StartProxy) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    good = ("Authorization", f"Bearer {proxy.user_key}")
    for second in (good, ("Authorization", "Basic YTpi")):
        assert refused(await ask(proxy, [good, second]), 401, b"unidentified")
    assert untouched(upstream)


@pytest.mark.parametrize("scheme", ["Key", "Bearer"])
async def test_fal_key_of_a_client_gets_a_helpful_401_and_shows_up_nowhere(
    scheme: str, serve: Serve, start: StartProxy, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    with caplog.at_level(logging.DEBUG):
        answer = await ask(proxy, [("Authorization", f"{scheme} {FAL_LIKE}"), ("Origin", LISTED)])
    assert refused(answer, 401, b"unidentified")
    assert b"FAL_KEY" in answer.body
    assert b"credentials" in answer.body
    for half in FAL_LIKE.split(":"):
        assert half not in caplog.text
        assert half.encode() not in answer.body + b"".join(value for _, value in answer.headers)
    assert untouched(upstream)


async def test_revoked_key_ends_with_the_next_request_of_the_same_connection(
    serve: Serve, start: StartProxy, tmp_path: Path
) -> None:
    proxy = await start(serve(answering(ok())))
    async with raw_client(proxy.port) as client:
        for status in (200, 401):
            await client.send(request("POST", MOUNT + RUN, list(proxy.bearer.items()), b"{}"))
            assert (await client.answer()).status == status
            if status == 200:
                revoke(tmp_path / "users.toml", "ada")


async def test_key_holder_from_a_foreign_page_is_served_without_cors(serve: Serve, start: StartProxy) -> None:
    proxy = await start(serve(answering(ok())))
    for fields in ([("Origin", FOREIGN)], [("Origin", "null")], [("Sec-Fetch-Site", "cross-site")]):
        answer = await ask(proxy, [*fields, *proxy.bearer.items()])
        assert answer.status == 200
        assert not [name for name, _ in answer.headers if name.startswith(b"access-control-")]
        assert answer.one(b"set-cookie") is None


COOKIE = re.compile(rb"(fal_proxy_anon=[\w.-]+); Max-Age=2592000; Path=/; HttpOnly; SameSite=Lax")
FIRST: list[tuple[Fields, str, str, int, str]] = [
    ([("Origin", OURS)], "POST", RUN, 200, "our own page"),
    ([("Origin", LISTED)], "POST", RUN, 200, "a listed page"),
    ([("Sec-Fetch-Site", "same-origin")], "POST", RUN, 200, "our own page, without Origin"),
    ([("Origin", OURS)], "POST", "", 400, "an error about the target"),
    ([("Origin", OURS)], "GET", RUN, 405, "an error about the method"),
    ([("Origin", OURS)], "POST", "/rest.fal.ai/storage/auth/token", 403, "an error of policy"),
    ([("Origin", OURS), ("Content-Length", "1000000000")], "POST", RUN, 413, "an error about the body"),
]


@pytest.mark.parametrize(("headers", "method", "path", "status", "reason"), FIRST)
async def test_browser_gets_the_cookie_with_its_first_answer_whatever_that_is(
    headers: Fields, method: str, path: str, status: int, reason: str, serve: Serve, start: StartProxy
) -> None:
    proxy = await start(serve(answering(ok(b"{}", b"set-cookie: fal_proxy_anon=upstream"))))
    answer = await ask(proxy, headers, path, method)
    assert answer.status == status, reason
    cookie = COOKIE.fullmatch(answer.one(b"set-cookie") or b"")
    assert cookie, reason
    later = await ask(proxy, [("Cookie", cookie.group(1).decode()), ("Origin", OURS)])
    assert (later.status, later.one(b"set-cookie")) == (200, None), "recognised"


@pytest.mark.parametrize("headers", [[], [("User-Agent", "Mozilla/5.0"), ("Referer", OURS)], [HEADER_FORM]])
async def test_who_is_no_browser_gets_no_cookie(headers: Fields, serve: Serve, start: StartProxy) -> None:
    proxy = await start(serve(answering(ok())))
    answer = await ask(proxy, headers, "" if HEADER_FORM in headers else RUN)
    assert (answer.status, answer.one(b"set-cookie")) == (200, None)


@pytest.mark.parametrize("value", ["fal_proxy_anon=forged.aaaaaa.bbbb", "fal_proxy_anon=", "fal_proxy_anon"])
async def test_bad_cookie_is_replaced(value: str, serve: Serve, start: StartProxy) -> None:
    proxy = await start(serve(answering(ok())))
    answer = await ask(proxy, [("Cookie", value), ("Origin", OURS)])
    assert answer.status == 200
    assert COOKIE.fullmatch(answer.one(b"set-cookie") or b"")


async def test_cookie_of_an_https_proxy_is_bound_to_its_host(
    serve: Serve, start: StartProxy, settings: Settings
) -> None:
    server = msgspec.structs.replace(settings.server, public_url="https://p.example", hosts=())
    proxy = await start(serve(answering(ok())), msgspec.structs.replace(settings, server=server))
    answer = await ask(proxy, [("Host", "p.example"), ("Origin", "https://p.example")])
    cookie = answer.one(b"set-cookie") or b""
    assert re.fullmatch(rb"__Host-" + COOKIE.pattern + rb"; Secure", cookie)


ANY_COOKIE = ("Cookie", "session=of-the-app")
SERVED: list[tuple[Fields, str, str]] = [
    ([], RUN, "curl, path form"),
    ([HEADER_FORM], "", "Node, header form"),
    ([HEADER_FORM, ANY_COOKIE], "", "header form with a cookie: no form or image can send it"),
    ([("Origin", OURS), ANY_COOKIE], RUN, "our own page"),
    ([("Origin", LISTED), ("Sec-Fetch-Site", "cross-site")], RUN, "a listed page"),
    ([("Sec-Fetch-Site", "same-origin"), ANY_COOKIE], RUN, "our own page, without Origin"),
]
DENIED: list[tuple[Fields, str, str]] = [
    ([ANY_COOKIE], RUN, "path form with any cookie: an old browser behind any page"),
    ([("Cookie", "")], RUN, "even an empty one"),
    ([("Origin", FOREIGN)], RUN, "a foreign page"),
    ([("Origin", FOREIGN), HEADER_FORM], "", "a foreign page, header form"),
    ([("Origin", "null")], RUN, "a sandboxed page"),
    ([("Origin", "http://127.0.0.1.evil.example")], RUN, "our name as a beginning"),
    ([("Origin", "http://127.0.0.1:1")], RUN, "another port of this machine"),
    ([("Origin", FOREIGN), ("Sec-Fetch-Site", "same-origin")], RUN, "Origin decides where there is one"),
    ([("Sec-Fetch-Site", "cross-site")], RUN, "an image"),
    ([("Sec-Fetch-Site", "same-site")], RUN, "a sister domain"),
    ([("Sec-Fetch-Site", "none")], RUN, "a typed address"),
    ([("Sec-Fetch-Site", "cross-site"), HEADER_FORM], "", "header form too"),
]


@pytest.mark.parametrize(("headers", "path", "reason"), SERVED)
async def test_anonymous_caller_behind_no_foreign_page_is_served(
    headers: Fields, path: str, reason: str, serve: Serve, start: StartProxy
) -> None:
    proxy = await start(serve(answering(ok())))
    assert (await ask(proxy, headers, path)).status == 200, reason


@pytest.mark.parametrize(("headers", "path", "reason"), DENIED)
async def test_anonymous_caller_behind_another_page_is_denied_and_nothing_reaches_upstream(
    headers: Fields, path: str, reason: str, serve: Serve, start: StartProxy
) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    answer = await ask(proxy, headers, path)
    assert refused(answer, 403, b"origin_denied"), reason
    assert not [name for name, _ in answer.headers if name.startswith(b"access-control-")]
    assert untouched(upstream)


async def test_good_anonymous_cookie_does_not_help_a_foreign_page(serve: Serve, start: StartProxy) -> None:
    upstream = serve(answering(ok()))
    proxy = await start(upstream)
    first = await ask(proxy, [("Origin", OURS)], "", "POST")
    cookie = COOKIE.fullmatch(first.one(b"set-cookie") or b"")
    assert cookie
    for field in (("Origin", FOREIGN), ("Sec-Fetch-Site", "cross-site"), ("Accept", "image/*")):
        answer = await ask(proxy, [field, ("Cookie", cookie.group(1).decode())])
        assert refused(answer, 403, b"origin_denied")
    assert untouched(upstream)
