"""The grammar of --faults, and what a draw decides."""

from random import Random
from typing import get_args

import pytest

from fal_proxy.emulator.addresses import glob
from fal_proxy.emulator.faults import Fault, FaultKind, Strike, Victim, draw, parse_faults


def test_faults_are_read_in_order_with_their_defaults() -> None:
    text = "fal-ai/flux/**:status=429@0.25; emulator/*:delay=1.5 ;a/b:reset;a/b:stall;a/b:truncate=9;**:nginx502@.5;"
    assert parse_faults(text) == (
        Fault("fal-ai/flux/**", "status", 429, 0.25),
        Fault("emulator/*", "delay", 1.5),
        Fault("a/b", "reset"),
        Fault("a/b", "stall", 0),
        Fault("a/b", "truncate", 9),
        Fault("**", "nginx502", None, 0.5),
    )
    assert parse_faults("a/b:drop;a/b:garbage=2;a/b:oversized;a/b:close;a/b:close=4001") == (
        Fault("a/b", "drop", 0),
        Fault("a/b", "garbage", 2),
        Fault("a/b", "oversized", 16 * 1024 * 1024 + 1),
        Fault("a/b", "close", 1013),
        Fault("a/b", "close", 4001),
    )
    hooks = "late;a/b:webhook_late=0.5;a/b:webhook_expired;a/b:webhook_huge;a/b:webhook_truncated;a/b:webhook_twice@0.5"
    assert parse_faults(f"a/b:webhook_{hooks}") == (
        Fault("a/b", "webhook_late", 5),
        Fault("a/b", "webhook_late", 0.5),
        Fault("a/b", "webhook_expired", 600),
        Fault("a/b", "webhook_huge", 20 * 1024 * 1024),
        Fault("a/b", "webhook_truncated"),
        Fault("a/b", "webhook_twice", None, 0.5),
    )
    assert parse_faults("a/b:status") == (Fault("a/b", "status", 503),)
    assert parse_faults("  ") == ()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a/b", "GLOB:KIND"),
        (":status", "GLOB:KIND"),
        ("a/b:explode", "unknown kind 'explode'"),
        ("a/b:Status", "unknown kind 'Status'"),
        ("a/b:status=200", "from 400 to 599"),
        ("a/b:status=x", "status wants a whole number, not 'x'"),
        ("a/b:delay=-1", "delay wants seconds, not '-1'"),
        ("a/b:reset=", "reset wants a whole number, not ''"),
        ("a/b:status=503@2", "from 0 to 1, not '2'"),
        ("a/b:status=503@", "from 0 to 1, not ''"),
        ("a/b:nginx502=502", "nginx502 takes no argument"),
        ("a b:status", "'a b' is no glob"),
        ("a/b:close=1005", "close wants a code that a peer may send"),
        ("a/b:close=999", "close wants a code that a peer may send"),
        ("a/b:oversized=0", "oversized wants from 1 to"),
        ("a/b:webhook_late=soon", "webhook_late wants seconds, not 'soon'"),
        ("a/b:webhook_huge=0", "webhook_huge wants from 1 to"),
        ("a/b:webhook_expired=-5", "webhook_expired wants a whole number, not '-5'"),
        *[
            (f"a/b:webhook_{kind}=1", f"webhook_{kind} takes no argument")
            for kind in ("early", "twice", "disorder", "forged", "unknown", "rotated")
        ],
        ("a/b:webhook_", "unknown kind 'webhook_'"),
        ("a/b:drop=x", "drop wants a whole number, not 'x'"),
        ("ok/ok:reset;a/b:nope", "'a/b:nope'"),
    ],
)
def test_a_wrong_part_is_named_in_one_sentence(text: str, names: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_faults(text)
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("fal-ai/flux/*", "fal-ai/flux/dev", True),
        ("fal-ai/flux/*", "fal-ai/flux/dev/image-to-image", False),
        ("fal-ai/flux/**", "fal-ai/flux", True),
        ("fal-ai/flux/**", "fal-ai/flux/dev/image-to-image", True),
        ("fal-ai/flux/**", "fal-ai/fluxx", False),
        ("**", "rest.fal.ai/storage/upload/initiate", True),
        ("**/cancel", "queue.fal.run/a/b/requests/1/cancel", True),
        ("a/**/d", "a/d", True),
        ("a/**/d", "a/b/c/d", True),
        ("a.b", "axb", False),
    ],
)
def test_globs_take_one_segment_for_a_star_and_any_number_for_two(pattern: str, name: str, matches: bool) -> None:
    assert bool(glob(pattern).fullmatch(name)) is matches


def test_delays_add_up_and_of_the_rest_the_first_drawn_wins() -> None:
    faults = parse_faults("**:delay=1;a/*:delay=2;a/b:status=500;a/b:reset")
    strike = draw(faults, ["fal.run/a/b", "a/b"], Random(0))
    assert strike.delay_seconds == 3
    assert strike.fault == faults[2]
    assert draw(faults, ["c/d"], Random(0)).fault is None


def test_a_probability_strikes_about_that_often_and_the_same_seed_strikes_the_same() -> None:
    faults = parse_faults("a/b:status@0.3")
    drawn = [[draw(faults, ["a/b"], rng).fault is not None for _ in range(1000)] for rng in (Random(5), Random(5))]
    assert drawn[0] == drawn[1]
    assert 250 < sum(drawn[0]) < 350


def test_every_kind_strikes_something_and_no_kind_of_webhooks_a_request_or_a_socket() -> None:
    for kind in get_args(FaultKind):
        fault = Fault("a/b", kind, 1)
        struck = {victim for victim in get_args(Victim) if draw([fault], ["a/b"], Random(1), victim) != Strike()}
        if kind.startswith("webhook_"):
            assert struck in ({"webhook"}, {"attempt"}), kind
        else:
            assert struck
            assert struck <= {"request", "socket"}


def test_a_kind_of_sockets_strikes_no_request_and_the_reverse() -> None:
    faults = parse_faults("a/b:drop;a/b:reset;a/b:gzip")
    request, socket = draw(faults, ["a/b"], Random(1)), draw(faults, ["a/b"], Random(1), "socket")
    assert request.fault == Fault("a/b", "reset")
    assert request.gzip
    assert socket.fault == Fault("a/b", "drop", 0)
    assert not socket.gzip
