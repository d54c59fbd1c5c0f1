"""The allow-lists in both directions, and the small grammars beside them: preflights, active types, Connection."""

from __future__ import annotations

import pytest

from fal_proxy.headers import (
    ALWAYS_DOWN,
    EXPOSED,
    OPTIONAL_UP,
    UP,
    Headers,
    cors,
    is_active,
    media_type,
    nominated,
    preflight,
    to_downstream,
    to_upstream,
)

PASSES_UP = [
    b"accept",
    b"content-type",
    b"user-agent",
    b"x-fal-request-timeout",
    b"x-fal-request-start-timeout",
    b"x-fal-object-lifecycle",
    b"x-fal-object-lifecycle-preference",
    b"x-app-fal-disable-fallback",
    b"traceparent",
    b"tracestate",
]
OPENED_BY_PLANS = [b"x-fal-store-io", b"x-fal-runner-hint", b"x-fal-no-retry", b"x-fal-retry-config", b"x-fal-tags"]
STAYS_HERE = [
    (b"authorization", "the caller's proof; ours is added later"),
    (b"cookie", "the app's sessions are nobody else's"),
    (b"host", "the engine writes its own"),
    (b"origin", "fal must not judge our pages"),
    (b"referer", "may hold paths of the app"),
    (b"content-length", "the engine frames"),
    (b"transfer-encoding", "the engine frames"),
    (b"connection", "hop by hop"),
    (b"accept-encoding", "ours says identity"),
    (b"range", "only files know ranges"),
    (b"if-none-match", "as above"),
    (b"x-fal-file-name", "belongs to uploads"),
    (b"x-fal-target-url", "addressed to us"),
    (b"x-fal-client-proxy", "ours to say"),
    (b"x-fal-user-id", "would act for another account"),
    (b"x-fal-anything-new", "nobody has thought about it"),
    (b"x-forwarded-for", "who is behind us stays behind us"),
    (b"accept ", "a name that only looks like one of the list"),
]


@pytest.mark.parametrize("name", PASSES_UP)
def test_listed_field_travels_up_with_its_exact_value(name: bytes) -> None:
    assert to_upstream([(name, b" V\xe9 ")], optional=()) == [(name, b" V\xe9 ")]


def test_upward_list_is_exactly_the_contracts() -> None:
    assert {*PASSES_UP, b"x-fal-queue-priority"} == UP
    assert set(OPENED_BY_PLANS) == OPTIONAL_UP


@pytest.mark.parametrize(("name", "reason"), STAYS_HERE)
def test_unlisted_field_does_not_travel_up(name: bytes, reason: str) -> None:
    assert to_upstream([(name, b"1")], optional=OPTIONAL_UP) == [], reason


@pytest.mark.parametrize("name", OPENED_BY_PLANS)
def test_optional_field_travels_up_only_for_plans_that_open_it(name: bytes) -> None:
    others = OPTIONAL_UP - {name}
    assert to_upstream([(name, b"1")], optional=others) == []
    assert to_upstream([(name, b"1")], optional={name}) == [(name, b"1")]


@pytest.mark.parametrize(
    ("value", "passes"), [(b"normal", True), (b"low", True), (b"high", False), (b"LOW", False), (b"", False)]
)
def test_queue_priority_travels_up_with_a_known_value_only(value: bytes, passes: bool) -> None:
    pair = (b"x-fal-queue-priority", value)
    assert to_upstream([pair], optional=()) == ([pair] if passes else [])


NOMINATED = [
    ([], set(), "no Connection field"),
    ([(b"connection", b"close")], {b"close"}, "one token"),
    ([(b"connection", b"A, x-B ,\tc")], {b"a", b"x-b", b"c"}, "a list, folded to lower case"),
    ([(b"connection", b"a"), (b"connection", b"b")], {b"a", b"b"}, "several lines"),
    ([(b"proxy-connection", b"a")], {b"a"}, "the older spelling"),
    ([(b"keep-alive", b"a")], set(), "another field"),
]


@pytest.mark.parametrize(("headers", "names", "reason"), NOMINATED)
def test_connection_fields_nominate_names(headers: Headers, names: set[bytes], reason: str) -> None:
    assert nominated(headers) == names, reason


def test_nominated_fields_pass_in_neither_direction() -> None:
    headers = [(b"connection", b"Accept, x-fal-hop"), (b"accept", b"*/*"), (b"x-fal-hop", b"1")]
    assert to_upstream(headers, optional=()) == []
    assert to_downstream(headers) == []


def test_downward_list_is_exactly_the_contracts() -> None:
    passing = [
        b"content-type",
        b"content-length",
        b"content-encoding",
        b"content-disposition",
        b"date",
        b"retry-after",
        b"etag",
        b"last-modified",
        b"accept-ranges",
        b"content-range",
        b"x-fal-request-id",
        b"x-fal-anything-new",
    ]
    stopping = [
        b"x-fal-cdn-token",
        b"x-fal",
        b"x-falsy",
        b"set-cookie",
        b"server",
        b"location",
        b"vary",
        b"cache-control",
        b"access-control-allow-origin",
        b"www-authenticate",
        b"transfer-encoding",
        b"trailer",
    ]
    headers = [(name, b"1") for name in passing + stopping]
    assert to_downstream(headers) == [(name, b"1") for name in passing]


