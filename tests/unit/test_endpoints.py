"""Endpoint globs, and what a plan opens for each kind of request."""

from __future__ import annotations

import re

import pytest

from fal_proxy.errors import Refusal
from fal_proxy.exchange import Kind, Target
from fal_proxy.policy.endpoints import Globs
from fal_proxy.policy.plans import closed_plan, compile_plan, permit
from fal_proxy.settings import Plan

MATCHES = [
    ("fal-ai/flux", "fal-ai/flux", True, "itself"),
    ("fal-ai/flux", "fal-ai/flux/dev", False, "a plain glob is one endpoint"),
    ("fal-ai/flux", "fal-ai/flux2", False, "no prefix of a segment"),
    ("fal-ai/flux", "xfal-ai/flux", False, "no suffix of a segment"),
    ("fal-ai/flux", "FAL-AI/flux", False, "fal tells cases apart"),
    ("fal-ai/*", "fal-ai/flux", True, "one segment"),
    ("fal-ai/*", "fal-ai/flux/dev", False, "one segment only"),
    ("fal-ai/*", "fal-ai", False, "exactly one segment"),
    ("*/flux", "fal-ai/flux", True, "one segment in front"),
    ("fal-ai/*/dev", "fal-ai/flux/dev", True, "one segment inside"),
    ("fal-ai/*/dev", "fal-ai/dev", False, "not without it"),
    ("fal-ai/flux-*", "fal-ai/flux-pro", True, "part of a segment"),
    ("fal-ai/flux-*", "fal-ai/flux-pro/v1", False, "a star never crosses a slash"),
    ("fal-ai/flux/**", "fal-ai/flux", True, "x/** also matches x"),
    ("fal-ai/flux/**", "fal-ai/flux/dev", True, "one more"),
    ("fal-ai/flux/**", "fal-ai/flux/dev/image-to-image", True, "two more"),
    ("fal-ai/flux/**", "fal-ai/fluxx", False, "the boundary is a slash"),
    ("fal-ai/flux/**", "other/fal-ai/flux", False, "anchored in front"),
    ("fal-ai/**/lora", "fal-ai/lora", True, "any number includes none"),
    ("fal-ai/**/lora", "fal-ai/a/b/lora", True, "two inside"),
    ("fal-ai/**/lora", "fal-ai/alora", False, "the boundary is a slash"),
    ("**/dev", "fal-ai/flux/dev", True, "two in front"),
    ("**/flux/dev", "flux/dev", True, "none in front"),
    ("**/dev", "fal-ai/xdev", False, "the boundary is a slash"),
    ("**", "fal-ai/flux/dev", True, "everything"),
    ("**/**", "fal-ai/flux", True, "everything, said twice"),
    ("a.b/c+d", "a.b/c+d", True, "characters of regular expressions mean themselves"),
    ("a.b/c", "axb/c", False, "as above"),
    ("a/b|c", None, False, "not a character of a path"),
    ("a/(b)", "a/(b)", True, "parentheses mean themselves"),
    ("a/%c3%a9", "a/%C3%A9", True, "escapes are compared in upper case"),
    ("a/%C3%A9", "a/%C3%A9", True, "as above"),
]


@pytest.mark.parametrize(("glob", "endpoint_id", "matches", "reason"), MATCHES)
def test_glob_matches_segment_by_segment(glob: str, endpoint_id: str | None, matches: bool, reason: str) -> None:
    if endpoint_id is None:
        with pytest.raises(ValueError):
            Globs([glob])
    else:
        assert Globs([glob]).match(endpoint_id) is matches, reason
        assert Globs(["never/this", glob]).match(endpoint_id) is matches, "one of several"


def test_no_globs_open_nothing() -> None:
    assert not Globs([]).match("fal-ai/flux")
    assert not Globs([]).match("")


MALFORMED = [
    ("", "empty"),
    ("/fal-ai/flux", "a leading slash"),
    ("fal-ai/flux/", "a trailing slash"),
    ("fal-ai//flux", "an empty segment"),
    ("fal-ai/flux?x", "a query"),
    ("fal-ai/flux dev", "a space"),
    ("fal-ai/flux\n", "a line end"),
    ("fal-ai/flux**", "** beside something"),
    ("fal-ai/***", "three stars"),
    ("fal-ai/[ab]", "sets are unknown"),
    ("fal-ai/{a,b}", "alternatives are unknown"),
    ("fal-ai/é", "not ASCII"),
]


