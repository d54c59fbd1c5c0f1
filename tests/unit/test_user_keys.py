"""User keys and their file: made once, kept as hashes, changed atomically, noticed without a restart."""

from __future__ import annotations

import logging
import re
import stat
import subprocess
import sys
import tomllib
from datetime import datetime
from pathlib import Path

import pytest

from fal_proxy.identity import Presented
from fal_proxy.identity.key import KeyFileError, UserKeys, add, hash_of, new_key, read, revoke
from fal_proxy.request import Request
from support.instantly import instantly


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the keys are; nothing is there yet."""
    return tmp_path / "users.toml"


def who(keys: UserKeys, credential: str | None) -> str | None:
    """Return the id of the caller whose credential this is."""
    request = Request("POST", b"/", None, [], "127.0.0.1", "http")
    caller = instantly(keys.identify(Presented(request, credential)))
    return caller.id if caller else None


def test_added_key_is_known_by_its_hash_only(file: Path) -> None:
    key = add(file, "ada", "gold")
    assert re.fullmatch(r"fpk_[A-Za-z0-9_-]{43}", key)
    assert key.removeprefix("fpk_") not in file.read_text()
    (record,) = read(file)
    assert (record.name, record.plan, record.hash) == ("ada", "gold", hash_of(key))
    created = tomllib.loads(file.read_text())["keys"]["ada"]["created"]
    assert isinstance(created, datetime)
    assert created.tzinfo is not None


def test_key_names_its_holder_and_plan(file: Path) -> None:
    key = add(file, "ada", "gold")
    caller = instantly(UserKeys(file).identify(Presented(Request("GET", b"/", None, [], "", "http"), key)))
    assert caller is not None
    assert (caller.id, caller.source, caller.plan) == ("key::ada", "key", "gold")
    assert not caller.ambient
    assert not caller.by_network
    assert caller.set_cookie is None


def test_keys_are_never_the_same() -> None:
    assert len({new_key() for _ in range(100)}) == 100


UNKNOWN = [
    (None, "nothing presented"),
    ("", "something malformed"),
    ("fpk_", "the prefix alone"),
    ("fpk_" + "A" * 43, "never issued"),
    ("\xff\u20ac", "no key by its form"),
    ("fpk_\xff", "bytes of any kind"),
]


@pytest.mark.parametrize(("credential", "reason"), UNKNOWN)
def test_unknown_credential_is_nobody(credential: str | None, reason: str, file: Path) -> None:
    add(file, "ada", "default")
    assert who(UserKeys(file), credential) is None, reason


def test_nearly_the_key_is_nobody(file: Path) -> None:
    key = add(file, "ada", "default")
    keys = UserKeys(file)
    assert who(keys, key) == "key::ada"
    for other in (key[:-1], key + "A", key.swapcase(), key.removeprefix("fpk_"), " " + key, hash_of(key)):
        assert who(keys, other) is None


@pytest.mark.parametrize("name", ["a", "Ada", "ada.lovelace", "ada@example.com", "a-b_c", "1", "x" * 64])
def test_plain_name_is_taken_once_and_can_be_revoked(name: str, file: Path) -> None:
    add(file, "before", "default")
    key = add(file, name, "default")
    with pytest.raises(KeyFileError, match="exists already"):
        add(file, name, "gold")
    assert who(UserKeys(file), key) == f"key::{name}"
    revoke(file, name)
    assert [record.name for record in read(file)] == ["before"]


@pytest.mark.parametrize("name", ["", " ", "a b", ".a", "a/b", "a\n", "é", "a:b", "x" * 65, "-a", '"'])
def test_other_name_is_refused_and_the_file_stays(name: str, file: Path) -> None:
    with pytest.raises(KeyFileError, match="no key name"):
        add(file, name, "default")
    assert not file.exists()


def test_only_a_key_that_is_there_can_be_revoked(file: Path) -> None:
    with pytest.raises(KeyFileError, match="no key called ada"):
        revoke(file, "ada")
    add(file, "ada", "default")
    before = file.read_bytes()
    with pytest.raises(KeyFileError, match="no key called eve"):
        revoke(file, "eve")
    assert file.read_bytes() == before


def test_file_is_for_its_owner_only_and_replaced_whole(file: Path) -> None:
    add(file, "ada", "default")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    with file.open() as reader:  # a reader of the old file keeps the old file
        old = file.stat().st_ino
        add(file, "eve", "default")
        assert file.stat().st_ino != old
        assert "eve" not in reader.read()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(path.name for path in file.parent.iterdir()) == ["users.toml", "users.toml.lock"]


BY_HAND = """# Our keys. Ask Grace before you touch them.
note = "kept"  # beside a value