def test_every_answer_carries_the_contracts_own_fields() -> None:
    assert dict(ALWAYS_DOWN) == {
        b"cache-control": b"no-store",
        b"vary": b"x-fal-target-url, origin",
        b"x-content-type-options": b"nosniff",
        b"content-security-policy": b"sandbox; default-src 'none'",
    }


ACTIVE = [
    (b"text/html", True, "a document"),
    (b"TEXT/HTML ; charset=utf-8", True, "case and spaces do not matter"),
    (b" text/html", True, "leading space does not matter"),
    (b"application/xhtml+xml", True, "a document"),
    (b"image/svg+xml", True, "runs scripts"),
    (b"text/xml", True, "may be XHTML inside"),
    (b"application/xml;q=1", True, "as above"),
    (b"application/atom+xml", True, "as above"),
    (b"application/xslt+xml", True, "transforms into anything"),
    (b"text/xsl", True, "as above"),
    (b"text/javascript; charset=utf-8", True, "a script of the app's own origin"),
    (b"application/x-ecmascript", True, "browsers run the old names too"),
    (b"text/jscript", True, "as above"),
    (b"text/livescript", True, "as above"),
    (b"text/css", True, "a style sheet can read what a page shows"),
    (b"multipart/x-mixed-replace; boundary=b", True, "its parts may be documents"),
    (b"text/plain, text/html", True, "browsers take the last of a list"),
    (b"text/plain;a=b, text/html", True, "a parameter does not hide the list"),
    (b"text/plain", False, "inert"),
    (b"application/json", False, "inert"),
    (b"image/png", False, "inert"),
    (b"text/event-stream", False, "inert"),
    (b"application/vnd.openxmlformats-officedocument", False, "xml in a name is no XML"),
    (b"text/plain; note=html", False, "a parameter is no type"),
    (b"", False, "nothing said, and nosniff forbids guessing"),
]


@pytest.mark.parametrize(("content_type", "active", "reason"), ACTIVE)
def test_types_that_browsers_could_run_are_recognised(content_type: bytes, active: bool, reason: str) -> None:
    assert is_active(content_type) is active, reason
    (_, sent), *_ = to_downstream([(b"content-type", content_type)])
    assert not is_active(sent), "what goes down is inert"
    assert active or sent == content_type, "what is inert goes down as it is"


def test_charset_of_an_active_type_survives() -> None:
    assert to_downstream([(b"content-type", b"text/html;charset=x")]) == [(b"content-type", b"text/plain;charset=x")]


def test_media_type_is_what_stands_before_the_parameters() -> None:
    assert media_type(b"Text/Plain ; a=b; c") == b"Text/Plain"
    assert media_type(b"") == b""


PREFLIGHT = [
    (b"", None, "a preflight may ask for no field"),
    (b"content-type", b"content-type", "one"),
    (b"x-fal-target-url,Authorization", b"x-fal-target-url, Authorization", "as written"),
    (b" a ,\tb ", b"a, b", "spaces around names"),
    (b"!#$%&'*+-.^_`|~09azAZ", b"!#$%&'*+-.^_`|~09azAZ", "every character of a token (RFC 9110 §5.6.2)"),
    (b"a" * 4096, b"a" * 4096, "the most"),
]


@pytest.mark.parametrize(("requested", "echoed", "reason"), PREFLIGHT)
def test_preflight_echoes_tokens(requested: bytes, echoed: bytes | None, reason: str) -> None:
    granted = dict(preflight(requested) or [])
    assert granted.pop(b"access-control-allow-methods") == b"GET, HEAD, POST, PUT, PATCH, DELETE"
    assert granted.pop(b"access-control-max-age") == b"600"
    assert granted == ({} if echoed is None else {b"access-control-allow-headers": echoed}), reason


NO_TOKENS = [
    (b"a" * 4097, "one more than the most"),
    (b",", "empty names"),
    (b"a,,b", "an empty name inside"),
    (b"a,", "an empty name at the end"),
    (b"a b", "a space inside"),
    (b"a:b", "a colon"),
    (b"a\x00", "a control character"),
    (b"\xc3\xa9", "not ASCII"),
    (b'a"', "a quote"),
    (b"a\x0b", "a space that only Python knows"),
]


@pytest.mark.parametrize(("requested", "reason"), NO_TOKENS)
def test_preflight_refuses_what_is_no_list_of_tokens(requested: bytes, reason: str) -> None:
    assert preflight(requested) is None, reason


def test_cors_names_the_origin_and_never_a_star() -> None:
    assert dict(cors(b"https://a.example", ours=False)) == {
        b"access-control-allow-origin": b"https://a.example",
        b"access-control-allow-credentials": b"true",
        b"access-control-expose-headers": EXPOSED,
        b"cross-origin-resource-policy": b"cross-origin",
    }
    assert dict(cors(b"https://ours.example", ours=True))[b"cross-origin-resource-policy"] == b"same-origin"
    assert cors(None, ours=True) == [(b"cross-origin-resource-policy", b"same-origin")]
