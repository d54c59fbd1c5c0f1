"""The embedded stores' memory on disk: an append-only journal of puts, in segments, with group commit.

One segment is one file; its name is its number. A segment holds frames: a length, a CRC-32 of the payload, a CRC-32 of
these two, and a MessagePack list of puts. A frame is one group commit: the puts of every operation since the last one,
one write, one fdatasync, in a thread. While it is under way the next group gathers, so company costs nothing and an
idle journal waits for none. Puts that nobody waits for are written within a second.

A group is written when the one before it is on disk. So only the last frame of the last segment can be torn, by a kill
or a power cut, and no operation in it ever returned: it is cut off. Everything else that does not read back is damage,
and a journal with damage is refused rather than half believed: what it forgot would be budgets.

When a segment has grown, the next one begins with a snapshot that is taken in slices between operations: puts of later
operations stand between its slices. Absolute puts do not mind, the last one about a thing is right. Hits are
increments; a window in a slice replaces the hits before it, which it contains, and is followed by those it does not:
an operation changes the state and appends its puts in one step of the loop. A segment whose snapshot is complete (a put
says so) makes all earlier ones superfluous. Until then they are replayed first.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fal_proxy.errors import FalProxyError, StoreUnavailable
from fal_proxy.stores.frames import COMPLETE, REMEDY, TITLE, Journalled, encode, frame, repeat, slices
from fal_proxy.stores.holdings import Put

SEGMENT_BYTES = 64 * 1024 * 1024
_LAZY_SECONDS = 0.5

_sync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync
_log = logging.getLogger(__name__)


class JournalError(FalProxyError):
    """The journal cannot be used; the text says why and what can be done."""


class Journal:
    """One folder, one process, one event loop."""

    def __init__(
        self,
        folder: Path,
        segment_bytes: int = SEGMENT_BYTES,
        sync: Callable[[int], None] = _sync,
    ) -> None:
        """Take the folder for this process alone. Raises JournalError."""
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._sync = sync
        self._pending: list[bytes] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._overdue = False
        self._failure = "the journal was not started"
        self._state: Journalled  # from `start` on
        self._slices: Iterator[list[bytes]] | None = None
        self._snapshot_bytes = 0
        # The file belongs to the thread as soon as there is one.
        self._thread = ThreadPoolExecutor(1, "journal")
        self._file = -1
        self._size = 0
        self._number = 0
        self._lock = _take(folder)

    # Reading

    def replay(self, state: Journalled) -> None:
        """Repeat everything on `state`, which is empty. Raises JournalError for what does not read back."""
        numbers = self._numbers()
        if numbers and numbers != list(range(numbers[0], numbers[-1] + 1)):
            raise JournalError(f"{self._folder} lacks a segment between the others: {REMEDY}")
        complete = not numbers
        for number in numbers:
            path = self._path(number)
            try:
                complete = repeat(state, path, last=number == numbers[-1]) or complete
            except ValueError as error:
                raise JournalError(f"{path} {error}") from error
            except OSError as error:
                raise JournalError(f"{path} cannot be read: {error.strerror}") from error
            if not complete:
                raise JournalError(f"{path} needs the segment before it, which is missing: {REMEDY}")
        state.arrange()

    # Writing

    def start(self, state: Journalled) -> None:
        """Begin a segment with all of `state`, whose puts are appended from now on. Raises JournalError."""
        self._number = max(self._numbers(), default=0)
        self._state = state
        state.take_puts()  # the snapshot knows
        try:
            self._begin(itertools.chain(slices(state.snapshot()), [[encode(COMPLETE)]]))
        except OSError as error:
            raise JournalError(f"{self._folder} cannot be written: {error.strerror}") from error
        self._remove_older()
        self._snapshot_bytes = self._size
        self._failure = ""

    def append(self, puts: Iterable[Put]) -> None:
        """Take one operation's puts, to be written with the next group, within a second at the latest."""
        if self._failure:
            return
        self._pending.extend(map(encode, puts))
        if self._pending and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LAZY_SECONDS, self._hurry)

    def require(self) -> None:
        """Raise StoreUnavailable if nothing can be written any more."""
        if self._failure:
            raise StoreUnavailable(self._failure)

    async def durable(self) -> None:
        """Return when everything appended so far is on disk. Raises StoreUnavailable, for good after a failed write."""
        self.require()
        if self._pending or self._task is not None:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            self._wake()
            await waiter

    async def close(self) -> None:
        """Write what is left and let go of the folder. A second call does nothing."""
        if self._lock < 0:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._slices = None  # an incomplete snapshot is as good as none
        if not self._failure:
            self._overdue = True
            self._wake()
        if self._task is not None:
            await asyncio.wait([self._task])
        self._failure = self._failure or "the journal is closed"
        self._thread.shutdown()
        for file in (self._file, self._lock):
            if file >= 0:
                os.close(file)
        self._file = self._lock = -1

    def _hurry(self) -> None:
        self._timer = None
        if self._pending:
            self._overdue = True
            self._wake()

    def _wake(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        """Commit group after group until nobody waits and no snapshot is under way."""
        waiters: list[asyncio.Future[None]] = []
        try:
            while self._waiters or self._overdue or self._slices is not None:
                completes = self._slice()
                self._overdue = False
                waiters, self._waiters = self._waiters, []
                puts, self._pending = self._pending, []
                if puts:
                    await self._in_thread(self._write, puts)
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_result(None)
                if completes:
                    self._snapshot_bytes = self._size
                    await self._in_thread(self._remove_older)
                elif self._slices is None and self._size > max(self._segment_bytes, 2 * self._snapshot_bytes):
                    await self._in_thread(self._begin, [])
                    self._slices = slices(self._state.snapshot())
        except OSError as error:
            self._fail(error, waiters)
        finally:
            self._task = None

    async def _in_thread(self, work: Callable[..., None], *arguments: object) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _slice(self) -> bool:
        """Append the next slice of the snapshot, if one is under way; return whether it is complete now."""
        if self._slices is None:
            return False
        puts = next(self._slices, None)
        if puts:
            self._pending.extend(puts)
            return False
        self._pending.append(encode(COMPLETE))
        self._slices = None
        return True

    def _fail(self, error: OSError, waiters: list[asyncio.Future[None]]) -> None:
        # After a failed fdatasync nobody knows what is on disk, and trying again may claim success: no second chance.
        self._failure = f"the journal cannot be written: {error.strerror}"
        _log.error("%s: %s; nothing that costs money is admitted until a restart", self._folder, self._failure)
        self._slices = None
        self._pending.clear()
        for waiter in (*waiters, *self._waiters):
            if not waiter.done():
                waiter.set_exception(StoreUnavailable(self._failure))
        self._waiters.clear()

    # On the thread, once the loop runs

    def _write(self, puts: list[bytes]) -> None:
        try:
            size = _write_all(self._file, frame(puts))
            self._sync(self._file)
        except OSError:
            try:
                os.ftruncate(self._file, self._size)  # what is refused now should not count after a restart
            except OSError:
                pass  # then it counts as an unknown outcome
            raise
        self._size += size

    def _begin(self, groups: Iterable[list[bytes]]) -> None:
        """Begin the next segment; whatever `groups` hold is on disk before it has its name."""
        unnamed = self._folder / "new"
        file = os.open(unnamed, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND, 0o600)
        size = 0
        try:
            for group in itertools.chain([[encode(TITLE)]], groups):
                size += _write_all(file, frame(group))
            os.fsync(file)
            unnamed.rename(self._path(self._number + 1))
            self._sync_folder()
        except OSError:
            os.close(file)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file, self._size, self._number = file, size, self._number + 1

    def _remove_older(self) -> None:
        """Remove the segments before this one, oldest first, so that those left never have a gap."""
        try:
            for number in self._numbers():
                if number < self._number:
                    self._path(number).unlink()
                    self._sync_folder()
        except OSError as error:
            _log.warning("%s: an old segment stays: %s", self._folder, error.strerror)

    def _sync_folder(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in self._folder.glob("*.journal") if path.stem.isdecimal())

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08}.journal"


def _take(folder: Path) -> int:
    lock = -1
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock
    except BlockingIOError:
        os.close(lock)
        raise JournalError(f"{folder} is in use by another process; replicas share Redis instead") from None
    except (FileExistsError, NotADirectoryError):
        raise JournalError(f"{folder} is not a directory") from None
    except PermissionError:
        raise JournalError(f"{folder} does not let user {os.geteuid()} write; give it to that user") from None
    except OSError as error:
        raise JournalError(f"{folder} cannot be used: {error.strerror}") from error


def _write_all(file: int, text: bytes) -> int:
    written = 0
    while written < len(text):
        written += os.write(file, memoryview(text)[written:])
    return written