[keys.ada] # the first one
# her laptop
hash = "sha256:{}"
plan = "gold"

[other]
x = 1
"""


def test_what_was_written_by_hand_survives_changes(file: Path) -> None:
    file.write_text(BY_HAND.format("0" * 64))
    add(file, "eve", "default")
    add(file, "mallory", "default")
    revoke(file, "eve")
    text = file.read_text()
    for line in BY_HAND.format("0" * 64).splitlines():
        assert line in text
    assert [record.name for record in read(file)] == ["ada", "mallory"]


def test_keys_in_braces_are_refused_in_a_sentence_and_the_file_stays(file: Path) -> None:
    text = 'keys = {{ ada = {{ hash = "sha256:{}" }} }}\n'.format("0" * 64)
    file.write_text(text)
    with pytest.raises(KeyFileError, match=re.escape("[keys.NAME]")):
        add(file, "eve", "default")
    assert file.read_text() == text
    revoke(file, "ada")
    assert read(file) == []


def test_concurrent_adds_of_several_processes_lose_nothing(file: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from fal_proxy.identity.key import add\n"
        "for n in range(10): add(Path(sys.argv[1]), f'{sys.argv[2]}{n}', 'default')"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(file), letter]) for letter in "abcd"]
    assert [writer.wait(timeout=60) for writer in writers] == [0] * 4
    assert {record.name for record in read(file)} == {f"{letter}{n}" for letter in "abcd" for n in range(10)}


def test_changes_are_noticed_with_the_next_request(file: Path) -> None:
    keys = UserKeys(file)
    first = new_key()
    assert who(keys, first) is None
    first = add(file, "ada", "default")
    assert who(keys, first) == "key::ada"
    second = add(file, "eve", "default")
    assert (who(keys, first), who(keys, second)) == ("key::ada", "key::eve")
    revoke(file, "ada")
    assert (who(keys, first), who(keys, second)) == (None, "key::eve")


BROKEN = [
    ("[keys", "no TOML"),
    ("keys = 1", "another shape"),
    ("[keys.ada]\nhash = 1", "no hash"),
    ("x = " + "1" * 5000, "a number without end"),
    ("x = " + "[" * 100_000, "deep nesting"),
]


@pytest.mark.parametrize(("text", "reason"), BROKEN)
def test_broken_file_keeps_the_last_good_state_and_says_so(
    text: str, reason: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = add(file, "ada", "default")
    good = file.read_text()
    keys = UserKeys(file)
    file.write_text(text)
    with caplog.at_level(logging.ERROR, "fal_proxy.identity"):
        assert [who(keys, key), who(keys, key)] == ["key::ada"] * 2, reason
    assert len(caplog.records) == 1, "said once, not per request"
    assert "keeping the last good state" in caplog.text
    file.write_text(good.replace("keys.ada", "keys.bob"))
    assert who(keys, key) == "key::bob", "and it recovers"


def test_broken_file_refuses_the_start_and_changes(file: Path) -> None:
    file.write_text("[keys")
    with pytest.raises(KeyFileError):
        UserKeys(file)
    with pytest.raises(KeyFileError):
        add(file, "ada", "default")
    with pytest.raises(KeyFileError):
        revoke(file, "ada")
    assert file.read_text() == "[keys"


def test_removed_file_means_nobody(file: Path) -> None:
    key = add(file, "ada", "default")
    keys = UserKeys(file)
    file.unlink()
    assert who(keys, key) is None
    assert read(file) == []


def test_plan_defaults_and_unknown_keys_of_a_record_are_left_alone(file: Path) -> None:
    file.write_text("[keys.ada]\nhash = 'sha256:{}'\nowner = 'Grace'".format("a" * 64))
    (record,) = read(file)
    assert (record.plan, record.created) == ("default", "")