@pytest.mark.parametrize(("glob", "reason"), MALFORMED)
def test_malformed_glob_is_named(glob: str, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        Globs(["a/b", glob])
    assert repr(glob) in str(caught.value), reason


def _target(kind: Kind, endpoint_id: str = "") -> Target:
    return Target(b"fal.run", b"/x", None, kind, endpoint_id)


FLUX = compile_plan("free", Plan(endpoints=("fal-ai/flux/**",)))
PERMITTED = [
    (_target(Kind.RUN, "fal-ai/flux/dev"), "direct", None, "opened"),
    (_target(Kind.STREAM, "fal-ai/flux/dev"), "direct", None, "opened"),
    (_target(Kind.SUBMIT, "fal-ai/flux"), "direct", None, "opened"),
    (_target(Kind.RUN, "fal-ai/veo"), "direct", "endpoint_denied", "not opened"),
    (_target(Kind.STREAM, "fal-ai/veo"), "direct", "endpoint_denied", "not opened"),
    (_target(Kind.SUBMIT, "fal-ai/veo"), "direct", "endpoint_denied", "not opened"),
    (_target(Kind.STATUS, "fal-ai/veo"), "direct", None, "reads follow their request"),
    (_target(Kind.STATUS_STREAM, "fal-ai/veo"), "direct", None, "as above"),
    (_target(Kind.RESULT, "fal-ai/veo"), "direct", None, "as above"),
    (_target(Kind.CANCEL, "fal-ai/veo"), "direct", None, "as above"),
    (_target(Kind.TOKEN), "relay", None, "a ticket, whose socket is judged for itself"),
    (_target(Kind.TOKEN), "off", "mode_off", "no realtime, no tickets"),
    (_target(Kind.REALTIME, "fal-ai/flux/dev"), "relay", None, "opened"),
    (_target(Kind.REALTIME, "fal-ai/veo"), "relay", "endpoint_denied", "not opened"),
    (_target(Kind.REALTIME, "fal-ai/flux"), "off", "mode_off", "no realtime"),
    (_target(Kind.TOKEN), "token", "mode_off", "this plan has not opted in"),
    (_target(Kind.REALTIME, "fal-ai/flux"), "token", "mode_off", "sockets go to fal itself"),
    (_target(Kind.WMA), "relay", "mode_off", "world models are off unless realtime.wma"),
    (_target(Kind.UPLOAD_TOKEN), "direct", "mode_off", "the CDN's bearer stays here"),
    (_target(Kind.UPLOAD_TOKEN), "relay", None, "answered with a capability"),
    (_target(Kind.UPLOAD_INITIATE), "direct", None, "the browser uploads with a signed URL"),
    (_target(Kind.UPLOAD_INITIATE), "off", "mode_off", "no uploads"),
]


@pytest.mark.parametrize(("target", "mode", "refused", "reason"), PERMITTED)
def test_plan_opens_what_it_lists_and_reads_follow(target: Target, mode: str, refused: str | None, reason: str) -> None:
    if refused is None:
        permit(target, FLUX, storage_mode=mode, realtime_mode=mode)
        return
    with pytest.raises(Refusal) as caught:
        permit(target, FLUX, storage_mode=mode, realtime_mode=mode)
    assert caught.value.error_type == refused, reason


def test_plan_that_opted_in_hands_out_tokens_and_world_models_open_with_their_setting() -> None:
    plan = compile_plan("paid", Plan(endpoints=("a/b",), realtime_token=True))
    permit(_target(Kind.TOKEN), plan, storage_mode="direct", realtime_mode="token")
    permit(_target(Kind.WMA), plan, storage_mode="direct", realtime_mode="relay", wma=True)
    with pytest.raises(Refusal, match="no plan called 'gone'"):
        permit(_target(Kind.WMA), closed_plan("gone"), storage_mode="direct", realtime_mode="relay", wma=True)


COVERED = [
    ("**", ("fal-ai", "lcm"), True, True, "everything"),
    ("fal-ai/**", ("fal-ai", "lcm"), True, True, "everything of the owner"),
    ("fal-ai/lcm/**", ("fal-ai", "lcm"), True, True, "the whole alias"),
    ("*/lcm/**", ("fal-ai", "lcm"), True, True, "of any owner"),
    ("**/lcm/**", ("workflows", "me", "lcm"), True, True, "wherever it is"),
    ("fal-*/l*/**", ("fal-ai", "lcm"), True, True, "parts of segments"),
    ("fal-ai/lcm", ("fal-ai", "lcm"), False, True, "the alias, but nothing below"),
    ("fal-ai/lcm/*", ("fal-ai", "lcm"), False, True, "one below, but not the alias"),
    ("fal-ai/lcm/*/**", ("fal-ai", "lcm"), False, True, "all below, but not the alias"),
    ("fal-ai/lcm/fast", ("fal-ai", "lcm"), False, True, "one path"),
    ("**/fast", ("fal-ai", "lcm"), False, True, "one path, wherever it is"),
    ("fal-ai/lcm-2/**", ("fal-ai", "lcm"), False, False, "another alias"),
    ("fal-ai/lcmx", ("fal-ai", "lcm"), False, False, "a longer name"),
    ("fal-ai", ("fal-ai", "lcm"), False, False, "no endpoint at all"),
    ("other/lcm/**", ("fal-ai", "lcm"), False, False, "another owner"),
    ("fal-ai/lcm/**", (None, "lcm"), True, True, "a bare alias: one owner's"),
    ("fal-ai/other/**", (None, "lcm"), False, False, "a bare alias: nobody's"),
    ("fal-ai/lcm/realtime", (None, "lcm"), False, True, "a bare alias: not the whole of it"),
    ("workflows/me/lcm/**", (None, "lcm"), False, False, "a namespace is no owner"),
    ("workflows/lcm/**", (None, "lcm"), False, True, "nor is it one whose apps are called after a user"),
    ("workflows/me/lcm/**", ("workflows", None, "lcm"), True, True, "the alias in a namespace"),
]


@pytest.mark.parametrize(("glob", "app", "covered", "reached", "reason"), COVERED)
def test_glob_covers_an_app_with_all_that_is_below_it_or_reaches_some_of_it(
    glob: str, app: tuple[str | None, ...], covered: bool, reached: bool, reason: str
) -> None:
    globs = Globs([glob])
    assert (globs.cover(app), globs.reach(app)) == (covered, reached), reason


def test_two_globs_cover_together_only_what_one_of_them_covers() -> None:
    assert not Globs(["fal-ai/lcm", "fal-ai/lcm/*/**"]).cover(("fal-ai", "lcm"))
    assert not Globs([]).cover((None, "lcm"))
    assert not Globs([]).reach((None, "lcm"))


def test_refused_endpoint_and_plan_are_named() -> None:
    with pytest.raises(Refusal, match=re.escape("plan 'free' does not open fal-ai/veo")):
        permit(_target(Kind.RUN, "fal-ai/veo"), FLUX, storage_mode="direct", realtime_mode="relay")


def test_plan_is_compiled_with_lower_case_fields() -> None:
    plan = compile_plan("free", Plan(endpoints=("a/b",), methods=("POST", "GET"), allow_headers=("X-Fal-Tags",)))
    assert (plan.name, plan.methods) == ("free", frozenset(["POST", "GET"]))
    assert plan.allow_headers == frozenset([b"x-fal-tags"])
    assert plan.globs.match("a/b")


@pytest.mark.parametrize("name", ["authorization", "x-fal-user-id", "", "x-fal-\u2603"])
def test_field_outside_the_list_cannot_be_opened(name: str) -> None:
    with pytest.raises(ValueError, match="x-fal-store-io"):
        compile_plan("free", Plan(allow_headers=(name,)))


@pytest.mark.parametrize("kind", [Kind.RUN, Kind.STATUS, Kind.UPLOAD_INITIATE])
def test_plan_that_the_settings_do_not_know_opens_nothing(kind: Kind) -> None:
    with pytest.raises(Refusal, match="no plan called 'gone'") as caught:
        permit(_target(kind, "fal-ai/flux/dev"), closed_plan("gone"), storage_mode="direct", realtime_mode="relay")
    assert caught.value.error_type == "endpoint_denied"
