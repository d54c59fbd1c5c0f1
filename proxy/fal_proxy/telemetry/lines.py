"""Log lines to a stream, from a thread of their own: whoever reads slowly, or not at all, never stops the proxy.

Bounded: lines that find the queue full are dropped and counted, because the alternative is to stop serving. They are
gathered for a moment before they are written: a thread that wakes for every line costs the loop more than the line does.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

MAX_WAITING = 10_000
FLUSH_SECONDS = 1.0
GATHER_SECONDS = 0.1

_log = logging.getLogger("fal_proxy")


class Stream(Protocol):
    """What is asked of a text stream."""

    def write(self, text: str, /) -> int:
        """Take text."""

    def flush(self) -> None:
        """Pass it on."""


def _as_it_is(text: str) -> str:
    return text


class LineWriter(logging.Handler):
    """Write lines, or the bare message of each record as one; nothing is written before `start`."""

    def __init__(
        self, stream: Stream, max_waiting: int = MAX_WAITING, *, masked: Callable[[str], str] = _as_it_is
    ) -> None:
        """Take what masks secrets in a text, beside the filters of a handler, which see records alone."""
        super().__init__()
        self.dropped = 0
        self._masked = masked
        self._told = 0
        self._stream = stream
        self._max_waiting = max_waiting
        self._waiting: deque[str | threading.Event] = deque()  # an Event is set when all before it is written
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access lines", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record's message."""
        self.put(record.getMessage())

    def put(self, line: str) -> None:
        """Queue one line, or drop it."""
        if len(self._waiting) >= self._max_waiting:
            self.dropped += 1
            return
        self._waiting.append(line)
        if not self._wake.is_set():
            self._wake.set()

    def flush(self) -> None:
        """Wait until all that was queued is written, at most a second."""
        if self._thread.is_alive():
            reached = threading.Event()
            self._waiting.append(reached)
            self._hurry.set()
            self._wake.set()
            reached.wait(FLUSH_SECONDS)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._hurry.wait(GATHER_SECONDS)
            self._hurry.clear()
            self._wake.clear()
            lines: list[str] = []
            flushes: list[threading.Event] = []
            while self._waiting:
                item = self._waiting.popleft()
                if isinstance(item, str):
                    lines.append(item + "\n")
                else:
                    flushes.append(item)
            try:
                self._stream.write(self._masked("".join(lines)))
                self._stream.flush()
            except (OSError, ValueError):
                self.dropped += len(lines)  # nobody reads any more, or the stream was closed
            if self.dropped > self._told:
                self._told = self.dropped
                _log.warning("%d access lines were dropped so far: nobody reads them fast enough", self.dropped)
            for reached in flushes:
                reached.set()
