"""The fal keys in use: fair shares, rest for refused ones, a file that changes, and jobs that keep their key."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from fal_proxy.environment import Secret
from fal_proxy.errors import Refusal
from fal_proxy.upstream.credentials import FalKey, KeyFileError, fal_keys, read_keys
from fal_proxy.upstream.keys import FAREWELL_SECONDS, LOOK_SECONDS, TRIAL_SECONDS, Fault, Key, KeyPool, fault_in

INVALID = (401, b'{"detail":"invalid key credentials"}')
LOCKED = (403, b'{"detail":"User is locked. Reason: Exhausted balance. Top up your balance"}')


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def key(name: str, weight: int = 1) -> FalKey:
    return FalKey(Secret(f"{name}-the-public-half:secret-canary-of-{name}"), weight)


def pool(*keys: FalKey, clock: Clock | None = None) -> KeyPool:
    return KeyPool(keys, clock=clock or Clock())


def names(pool: KeyPool, count: int) -> str:
    return "".join(pool.choose().shown[0] for _ in range(count))


def refuse(key: Key, said: tuple[int, bytes] = INVALID) -> None:
    key.answered(*said, from_job=False, paid=True)


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


@dataclass
class Watched:
    """A pool over a file, and its clock."""

    path: Path
    clock: Clock
    keys: KeyPool

    def write(self, text: str) -> None:
        beside = self.path.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self.path)

    def later(self) -> None:
        self.clock.now += LOOK_SECONDS


@pytest.fixture
def file(tmp_path: Path) -> Watched:
    path, clock = tmp_path / "fal.keys", Clock()
    path.write_text("a:secret-canary-one 1\n")
    return Watched(path, clock, KeyPool(read_keys(path), path, clock=clock))


def test_changed_file_is_in_force_within_a_second_and_known_jobs_keep_their_key(file: Watched) -> None:
    told: list[list[str]] = []
    file.keys.listen(lambda secrets: told.append([secret.reveal() for secret in secrets]))
    old = file.keys.choose()
    file.write("b:secret-canary-two\n")
    assert file.keys.choose() is old, "one look a second"
    file.later()
    new = file.keys.choose()
    assert new is not old
    assert file.keys.of_job(old.id) is old, "its jobs can still be read"
    assert told == [["a:secret-canary-one"], ["a:secret-canary-one", "b:secret-canary-two"]], "and it is watched for"
    file.clock.now += FAREWELL_SECONDS
    file.later()
    assert file.keys.choose() is new
    assert file.keys.of_job(old.id) is new, "forgotten after every record of it"
    assert told[-1] == ["b:secret-canary-two"]


def test_weights_change_and_a_key_that_comes_back_is_the_same(file: Watched) -> None:
    a = file.keys.choose()
    refuse(a)
    file.write("a:secret-canary-one 3\nb:secret-canary-two\n")
    file.later()
    assert [file.keys.choose() is a for _ in range(4)] == [False] * 4, "still resting"
    file.clock.now += 30
    a.answered(200, b"", from_job=False, paid=True)
    assert Counter(file.keys.choose() is a for _ in range(8)) == {True: 6, False: 2}


BAD_FILES = [
    ("", "holds no key"),
    ("# nothing\n", "holds no key"),
    ("a:b\n\nc-canary", "line 3 is not"),
    ("a:canary 0", "line 1: the weight"),
    ("a:canary 1.5", "line 1: the weight"),
    ("a:canary -1", "line 1: the weight"),
    ("a:canary 1 2", "line 1 is not"),
    (":canary", "line 1 is not"),
    ("a:b\na:canary", "line 2 repeats the key of line 1"),
    ("a:can\u00e4ry", "line 1 is not"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_bad_file_keeps_the_old_keys_and_says_so_without_showing_it(
    text: str, message: str, file: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    old = file.keys.choose()
    file.write(text)
    file.later()
    assert file.keys.choose() is old
    assert file.keys.file_faults == 1
    [reason] = file.keys.reasons()
    assert message in reason
    assert message in caplog.text
    assert "canary" not in reason + caplog.text
    assert "\u00e4" not in reason + caplog.text
    file.later()
    assert file.keys.choose() is old
    assert file.keys.file_faults == 1, "said once"
    file.write("b:secret-canary-two")
    file.later()
    assert file.keys.choose() is not old
    assert file.keys.reasons() == []


def test_vanished_file_and_bytes_that_are_no_text_keep_the_old_keys(file: Watched) -> None:
    old = file.keys.choose()
    file.path.unlink()
    file.later()
    assert file.keys.choose() is old
    assert file.keys.reasons() == ["FAL_KEY_FILE is not in force: No such file or directory"]
    file.path.write_bytes(b"a:canary\xff")
    file.later()
    assert file.keys.choose() is old
    assert file.keys.reasons() == ["FAL_KEY_FILE is not in force: is no UTF-8"]


def test_a_pipe_is_never_read_again(tmp_path: Path) -> None:
    path, clock = tmp_path / "pipe", Clock()
    os.mkfifo(path)
    keys = KeyPool([key("a")], path, clock=clock)
    clock.now += LOOK_SECONDS
    assert keys.choose().shown == "a-the-pu…"
    assert keys.file_faults == 0


def test_file_of_keys_takes_weights_comments_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "fal.keys"
    path.write_text("# two accounts\r\n\r\na:one 3  # the large one\n\tb:two#still-the-secret\n")
    assert [(each.secret.reveal(), each.weight) for each in read_keys(path)] == [
        ("a:one", 3),
        ("b:two#still-the-secret", 1),
    ]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(KeyFileError, match="UTF-8"):
        read_keys(path)


ENVIRONMENTS: list[tuple[dict[str, str], list[str], list[tuple[str, str]]]] = [
    ({}, [], [("error", "FAL_KEY")]),
    ({"FAL_KEY": " a:b\n"}, ["a:b"], []),
    ({"FAL_KEY": "", "FAL_KEY_ID": "i", "FAL_KEY_SECRET": "s"}, ["i:s"], []),
    ({"FAL_KEY": "a:b", "FAL_KEY_ID": "i", "FAL_KEY_SECRET": "s"}, ["a:b"], [("error", "FAL_KEY")]),
    ({"FAL_KEY_SECRET": "s"}, [], [("error", "FAL_KEY_ID")]),
    ({"FAL_KEY_ID": "i"}, [], [("error", "FAL_KEY_ID")]),
    ({"FAL_KEY_FILE": "fal.keys"}, ["a:one", "b:two"], []),
    ({"FAL_KEY_FILE": "open.keys"}, ["a:one"], [("warning", "FAL_KEY_FILE")]),
    ({"FAL_KEY_FILE": "none"}, [], [("error", "FAL_KEY_FILE")]),
    ({"FAL_KEY_FILE": "bad.keys"}, [], [("error", "FAL_KEY_FILE")]),
    ({"FAL_KEY_FILE": "."}, [], [("error", "FAL_KEY_FILE")]),
    ({"FAL_KEY_FILE": "fal.keys", "FAL_KEY_ID": "i", "FAL_KEY_SECRET": "s"}, ["a:one", "b:two"], [("error", "FAL_KEY_FILE")]),
]  # fmt: skip


@pytest.mark.parametrize(("environ", "expected", "found"), ENVIRONMENTS)
def test_keys_come_from_exactly_one_of_three_places(
    environ: dict[str, str],
    expected: list[str],
    found: list[tuple[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text, mode in (("fal", "a:one\nb:two", 0o600), ("open", "a:one", 0o644), ("bad", "canary", 0o600)):
        Path(f"{name}.keys").write_text(text)
        Path(f"{name}.keys").chmod(mode)
    findings: list[object] = []
    keys = fal_keys(environ, findings)  # type: ignore[arg-type] # only appended to
    assert [each.secret.reveal() for each in keys.keys] == expected
    assert [finding[:2] for finding in findings] == found  # type: ignore[index] # Findings are tuples
    assert "canary" not in str(findings)


def test_setting_aside_names_the_key_by_its_public_beginning_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        refuse(pool(key("a")).choose())
    assert "fal key a-the-pu… is set aside for 30 s: fal calls it invalid" in caplog.text
    assert "canary" not in caplog.text
