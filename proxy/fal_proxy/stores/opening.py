"""From `state.url` to a store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from fal_proxy.stores import Store
from fal_proxy.stores.fallback import FallbackStore
from fal_proxy.stores.journal import Journal, JournalError
from fal_proxy.stores.mailbox import Mailbox
from fal_proxy.stores.mailbox_memory import MemoryMailbox
from fal_proxy.stores.memory import MemoryStore

EVENTS = "events"  # the mailbox' journal, in the folder of the store's
_MEMORY = "memory://"
_REDIS = ("redis", "rediss")


def folder_of(url: str, base: Path) -> Path | None:
    """Return the journal's folder of a `memory:` URL, None without one. Raises ValueError for any other URL."""
    if not url.startswith(_MEMORY):
        raise ValueError("must be memory://, memory:///folder or redis://host[:port][/database]")
    path = url.removeprefix(_MEMORY)
    return base / path if path else None


def is_shared(url: str) -> bool:
    """Say whether the URL names a Redis. Raises ValueError for a malformed one."""
    parts = urlsplit(url)
    if parts.scheme not in _REDIS:
        return False
    try:
        named = parts.hostname and parts.port != 0
    except ValueError:  # its own text would show what may be a piece of a password
        named = False
    if not named:
        raise ValueError("must name a host: redis://host[:port][/database]")
    return True


def open_store(url: str, base: Path, *, local_on_failure: bool) -> Store:
    """Return the store. Raises ValueError or JournalError, which say what is wrong."""
    if is_shared(url):
        from fal_proxy.stores.redis import RedisStore

        shared = RedisStore(url)
        return FallbackStore(shared) if local_on_failure else shared
    folder = folder_of(url, base)
    return MemoryStore(Journal(folder) if folder is not None else None)


def open_mailbox(url: str, base: Path) -> Mailbox:
    """Return what keeps the events of webhooks, beside the store. Raises ValueError or JournalError."""
    if is_shared(url):
        from fal_proxy.stores.mailbox_redis import RedisMailbox

        return RedisMailbox(url)
    folder = folder_of(url, base)
    return MemoryMailbox(Journal(folder / EVENTS) if folder is not None else None)


__all__ = ["JournalError", "folder_of", "is_shared", "open_mailbox", "open_store"]
