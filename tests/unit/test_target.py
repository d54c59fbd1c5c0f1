"""The target grammar: the whole corpus, the kind table, endpoint ids, and that nothing raises anything but a refusal."""

from __future__ import annotations

import sys
from types import FrameType
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fal_proxy.errors import Refusal
from fal_proxy.exchange import Kind, Target
from fal_proxy.policy.target import resolve
from support.corpus import WEBHOOK_HOSTS, Case, cases

if TYPE_CHECKING:
    from _typeshed import TraceFunction

ID = "764cabcf-b745-4b3e-ae38-1200304cf45b"


def _resolve(url: str, method: str = "POST", methods: tuple[str, ...] = ("POST",)) -> Target:
    return resolve(url.encode(), method, methods)


def _is_accepted(case: Case) -> bool:
    if len(case.lines) != 1:
        return False  # several lines never reach the grammar: the gateway refuses them
    try:
        target = resolve(case.lines[0], case.method)
    except Refusal:
        return False
    return target.webhook is None or target.webhook.split(b"/")[2] in WEBHOOK_HOSTS


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.why[:60])
def test_corpus_target_comes_out_as_labelled(case: Case) -> None:
    assert _is_accepted(case) == case.allowed, case.why


@pytest.mark.parametrize("case", [case for case in cases() if case.allowed], ids=lambda case: case.why[:60])
def test_accepted_target_is_rebuilt_byte_for_byte(case: Case) -> None:
    target = resolve(case.lines[0], case.method)
    assert b"https://" + target.host + target.path_and_query == case.lines[0]


QUEUE = f"https://queue.fal.run/fal-ai/flux/requests/{ID}"
KINDS = [
    ("POST", "https://fal.run/fal-ai/flux/dev", Kind.RUN, "fal-ai/flux/dev", "a run"),
    (
        "POST",
        "https://fal.run/fal-ai/flux/dev/",
        Kind.RUN,
        "fal-ai/flux/dev",
        "one trailing slash is not part of the id",
    ),
    (
        "POST",
        "https://fal.run/fal-ai/flux/dev/stream",
        Kind.STREAM,
        "fal-ai/flux/dev",
        "the suffix decides, not accept",
    ),
    ("POST", "https://fal.run/fal-ai/x/stream/", Kind.STREAM, "fal-ai/x", "suffix and slash"),
    ("POST", "https://fal.run/fal-ai/x/realtime", Kind.RUN, "fal-ai/x", "a POST is no socket, the id is the app's"),
    ("POST", "https://fal.run/fal-ai/stream", Kind.RUN, "fal-ai/stream", "here stream is the alias"),
    (
        "POST",
        "https://fal.run/workflows/me/wf/stream",
        Kind.STREAM,
        "workflows/me/wf",
        "namespaces keep three segments",
    ),
    ("POST", "https://fal.run/a/caf%c3%a9", Kind.RUN, "a/caf%C3%A9", "escapes are upper-cased for matching"),
    ("POST", "https://fal.run/a/b/requests/c", Kind.RUN, "a/b/requests/c", "requests is reserved on the queue only"),
    ("POST", "https://queue.fal.run/fal-ai/flux/dev", Kind.SUBMIT, "fal-ai/flux/dev", "a submit"),
    ("POST", "https://queue.fal.run/fal-ai/flux/dev/stream", Kind.SUBMIT, "fal-ai/flux/dev", "same app, same globs"),
    ("GET", f"{QUEUE}/status", Kind.STATUS, "fal-ai/flux", "status"),
    ("GET", f"{QUEUE}/status/", Kind.STATUS, "fal-ai/flux", "fal's SDK asks with a slash"),
    ("GET", f"{QUEUE}/status?logs=1", Kind.STATUS, "fal-ai/flux", "with logs"),
    ("GET", f"{QUEUE}/status/stream?logs=0", Kind.STATUS_STREAM, "fal-ai/flux", "status stream"),
    ("GET", QUEUE, Kind.RESULT, "fal-ai/flux", "result"),
    ("GET", f"{QUEUE}/", Kind.RESULT, "fal-ai/flux", "result with a slash"),
    ("GET", f"{QUEUE}/response", Kind.RESULT, "fal-ai/flux", "the form of fal's docs"),
    ("PUT", f"{QUEUE}/cancel", Kind.CANCEL, "fal-ai/flux", "cancel"),
    ("GET", f"https://queue.fal.run/fal-ai/flux/dev/requests/{ID}", Kind.RESULT, "fal-ai/flux/dev", "full-path form"),
    ("GET", f"https://queue.fal.run/comfy/a/b/requests/{ID}", Kind.RESULT, "comfy/a/b", "namespace kept"),
    ("POST", "https://rest.fal.ai/tokens/", Kind.TOKEN, "", "token"),
    ("POST", "https://rest.alpha.fal.ai/tokens/realtime", Kind.TOKEN, "", "older host, newer path"),
    ("POST", "https://rest.fal.ai/storage/upload/initiate?storage_type=gcs", Kind.UPLOAD_INITIATE, "", "upload"),
    ("POST", "https://rest.fal.ai/storage/upload/initiate-multipart", Kind.UPLOAD_INITIATE, "", "multipart upload"),
    (
        "POST",
        "https://rest.fal.ai/storage/upload/complete-multipart",
        Kind.UPLOAD_INITIATE,
        "",
        "the official list has it",
    ),
    ("POST", "https://rest.fal.ai/storage/auth/token", Kind.UPLOAD_TOKEN, "", "CDN token"),
    ("POST", "https://wma.fal.run/ice", Kind.WMA, "", "servers for a world model"),
    ("POST", "https://wma.fal.run/session", Kind.WMA, "", "its session"),
    ("POST", "https://wma.fal.run/session/heartbeat", Kind.WMA, "", "and its heartbeat"),
]


