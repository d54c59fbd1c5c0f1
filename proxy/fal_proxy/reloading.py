"""What changes when settings are read anew: which of them did, which wait for a restart, and when a file is worth reading.

A file is judged in a version that was the same at two looks, and again only when it is another one: so nobody's half
written file is believed, and what is wrong with one is said once. Builds nothing, and puts nothing in force.
"""

from __future__ import annotations

import logging
import stat
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from fal_proxy.errors import Misconfigured
from fal_proxy.loading import Finding, written
from fal_proxy.settings import Settings

LOOK_SECONDS = 1.0  # between two looks at the file: one stat() each
SETTLED_SECONDS = 0.9  # the same for so long: timers may be early

# The one list of what cannot change while the process runs, each with the reason. The README's table marks them.
NEEDS_RESTART: Mapping[str, str] = {
    "mount": "what was handed out leads there: upload URLs, webhooks, queue URLs",
    "server.host": "the socket is open",
    "server.port": "the socket is open",
    "realtime.max_message_bytes": "the listener bounds messages before they are read",
    "webhooks.mode": "the mailbox is opened at the start, and fal knows addresses of the hub",
    "state.url": "all that is counted and owned is there",
    "state.on_failure": "it is the store's own way to fail",
    "admin.host": "the socket is open",
    "admin.port": "the socket is open",
    "telemetry.tracing": "OpenTelemetry's library is set up once in a process",
}

# mtime, size, inode and ctime of a file: what changes with every new content, whichever way it came. None: no such file.
Version = tuple[int, int, int, int] | None


_log = logging.getLogger("fal_proxy.reload")


class Reloaded(NamedTuple):
    """What reading settings anew has changed, by dotted names."""

    changed: tuple[str, ...]  # in force for whatever begins from now on
    waiting: tuple[str, ...]  # as they were until a restart
    warnings: tuple[Finding, ...]  # that the settings before did not cause


class Unsettled(Exception):
    """The file became another one while it was read; what was read of it means nothing."""


def version_of(path: Path) -> Version:
    """Return the version of a file, None where there is none to be seen. Follows links, as reading does."""
    try:
        state = path.stat()
    except OSError:
        return None
    known = state.st_mtime_ns, state.st_size, state.st_ino, state.st_ctime_ns
    return known if stat.S_ISREG(state.st_mode) else None


def held_back(running: Settings, wanted: Settings) -> Settings:
    """Return what can be in force now: `wanted`, but what needs a restart as it is in `running`."""
    for path in NEEDS_RESTART:
        wanted = _with(wanted, running, path.split("."))
    return wanted


def _with(wanted: Any, running: Any, names: list[str]) -> Any:
    name = names[0]
    value = (
        getattr(running, name) if len(names) == 1 else _with(getattr(wanted, name), getattr(running, name), names[1:])
    )
    return msgspec.structs.replace(wanted, **{name: value})


def changes(before: Any, after: Any, path: str = "") -> tuple[str, ...]:
    """Return the dotted names of what differs; of tables that come or go their own, of lists the whole list's."""
    if isinstance(before, msgspec.Struct) and type(before) is type(after):
        parts = [(written(name), getattr(before, name), getattr(after, name)) for name in before.__struct_fields__]
        return tuple(found for name, old, new in parts for found in changes(old, new, _below(path, name)))
    if isinstance(before, dict) and isinstance(after, dict):
        found: list[str] = []
        for name in dict.fromkeys([*before, *after]):
            both = name in before and name in after
            found += changes(before[name], after[name], _below(path, name)) if both else [_below(path, name)]
        return tuple(found)
    # By their spelling: to Python true, 1 and 1.0 are equal, and to fal they are not.
    return () if repr(before) == repr(after) else (path,)


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


class FileWatch:
    """Looks at one settings file, and says when it is worth reading."""

    def __init__(
        self,
        path: Path,
        judged: Version,
        *,
        look: Callable[[Path], Version] = version_of,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the version that was judged last."""
        self._path = path
        self._judged = judged
        self._look = look
        self._clock = clock
        self._seen = judged
        self._since = clock()

    def settled(self) -> bool:
        """Look at the file, and say whether it is as it was for a while."""
        seen, now = self._look(self._path), self._clock()
        if seen != self._seen:
            self._seen, self._since = seen, now
        return now - self._since >= SETTLED_SECONDS

    @property
    def seen(self) -> Version:
        """What the last look saw."""
        return self._seen

    @property
    def is_new(self) -> bool:
        """Say whether what was seen last is another version than the one that was judged last."""
        return self._seen != self._judged

    def judge(self) -> None:
        """Take what was seen last for judged."""
        self._judged = self._seen


class Asking(Protocol):
    """Whoever asks for settings to be read anew, whether the file has changed or not."""

    @property
    def pending(self) -> bool:
        """Say whether somebody waits for an answer."""

    def ask(self) -> None:
        """Ask again."""

    def take(self) -> bool:
        """Say whether somebody waits for an answer, who is to get it now."""

    async def wait(self, seconds: float) -> None:
        """Wait so long, or until somebody asks."""


class Follower:
    """Keeps a running app with its file, and says in the log what came of it."""

    def __init__(
        self,
        watch: FileWatch,
        reread: Callable[[Version], Awaitable[Reloaded]],
        asking: Asking,
        ends: Callable[[], bool],
        name: str,
    ) -> None:
        """Take how a version is read and put in force (raises Misconfigured, Unsettled), and whether the process ends."""
        self._watch = watch
        self._reread = reread
        self._asking = asking
        self._ends = ends
        self._name = name

    async def run(self) -> None:
        """Look and listen until cancelled."""
        while True:
            await self.turn()
            await self._asking.wait(LOOK_SECONDS)

    async def turn(self) -> None:
        """Look once, and read the file if it is to be read."""
        settled = self._watch.settled()
        if self._ends():
            if self._asking.take():
                _log.info("%s is not read anew: this process is about to end", self._name)
            return
        if not settled or not (self._watch.is_new or self._asking.pending):
            return
        asked = self._asking.take()
        try:
            reloaded = await self._reread(self._watch.seen)
        except Unsettled:
            if asked:
                self._asking.ask()
            return
        except Misconfigured as error:
            for finding in error.findings:
                _log.error("%s is not put in force: %s", self._name, " ".join(finding.split()))
        except Exception:  # noqa: BLE001 -- one fault must not end the following of the file
            _log.exception("fault while %s was read anew; the settings stay as they were", self._name)
        else:
            self._tell(reloaded)
        self._watch.judge()

    def _tell(self, reloaded: Reloaded) -> None:
        for warning in reloaded.warnings:
            _log.warning("%s: %s", warning.path, warning.message)
        changed = ", ".join(reloaded.changed) or "nothing"
        waiting = f"; until a restart as before: {', '.join(reloaded.waiting)}" if reloaded.waiting else ""
        _log.info("%s was read anew; changed: %s%s", self._name, changed, waiting)
