"""User keys: `fpk_…` in the hands of callers, SHA-256 of them in a file of ours. Also the one writer of that file.

A key is 32 random bytes, so a plain hash suffices at rest: there is nothing to guess and nothing to stretch. The file
is re-read whenever it changes, so a revoked key ends with the next request; a file that cannot be read for the moment
keeps the last good state and says so in the log.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import tomllib
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import tomlkit

from fal_proxy.environment import fingerprint
from fal_proxy.exchange import Caller
from fal_proxy.identity import Presented
from fal_proxy.request import Request
from fal_proxy.whole_file import write_whole

PREFIX = "fpk_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_log = logging.getLogger("fal_proxy.identity")


class KeyRecord(NamedTuple):
    """One user key as the file knows it."""

    name: str
    hash: str
    plan: str
    created: str


class KeyFileError(ValueError):
    """The key file, or a change asked of it, makes no sense; the text says why and is safe to show."""


class UserKeys:
    """Recognise user keys; notice changes of the file."""

    def __init__(self, path: Path) -> None:
        """Read the file if it is there. Raises KeyFileError for a malformed one, OSError for an unreadable one."""
        self._path, self._spelled = path, str(path)
        self._state = fingerprint(self._spelled)
        self._by_hash = _index(read(path))

    async def identify(self, presented: Presented) -> Caller | None:
        """Return the caller whose key was presented, None for anything else."""
        credential = presented.credential
        if credential is None or not credential.startswith(PREFIX):
            return None
        self._refresh()
        notes = presented.request.notes
        found: tuple[object, Caller] | None = notes.get(self)
        if found is not None and found[0] is self._by_hash:
            return found[1]  # the same credential, and the file says what it said
        hashed = hash_of(credential)
        known = self._by_hash.get(hashed)
        if known is None or not hmac.compare_digest(known[0].hash, hashed):
            return None
        presented.request.note(self, (self._by_hash, known[1]))
        return known[1]

    def carried(self, request: Request) -> Collection[str]:
        """Return nothing: what this source knows by, it is asked about."""
        return ()

    async def close(self) -> None:
        """Hold nothing open."""

    def _refresh(self) -> None:
        state = fingerprint(self._spelled)
        if state == self._state:
            return
        try:
            self._by_hash = _index(read(self._path))
        except (OSError, KeyFileError) as error:
            _log.error("user keys: %s cannot be re-read, keeping the last good state: %s", self._path.name, error)
        self._state = state


def hash_of(key: str) -> str:
    """Return the form of a key that is kept."""
    return "sha256:" + hashlib.sha256(key.encode("latin-1", "replace")).hexdigest()


def new_key() -> str:
    """Return a fresh user key."""
    return PREFIX + secrets.token_urlsafe(32)


def read(path: Path) -> list[KeyRecord]:
    """Return the file's records, none without a file. Raises KeyFileError, OSError."""
    try:
        tables = tomllib.loads(path.read_text("utf-8")).get("keys", {})
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no TOML, a number without end
        raise KeyFileError(f"{path.name} is no TOML: {error}") from error
    if not isinstance(tables, dict):
        raise KeyFileError(f"{path.name}: `keys` must be a table")
    return [_record(path, name, table) for name, table in tables.items()]


def _record(path: Path, name: str, table: object) -> KeyRecord:
    if not isinstance(table, dict) or not _NAME.fullmatch(name):
        raise KeyFileError(f"{path.name}: keys.{name} must be a table with a plain name")
    hashed, plan = table.get("hash"), table.get("plan", "default")
    if not isinstance(hashed, str) or not _HASH.fullmatch(hashed) or not isinstance(plan, str):
        raise KeyFileError(f'{path.name}: keys.{name} needs hash = "sha256:<hex>" and plan = "<name>"')
    return KeyRecord(name, hashed, plan, str(table.get("created", "")))


def add(path: Path, name: str, plan: str) -> str:
    """Add a key and return it; this is the only time it can be seen. Raises KeyFileError for a bad or taken name."""
    if not _NAME.fullmatch(name):
        raise KeyFileError(f"{name!r} is no key name: letters, digits and _ . @ - (at most 64)")
    with _locked(path):
        records = read(path)
        if any(record.name == name for record in records):
            raise KeyFileError(f"a key called {name} exists already")
        key = new_key()
        document = tomlkit.parse(path.read_text("utf-8")) if path.exists() else tomlkit.document()
        table = tomlkit.table()
        table.update({"hash": hash_of(key), "plan": plan, "created": datetime.now(UTC).replace(microsecond=0)})
        try:
            document.setdefault("keys", tomlkit.table(is_super_table=True))[name] = table
        except ValueError as error:
            raise KeyFileError(f"{path.name}: write `keys` as [keys.NAME] tables, not in braces") from error
        write_whole(path, tomlkit.dumps(document))
    return key


def revoke(path: Path, name: str) -> None:
    """Remove a key. Raises KeyFileError when there is none of that name."""
    with _locked(path):
        if all(record.name != name for record in read(path)):
            raise KeyFileError(f"there is no key called {name}")
        document = tomlkit.parse(path.read_text("utf-8"))
        keys = document["keys"]
        if isinstance(keys, dict):
            keys.pop(name)
        write_whole(path, tomlkit.dumps(document))


def _index(records: list[KeyRecord]) -> dict[str, tuple[KeyRecord, Caller]]:
    return {
        record.hash: (record, Caller(f"key::{record.name}", "key", record.plan, ambient=False)) for record in records
    }


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Serialise writers, so that two of them cannot lose a key between them."""
    lock = path.with_name(path.name + ".lock")
    descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
