"""Input rules: what they change, what they refuse, and that no spelling of an input gets around them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fal_proxy.errors import Refusal
from fal_proxy.exchange import Kind, Target
from fal_proxy.policy.inputs import InputRules, carries_input, decode_input, encode_input, judge_shape
from fal_proxy.request import Request
from fal_proxy.settings import InputRule

ENDPOINT = "fal-ai/flux/dev"
FLUX = InputRule(
    endpoint="fal-ai/flux/**",
    default={"num_images": 1},
    clamp={"num_images": (1, 2), "guidance": (0.5, 20)},
    force={"enable_safety_checker": True},
    drop=("sync_mode",),
    reject=("loras",),
)
SAFE = {"enable_safety_checker": True}


def _judge(body: bytes, *rules: InputRule) -> Any:
    return json.loads(InputRules(rules or [FLUX]).judge(ENDPOINT, body))


def _sent(body: bytes) -> bytes | None:
    """Return what would be sent, None for a refused input; whatever else happens, happens to the test."""
    try:
        return InputRules([FLUX]).judge(ENDPOINT, body)
    except Refusal as refusal:
        if refusal.error_type != "input_denied":
            raise
        return None


def _refusal(body: bytes, *rules: InputRule) -> str:
    with pytest.raises(Refusal) as caught:
        InputRules(rules or [FLUX]).judge(ENDPOINT, body)
    assert (caught.value.error_type, caught.value.status) == ("input_denied", 422)
    return caught.value.detail


CHANGED = [
    (b"{}", {"num_images": 1}, "an absent field gets its default"),
    (b"", {"num_images": 1}, "an empty body is an empty object"),
    (b' \t\r\n{"num_images": 2} \n', {"num_images": 2}, "whitespace around the object means nothing"),
    (b'{"num_images": 4}', {"num_images": 2}, "above the range: its upper end"),
    (b'{"num_images": -1}', {"num_images": 1}, "below the range: its lower end"),
    (b'{"num_images": 4.0}', {"num_images": 2}, "a fraction is a number too"),
    (b'{"num_images": 1e1}', {"num_images": 2}, "so is an exponent"),
    (b'{"num_images": 1.5}', {"num_images": 1.5}, "a number inside stays as it is"),
    (b'{"num_images": 18446744073709551615}', {"num_images": 2}, "the largest integer is out of range like any other"),
    (
        b'{"num_images": 1, "num_images": 4}',
        {"num_images": 2},
        "of two equal keys the last is judged and the only sent",
    ),
    (b'{"num_images": 4, "num_images": 1}', {"num_images": 1}, "in either order"),
    (b'{"num\\u005fimages": 4}', {"num_images": 2}, "an escaped key is the same key"),
    (b'{"enable_safety_checker": false}', {"num_images": 1}, "force overrides"),
    (b'{"enable_safety_checker": "no"}', {"num_images": 1}, "force asks for no type"),
    (b'{"sync_mode": true}', {"num_images": 1}, "drop removes"),
    (b'{"sync_mode": 1, "sync\\u005fmode": 2}', {"num_images": 1}, "drop removes every spelling"),
    (b'{"Num_Images": 4}', {"num_images": 1, "Num_Images": 4}, "keys are compared exactly: this is another field"),
    (b'{"a": {"num_images": 9}}', {"num_images": 1, "a": {"num_images": 9}}, "rules see top-level fields only"),
    (b'{"seed": 18446744073709551615}', {"num_images": 1, "seed": 2**64 - 1}, "64 bits pass"),
    (b'{"seed": -9223372036854775808}', {"num_images": 1, "seed": -(2**63)}, "signed ones too"),
    (b'{"x": "\\ud83d\\ude00"}', {"num_images": 1, "x": "\U0001f600"}, "a pair of surrogates is a character"),
    (b'{"x": 0.1}', {"num_images": 1, "x": 0.1}, "an ordinary fraction survives"),
]


@pytest.mark.parametrize(("body", "expected", "reason"), CHANGED, ids=[row[2] for row in CHANGED])
def test_input_is_changed_as_the_rule_says(body: bytes, expected: dict[str, Any], reason: str) -> None:
    assert _judge(body) == {**expected, **SAFE}, reason


REFUSED = [
    (b'{"loras": []}', "loras", "a rejected field"),
    (b'{"loras": null}', "loras", "present is present, whatever the value"),
    (b'{"lor\\u0061s": 1}', "loras", "an escaped key is the same key"),
    (b'{"num_images": "4"}', "num_images", "a text that others may read as a number"),
    (b'{"num_images": "2"}', "num_images", "even one in range"),
    (b'{"num_images": true}', "num_images", "a boolean is no number"),
    (b'{"num_images": null}', "num_images", "null is no number, and not absent either"),
    (b'{"num_images": [1]}', "num_images", "a list is no number"),
    (b'{"num_images": {"a": 1}}', "num_images", "an object is no number"),
    (b"[]", "object", "not an object"),
    (b'"x"', "object", "not an object"),
    (b"null", "object", "not an object"),
    (b"1", "object", "not an object"),
    (b" ", "object", "blank is not empty"),
    (b"{", "object", "cut off"),
    (b'{"a": 1,}', "object", "a trailing comma"),
    (b"{'a': 1}", "object", "single quotes"),
    (b'{"a": 1} // x', "object", "a comment"),
    (b'{"a": 1}{"a": 2}', "object", "two objects"),
    (b"{}\x00", "object", "bytes behind the end"),
    (b"\xef\xbb\xbf{}", "object", "a byte order mark"),
    (b'{"a": "\xff"}', "object", "no UTF-8"),
    (b'{"\xff": 1}', "object", "no UTF-8 in a key"),
    (b'{"a": "\xc0\xaf"}', "object", "overlong UTF-8"),
    ('{"a": 1}'.encode("utf-16"), "object", "UTF-16"),
    (b'{"a": "\xed\xa0\x80"}', "object", "an encoded surrogate"),
    (b'{"a": "\\ud800"}', "object", "a lone surrogate"),
    (b'{"\\udfff": 1}', "object", "a lone surrogate in a key"),
    (b'{"a": NaN}', "object", "NaN is no JSON"),
    (b'{"a": -Infinity}', "object", "nor is infinity"),
    (b'{"a": 1e400}', "object", "a number that no double holds"),
    (b'{"a": 01}', "object", "a leading zero, octal to some"),
    (b'{"a": 0x10}', "object", "hexadecimal"),
    (b'{"a": +1}', "object", "a plus sign"),
    (b'{"a": "\n"}', "object", "a raw control character"),
    (b'{"a": 18446744073709551616}', "64 bits", "beyond 64 bits"),
    (b'{"a": -9223372036854775809}', "64 bits", "beyond 64 bits, signed"),
    (b'{"a": [{"b": 18446744073709551616}]}', "64 bits", "beyond 64 bits, at any depth"),
    (b'{"num_images": 18446744073709551616}', "64 bits", "beyond 64 bits under a clamp"),
    (b'{"a": ' + b"9" * 4000 + b"}", "64 bits", "thousands of digits"),
    (b'{"a": ' + b"9" * 100_000 + b"}", "object", "more digits than are ever converted"),
    (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep", "nested a hundred thousand times"),
    (b'{"a": ' * 5000 + b"1" + b"}" * 5000, "deep", "the same with objects"),
    (b'{"a": ' + b"[" * 100_000, "deep", "nested without an end"),
]


@pytest.mark.parametrize(("body", "named", "reason"), REFUSED, ids=[row[2] for row in REFUSED])
def test_input_that_could_get_around_a_rule_is_refused_with_a_sentence(body: bytes, named: str, reason: str) -> None:
    assert named in _refusal(body), reason


def test_depth_at_the_edge_is_refused_or_passes_but_never_a_fault() -> None:
    for depth in range(1, 1100, 7):
        body = b'{"a": ' + b"[" * depth + b"]" * depth + b"}"
        sent = _sent(body)
        assert sent is None or msgspec.json.decode(sent)["a"] is not None


def test_refusal_quotes_nothing_that_the_caller_sent() -> None:
    assert "canary" not in _refusal(b'{"canary": }')
    assert "canary" not in _refusal(b'{"num_images": "canary"}')


def _rule(**parts: Any) -> InputRule:
    return InputRule(endpoint="**", **parts)


ORDERS: list[tuple[list[InputRule], bytes, dict[str, Any], str]] = [
    ([_rule(default={"n": 9}, clamp={"n": (1, 2)})], b"{}", {"n": 2}, "a default is clamped"),
    ([_rule(clamp={"n": (1, 2)}, force={"n": 9})], b'{"n": 1}', {"n": 9}, "force has the last word within a rule"),
    ([_rule(reject=("n",), default={"n": 3})], b"{}", {"n": 3}, "a default for what callers may not set"),
    (
        [_rule(force={"n": 9}), _rule(clamp={"n": (1, 2)})],
        b"{}",
        {"n": 2},
        "a later rule changes an earlier one's value",
    ),
    (
        [_rule(clamp={"n": (1, 2)}), _rule(clamp={"n": (1, 4)})],
        b'{"n": 9}',
        {"n": 2},
        "the narrower of two clamps holds",
    ),
    ([_rule(clamp={"n": (1, 2)}), _rule(clamp={"n": (3, 4)})], b'{"n": 1}', {"n": 3}, "of contradictions the later"),
    ([_rule(drop=("n",)), _rule(default={"n": 1})], b'{"n": 9}', {"n": 1}, "dropped, then the operator's default"),
    ([_rule(default={"n": 1}), _rule(reject=("n",))], b"{}", {"n": 1}, "reject judges what the caller sent"),
    (
        [InputRule(endpoint="a/b", force={"n": 1}), _rule(default={"m": 1})],
        b"{}",
        {"m": 1},
        "only what matches applies",
    ),
]


@pytest.mark.parametrize(("rules", "body", "expected", "reason"), ORDERS, ids=[row[3] for row in ORDERS])
def test_rules_apply_in_order(rules: list[InputRule], body: bytes, expected: dict[str, Any], reason: str) -> None:
    assert _judge(body, *rules) == expected, reason


def test_an_earlier_rule_hides_nothing_from_a_later_reject() -> None:
    assert "loras" in _refusal(b'{"loras": 1}', _rule(drop=("loras",)), _rule(reject=("loras",)))


def test_given_input_and_rule_values_stay_as_they_are() -> None:
    rules = InputRules([_rule(default={"list": [1]}, force={"n": 1})])
    sent: dict[str, Any] = {"n": 5}
    assert rules.apply(ENDPOINT, sent) == {"n": 1, "list": [1]}
    assert sent == {"n": 5}


MATCHES = [
    ("fal-ai/flux/**", "fal-ai/flux/dev", True, "a glob"),
    ("fal-ai/flux/**", "fal-ai/flux", True, "** is also nothing"),
    ("fal-ai/flux/dev", "fal-ai/flux/schnell", False, "another endpoint"),
    ("fal-ai/flux/dev", "fal-ai/flux/dev/extra", False, "one endpoint is not what lies below it"),
    ("fal-ai/flux/dev", "Fal-AI/FLUX/dev", True, "a restriction does not depend on the case that a router may fold"),
    ("Fal-AI/flux", "fal-ai/flux", True, "nor on that of the settings"),
    ("a/b+c", "a/b%2Bc", True, "a needless escape is the same endpoint"),
    ("a/b%2bc", "a/b+c", True, "in the settings too"),
    ("a/b@c:d", "a/b%40c%3Ad", True, "every character with two spellings"),
    ("a/caf%c3%a9", "a/caf%C3%A9", True, "escapes that are needed"),
    ("a/b", "", False, "what names no endpoint"),
]


@pytest.mark.parametrize(("glob", "endpoint_id", "matches", "reason"), MATCHES, ids=[row[3] for row in MATCHES])
def test_rule_matches_every_spelling_of_its_endpoint(glob: str, endpoint_id: str, matches: bool, reason: str) -> None:
    rules = InputRules([InputRule(endpoint=glob, force={"forced": 1})])
    assert rules.applies(endpoint_id) == matches, reason
    assert rules.apply(endpoint_id, {}) == ({"forced": 1} if matches else {}), reason


def test_without_rules_nothing_is_judged() -> None:
    assert not InputRules([]).applies(ENDPOINT)


SHAPES: list[tuple[str, bytes | None, list[tuple[bytes, bytes]], str | None, str]] = [
    ("POST", None, [], None, "the usual request"),
    ("POST", b"fal_webhook=https://example.com", [], None, "a webhook is no input"),
    ("POST", None, [(b"content-type", b"text/plain")], None, "whatever the body calls itself"),
    ("GET", None, [], "POST", "a GET carries its input in the query"),
    ("PUT", None, [], "POST", "another method may mean anything"),
    ("POST", b"num_images=4", [], "query", "a second place for input"),
    ("POST", b"fal_webhook=x&num_images=4", [], "query", "behind an allowed parameter"),
    ("POST", b"fal_max_queue_length=3", [], "query", "only fal_webhook is allowed"),
    ("POST", b"&", [], "query", "empty parameters"),
    ("POST", None, [(b"content-encoding", b"gzip")], "Content-Encoding", "what we cannot read"),
    ("POST", None, [(b"content-encoding", b"identity")], "Content-Encoding", "even a harmless one"),
]


@pytest.mark.parametrize(("method", "query", "headers", "named", "reason"), SHAPES, ids=[row[4] for row in SHAPES])
def test_only_a_plain_post_carries_a_judged_input(
    method: str, query: bytes | None, headers: list[tuple[bytes, bytes]], named: str | None, reason: str
) -> None:
    target = Target(b"fal.run", b"/fal-ai/flux", query, Kind.RUN, "fal-ai/flux")
    request = Request(method, b"/", None, headers, "", "http")
    if named is None:
        judge_shape(target, request)
        return
    with pytest.raises(Refusal, match=named) as caught:
        judge_shape(target, request)
    assert caught.value.error_type == "input_denied", reason


def test_exactly_run_stream_and_submit_carry_input() -> None:
    carrying = {kind for kind in Kind if carries_input(Target(b"", b"", None, kind))}
    assert carrying == {Kind.RUN, Kind.STREAM, Kind.SUBMIT}


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(codec="utf-8"))
    | st.sampled_from(["1", "4", "true"])
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
FIELDS = st.sampled_from(["num_images", "guidance", "enable_safety_checker", "sync_mode", "loras", "prompt", "seed"])


@given(st.dictionaries(FIELDS | st.text(max_size=4), VALUES))
def test_any_object_comes_out_as_every_part_of_the_rule_demands_or_not_at_all(sent: dict[str, Any]) -> None:
    judged = _sent(json.dumps(sent).encode())
    if judged is None:
        return
    result = json.loads(judged)
    assert "loras" not in sent
    assert "sync_mode" not in result
    assert result["enable_safety_checker"] is True
    for name, (low, high) in FLUX.clamp.items():
        if name in sent or name in FLUX.default:
            assert not isinstance(result[name], bool)
            assert low <= result[name] <= high
    for name in sent.keys() - {"num_images", "guidance", "enable_safety_checker", "sync_mode"}:
        assert result[name] == sent[name], "what no rule names stays"


@given(st.binary() | st.dictionaries(FIELDS, VALUES).map(lambda sent: json.dumps(sent, ensure_ascii=False).encode()))
def test_any_bytes_are_refused_or_come_out_as_json(body: bytes) -> None:
    sent = _sent(body)
    assert sent is None or isinstance(json.loads(sent), dict)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_survive_the_encoding_anew(sent: dict[str, float]) -> None:
    assert decode_input(encode_input(sent)) == sent
