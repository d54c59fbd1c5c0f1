"""The fal keys in use: fair shares, rest for refused ones, and jobs that keep their key."""

from __future__ import annotations

import logging
from collections import Counter

import pytest

from fal_proxy.environment import Secret
from fal_proxy.errors import Refusal
from fal_proxy.upstream.credentials import FalKey
from fal_proxy.upstream.keys import TRIAL_SECONDS, Fault, KeyPool, fault_in
from support.key_pool import INVALID, LOCKED, Clock, key, pool, refuse


def names(pool: KeyPool, count: int) -> str:
    return "".join(pool.choose().shown[0] for _ in range(count))


def test_keys_take_turns_by_weight_and_smoothly() -> None:
    assert names(pool(key("a")), 3) == "aaa"
    assert names(pool(key("a"), key("b")), 6) == "ababab"
    assert names(pool(key("a", 3), key("b")), 8) == "aabaaaba"
    drawn = Counter(names(pool(key("a", 5), key("b", 3), key("c", 1)), 900))
    assert drawn == {"a": 500, "b": 300, "c": 100}


@pytest.mark.parametrize("said", [INVALID, LOCKED])
def test_refused_key_rests_and_comes_back_with_one_request_at_a_time(said: tuple[int, bytes]) -> None:
    clock = Clock()
    keys = pool(key("a"), key("b"), clock=clock)
    a = keys.choose()
    refuse(a, said)
    assert names(keys, 4) == "bbbb"
    assert (keys.usable(), keys.resting()) == (1, 1)
    for rest in (30, 60, 120, 240, 480, 600, 600):
        clock.now += rest - 1
        assert "a" not in names(keys, 4), "still resting"
        clock.now += 1
        assert names(keys, 6).count("a") == 1, "one request tries it"
        refuse(a, said)
    clock.now += 600
    assert names(keys, 6).count("a") == 1
    a.answered(200, b"", from_job=True, paid=True)
    assert sorted(names(keys, 4)) == ["a", "a", "b", "b"]
    refuse(a, said)
    clock.now += 30
    assert "a" in names(keys, 4), "a success ends the doubling"


def test_a_trial_that_nobody_answers_is_followed_by_another() -> None:
    clock = Clock()
    keys = pool(key("a"), clock=clock)
    refuse(keys.choose())
    clock.now += 30
    assert names(keys, 1) == "a"
    with pytest.raises(Refusal):
        keys.choose()
    clock.now += TRIAL_SECONDS
    assert names(keys, 1) == "a"


def test_answers_to_requests_under_way_do_not_lengthen_the_rest() -> None:
    clock = Clock()
    keys = pool(key("a"), clock=clock)
    a = keys.choose()
    for _ in range(20):
        refuse(a)
        clock.now += 0.5
    clock.now += 20
    assert names(keys, 1) == "a"


def test_without_a_usable_key_the_refusal_says_when_to_come_back() -> None:
    clock = Clock()
    keys = pool(key("a"), key("b"), clock=clock)
    for _ in range(2):
        refuse(keys.choose(), LOCKED)
    with pytest.raises(Refusal) as refused:
        keys.choose()
    assert (refused.value.status, refused.value.error_type) == (503, "no_usable_key")
    assert refused.value.headers == ((b"retry-after", b"30"),)
    assert keys.reasons() == ["2 of 2 fal keys set aside: fal calls them locked"]


ANSWERS: list[tuple[int, bytes, Fault | None, str]] = [
    (401, b'{"detail":"invalid key credentials"}', Fault.INVALID, "fal's words for a revoked key"),
    (401, b'"Invalid key credentials"', Fault.INVALID, "a bare string"),
    (403, b'{"detail":"User is locked. Reason: Admin lock."}', Fault.LOCKED, "any reason"),
    (401, b'{"detail":"Cannot access application \\"a/b\\""}', None, "the key is good, the app is private"),
    (401, b'{"detail":[{"msg":"invalid key credentials"}]}', None, "an app's own words"),
    (403, b'{"detail":"Forbidden"}', None, "an app's own refusal"),
    (401, b"<html>", None, "something in front of fal"),
    (401, b"", None, "nothing"),
    (401, b"[" * 100_000, None, "depth without end"),
    (403, b'{"detail":"invalid key credentials"}', None, "the wrong status"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "fault", "reason"), ANSWERS)
def test_only_fals_own_words_about_a_key_set_it_aside(
    status: int, body: bytes, fault: Fault | None, reason: str
) -> None:
    assert fault_in(status, body) is fault, reason
    keys = pool(key("a"))
    keys.choose().answered(status, body, from_job=False, paid=True)
    assert keys.resting() == (fault is not None), reason


def test_an_app_cannot_set_a_key_aside_with_fals_words() -> None:
    keys = pool(key("a"))
    keys.choose().answered(*INVALID, from_job=True, paid=True)
    assert keys.usable() == 1


def test_a_read_that_works_does_not_unlock_an_account() -> None:
    keys = pool(key("a"))
    a = keys.choose()
    refuse(a, LOCKED)
    a.answered(200, b"", from_job=False, paid=False)
    assert keys.usable() == 0
    assert keys.of_job(a.id) is a, "what was submitted can still be read"


def test_jobs_are_asked_about_with_the_key_that_submitted_them() -> None:
    keys = pool(key("a"), key("b"))
    a, b = keys.choose(), keys.choose()
    assert a.id != b.id
    assert [keys.of_job(each.id) for each in (a, b, a, b)] == [a, b, a, b]
    assert keys.of_job("gone") in (a, b)
    refuse(a)
    assert keys.of_job(a.id) is b, "a revoked key reads nothing; another of the account may"


def test_key_ids_and_reprs_give_nothing_away() -> None:
    keys = pool(key("a"))
    a = keys.choose()
    assert "canary" not in f"{a!r} {keys!r} {a.id} {a.shown} {vars(keys)}"
    assert (len(a.id), a.shown) == (16, "a-the-pu…")
    assert pool(FalKey(Secret("id:secret"))).choose().shown != "id", "a short public half says too much"


def test_setting_aside_names_the_key_by_its_public_beginning_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        refuse(pool(key("a")).choose())
    assert "fal key a-the-pu… is set aside for 30 s: fal calls it invalid" in caplog.text
    assert "canary" not in caplog.text