@pytest.mark.parametrize(("method", "url", "kind", "endpoint_id", "reason"), KINDS)
def test_target_has_the_kind_and_endpoint_of_the_table(
    method: str, url: str, kind: Kind, endpoint_id: str, reason: str
) -> None:
    target = _resolve(url, method)
    assert (target.kind, target.endpoint_id) == (kind, endpoint_id), reason


def test_request_id_is_taken_from_queue_paths() -> None:
    assert _resolve(f"{QUEUE}/status", "GET").request_id == ID


WRONG_METHODS = [
    ("GET", "https://fal.run/fal-ai/flux/dev", "run takes POST unless the plan lists more"),
    ("HEAD", "https://fal.run/fal-ai/flux/dev", "HEAD is never listed"),
    ("GET", "https://queue.fal.run/fal-ai/flux/dev", "a submit is a POST"),
    ("POST", f"{QUEUE}/status", "status is a GET"),
    ("POST", f"{QUEUE}/cancel", "cancel is a PUT"),
    ("DELETE", QUEUE, "a result is a GET"),
    ("GET", "https://rest.fal.ai/tokens/", "rest takes POST"),
    ("GET", "https://wma.fal.run/ice", "so does wma"),
    ("OPTIONS", "https://fal.run/fal-ai/flux/dev", "an OPTIONS that is no preflight"),
]


@pytest.mark.parametrize(("method", "url", "reason"), WRONG_METHODS)
def test_known_shape_with_the_wrong_method_is_405_and_names_the_right_one(method: str, url: str, reason: str) -> None:
    with pytest.raises(Refusal) as caught:
        _resolve(url, method)
    assert caught.value.error_type == "method_not_allowed", reason
    assert dict(caught.value.headers)[b"allow"] in (b"GET", b"POST", b"PUT")


def test_plan_can_open_further_methods_on_run_endpoints_only() -> None:
    assert _resolve("https://fal.run/a/b", "GET", ("POST", "GET")).kind is Kind.RUN
    with pytest.raises(Refusal):
        _resolve("https://queue.fal.run/a/b", "GET", ("POST", "GET"))


