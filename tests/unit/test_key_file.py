"""Where fal keys come from: exactly one of three places, and a file that may change under way, or be broken."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from fal_proxy.upstream.credentials import KeyFileError, fal_keys, read_keys
from fal_proxy.upstream.keys import FAREWELL_SECONDS, LOOK_SECONDS, KeyPool
from support.key_pool import Clock, key, refuse


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
