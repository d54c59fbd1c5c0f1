"""Requests for fal tokens and for sessions of world models: read strictly, built anew, never the caller's bytes."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

from fal_proxy.errors import Refusal
from fal_proxy.policy.endpoints import App
from fal_proxy.policy.sessions import Heartbeat, Ice, Offer, read_session_request
from fal_proxy.policy.tokens import Asked, opened_by, read_asked, rebuilt

READ: list[tuple[object, Asked, str]] = [
    ({"allowed_apps": ["lcm"], "token_expiration": 120}, Asked("lcm", 120), "the clients"),
    ({"allowed_apps": ["fal-ai/lcm/realtime"], "duration": 60}, Asked("fal-ai/lcm/realtime", 60), "fal's documents"),
    ({"app": "fal-ai/lcm"}, Asked("fal-ai/lcm", None), "what others send; any lifetime"),
    ({"app": "a/b", "allowed_apps": ["a/b"]}, Asked("a/b", None), "the same app twice"),
    ({"app": "a/b", "duration": 90, "token_expiration": 30}, Asked("a/b", 30), "the shorter lifetime"),
    ({"app": "a/b", "duration": 10**30}, Asked("a/b", 10**30), "as long as they like; the settings decide"),
]


@pytest.mark.parametrize(("body", "asked", "reason"), READ, ids=[row[2] for row in READ])
def test_token_request_is_one_app_and_a_lifetime(body: object, asked: Asked, reason: str) -> None:
    assert read_asked(json.dumps(body).encode()) == asked, reason


UNREAD = [
    (b"", "no body"),
    (b"{", "no JSON"),
    (b"[" * 100_000, "deeper than any reader"),
    (b"[]", "no object"),
    (b"{}", "no app"),
    (b'{"allowed_apps":[]}', "no app either"),
    (b'{"allowed_apps":["a/b","c/d"]}', "two apps"),
    (b'{"allowed_apps":["a/b"],"app":"c/d"}', "two apps in two fields"),
    (b'{"allowed_apps":"a/b"}', "no list"),
    (b'{"allowed_apps":[["a/b"]]}', "no name"),
    (b'{"app":"*"}', "a wildcard"),
    (b'{"app":"a/**"}', "a wildcard"),
    (b'{"app":""}', "an empty name"),
    (b'{"app":"/a/b"}', "an empty segment"),
    (b'{"app":"a/b/"}', "an empty segment"),
    (b'{"app":"a/../b"}', "a dot segment"),
    (b'{"app":"a/./b"}', "a dot segment"),
    (b'{"app":"a/b?x=1"}', "a query"),
    (b'{"app":"a/b\\u0000"}', "a control"),
    (b'{"app":"a%2fb"}', "an escape"),
    (b'{"app":"a/b","allowed_paths":["/x"]}', "a field that fal may know and we do not"),
    (b'{"app":"a/b","duration":0}', "no lifetime"),
    (b'{"app":"a/b","duration":-1}', "less than none"),
    (b'{"app":"a/b","duration":true}', "true is no number"),
    (b'{"app":"a/b","duration":1.5}', "a fraction"),
    (b'{"app":"a/b","duration":"60"}', "a text"),
    (b'{"app":"a/b","duration":null}', "nothing"),
]


@pytest.mark.parametrize(("body", "reason"), UNREAD, ids=[f"{row[1]}: {row[0][:40]!r}" for row in UNREAD])
def test_any_other_token_request_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(Refusal) as caught:
        read_asked(body)
    assert caught.value.error_type == "input_denied", reason


OPENED: list[tuple[str, tuple[App, ...], str]] = [
    ("lcm", ((None, "lcm"), ("workflows", None, "lcm"), ("comfy", None, "lcm")), "nobody knows whose"),
    ("fal-ai/lcm", (("fal-ai", "lcm"),), "one app"),
    ("fal-ai/lcm/realtime", (("fal-ai", "lcm"),), "whatever path it was asked for"),
    ("workflows/me/lcm/x", (("workflows", "me", "lcm"),), "a namespace comes before the owner"),
]


@pytest.mark.parametrize(("app", "opened", "reason"), OPENED)
def test_token_opens_its_whole_alias(app: str, opened: tuple[App, ...], reason: str) -> None:
    assert opened_by(app) == opened, reason


@pytest.mark.parametrize("app", ["110602490-lcm-sd15-i2i", "123-a/b", "workflows/me"])
def test_name_that_could_be_read_in_two_ways_is_refused(app: str) -> None:
    with pytest.raises(Refusal) as caught:
        opened_by(app)
    assert caught.value.error_type == "input_denied"


def test_each_route_gets_the_lifetime_by_its_own_name() -> None:
    assert rebuilt(b"/tokens/", "a", 60) == b'{"allowed_apps":["a"],"token_expiration":60}'
    assert rebuilt(b"/tokens/realtime", "a", 60) == b'{"allowed_apps":["a"],"duration":60}'


ASKED: list[tuple[str, dict[str, Any], Ice | Offer | Heartbeat]] = [
    ("/ice", {"app_id": "fal-ai/world"}, Ice("fal-ai/world")),
    ("/session", {"app_id": "a/b/c", "sdp": "v=0", "type": "offer"}, Offer("a/b/c", "v=0", "offer")),
    ("/session/heartbeat", {"session_id": "6f-1"}, Heartbeat("6f-1")),
]


@pytest.mark.parametrize(("path", "body", "read"), ASKED)
def test_request_of_a_session_is_exactly_its_fields(path: str, body: dict[str, Any], read: object) -> None:
    assert read_session_request(path.encode(), json.dumps(body).encode()) == read


class Unread(NamedTuple):
    """A body that its path does not take."""

    reason: str
    path: str
    body: object


OFFER = {"app_id": "a/b", "sdp": "v=0", "type": "offer"}
STRANGE = [
    Unread("no object", "/ice", []),
    Unread("nothing", "/ice", {}),
    Unread("another path's body", "/ice", OFFER),
    Unread("an unknown field", "/session", {**OFFER, "start_timeout": 1}),
    Unread("an answer is no offer", "/session", {**OFFER, "type": "answer"}),
    Unread("no sdp", "/session", {**OFFER, "sdp": ""}),
    Unread("too much of it", "/session", {**OFFER, "sdp": "v" * (128 * 1024 + 1)}),
    Unread("sdp is a text", "/session", {**OFFER, "sdp": {"v": 0}}),
    Unread("an alias is no endpoint", "/session", {**OFFER, "app_id": "b"}),
    Unread("a namespace and an owner are none", "/session", {**OFFER, "app_id": "workflows/me"}),
    Unread("a dot segment", "/session", {**OFFER, "app_id": "a/../b"}),
    Unread("an escape", "/session", {**OFFER, "app_id": "a/b%2fc"}),
    Unread("no list of ids", "/session/heartbeat", {"session_id": ["x"]}),
    Unread("an empty id", "/session/heartbeat", {"session_id": ""}),
    Unread("a path", "/session/heartbeat", {"session_id": "a/b"}),
    Unread("a long id", "/session/heartbeat", {"session_id": "x" * 129}),
]


@pytest.mark.parametrize("case", STRANGE, ids=[f"{case.path}: {case.reason}" for case in STRANGE])
def test_any_other_request_of_a_session_is_refused(case: Unread) -> None:
    with pytest.raises(Refusal) as caught:
        read_session_request(case.path.encode(), json.dumps(case.body).encode())
    assert caught.value.error_type == "input_denied"