INVALID = [
    ("https://queue.fal.run/a/b/requests", "no id"),
    (f"https://queue.fal.run/a/b/requests/{ID}/logs", "unknown tail"),
    (f"https://queue.fal.run/a/b/requests/{ID}/cancel/", "fal knows no such form"),
    (f"https://queue.fal.run/a/b/requests/{ID}/requests/{ID}", "requests twice"),
    ("https://queue.fal.run/a/requests", "requests is reserved as an alias"),
    ("https://queue.fal.run/requests/a", "requests is reserved as an owner"),
    ("https://queue.fal.run/workflows/a/requests/x", "too short for a namespace"),
    ("https://queue.fal.run/a/b/requests/x%20y", "no request id"),
    ("https://queue.fal.run/a/b?webhook=x", "unknown queue parameter"),
    ("https://queue.fal.run/a/b?logs=1&logs=0", "a parameter given twice"),
    (f"{QUEUE}?fal_webhook=https%3A%2F%2Fapp.example.com%2F", "a webhook without a submit"),
    ("https://fal.run/a/b?fal_webhook=https%3A%2F%2Fapp.example.com%2F", "a webhook on a run"),
    ("https://fal.run/a/b?", "an empty query"),
    ("https://fal.run/a/b?%66al_key=x", "a credential in disguise"),
    ("https://fal.run/a/b?%2566al_key=x", "a credential in two layers of disguise"),
    ("https://fal.run/a/b?%" + "25" * 4000 + "66al_key=x", "a credential in four thousand layers of disguise"),
    ("https://fal.run/a/b?%25%32%35%36%36al_key=x", "a credential whose escapes are themselves escaped"),
    ("https://fal.run/a/b?FAL_KEY=x", "a credential in upper case"),
    ("https://fal.run/a/b?" + "&".join("a=1" for _ in range(101)), "101 parameters"),
    ("https://fal.run/" + "/".join("a" for _ in range(33)), "33 segments"),
    ("https://fal.run/a/" + "b" * 8192, "longer than 8 KiB"),
    ("https://rest.fal.ai/storage/upload/initiate/", "a slash that no client sends"),
    ("https://wma.fal.run/session/", "as above"),
    ("https://wma.fal.run/fal-ai/flux", "wma runs nothing"),
    ("https://wma.fal.run/tokens/", "another host's path"),
    ("https://rest.fal.ai/ice", "another host's path"),
]


@pytest.mark.parametrize(("url", "reason"), INVALID)
def test_anything_else_is_an_invalid_target(url: str, reason: str) -> None:
    for method in ("GET", "POST", "PUT"):
        with pytest.raises(Refusal) as caught:
            _resolve(url, method)
        assert caught.value.error_type == "invalid_target", reason


def test_limits_themselves_are_still_allowed() -> None:
    _resolve("https://fal.run/" + "/".join("a" for _ in range(32)))
    _resolve("https://fal.run/a/b?" + "&".join("a=1" for _ in range(100)))
    _resolve("https://fal.run/a/" + "b" * (8192 - len("https://fal.run/a/")))


def test_layers_of_disguise_cost_no_more_than_their_length() -> None:
    steps = 0

    def count(frame: FrameType, event: str, argument: object) -> TraceFunction:
        nonlocal steps
        steps += 1
        return count

    sys.settrace(count)
    try:
        _resolve("https://fal.run/a/b?%" + "25" * 2000 + "41" + "%25" * 1388)
    finally:
        sys.settrace(None)
    assert steps < 10 * 8192


@given(st.binary(max_size=200) | st.builds(lambda tail: b"https://fal.run/a/b" + tail, st.binary(max_size=60)))
def test_any_bytes_give_a_target_or_a_refusal_and_a_target_means_its_own_bytes(raw: bytes) -> None:
    try:
        target = resolve(raw, "POST")
    except Refusal:
        return
    assert b"https://" + target.host + target.path_and_query == raw
    assert all(0x21 <= byte <= 0x7E for byte in raw)
