"""The body of a token request: what clients send names one app, and nothing else is read out of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fal_proxy.errors import Refusal
from fal_proxy.policy.tokens import asked_app

GOOD = [
    (b'{"allowed_apps":["fast-lcm"],"token_expiration":120}', "fast-lcm", "the JavaScript client"),
    (b'{"allowed_apps":["fal-ai/fast-lcm/realtime"],"duration":120}', "fal-ai/fast-lcm/realtime", "the documentation"),
    (b'{"app":"fal-ai/fast-lcm"}', "fal-ai/fast-lcm", "others"),
    (b'{"app":"a","allowed_apps":["a"]}', "a", "both, agreeing"),
    (b' {"allowed_apps" : ["workflows/ada/flow"]}\n', "workflows/ada/flow", "a namespace"),
]
BAD = [
    (b"", "nothing"),
    (b"null", "no object"),
    (b'"fast-lcm"', "text"),
    (b'{"allowed_apps":"fast-lcm"}', "no list"),
    (b'{"allowed_apps":[]}', "no app"),
    (b'{"allowed_apps":["a","b"]}', "two apps"),
    (b'{"allowed_apps":[["a"]]}', "a list in a list"),
    (b'{"allowed_apps":[null]}', "no name"),
    (b'{"app":"a","allowed_apps":["b"]}', "two that disagree"),
    (b'{"app":null}', "no name either"),
    (b"{}", "no field"),
    (b'{"allowed_apps":["a"],"allowed_paths":["/"]}', "a field that may widen it"),
    (b'{"allowed_apps":["*"]}', "a glob"),
    (b'{"allowed_apps":["/a"]}', "a leading slash"),
    (b'{"allowed_apps":["a/"]}', "a trailing slash"),
    (b'{"allowed_apps":["a//b"]}', "an empty segment"),
    (b'{"allowed_apps":["a/../b"]}', "a dot segment"),
    (b'{"allowed_apps":["a b"]}', "a space"),
    (b'{"allowed_apps":["a\\n"]}', "a line"),
    (b'{"allowed_apps":["\xc3\xa9"]}', "a letter that no app has"),
    (b'{"allowed_apps":["a"],"duration":0}', "no seconds"),
    (b'{"allowed_apps":["a"],"duration":1.5}', "half a second"),
    (b'{"allowed_apps":["a"],"token_expiration":true}', "a truth"),
    (b'{"allowed_apps":["a"],"token_expiration":"1"}', "text for seconds"),
    (b'{"allowed_apps":["a"]} x', "more than one value"),
    (b"[" * 10_000, "a deep nest"),
]


@pytest.mark.parametrize(("body", "app", "reason"), GOOD, ids=[row[2] for row in GOOD])
def test_what_clients_send_names_one_app(body: bytes, app: str, reason: str) -> None:
    assert asked_app(body) == app, reason


@pytest.mark.parametrize(("body", "reason"), BAD, ids=[row[1] for row in BAD])
def test_anything_else_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(Refusal) as refused:
        asked_app(body)
    assert refused.value.error_type == "input_denied", reason


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(body: bytes) -> None:
    with pytest.raises(Refusal):
        asked_app(body)
