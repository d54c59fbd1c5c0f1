"""One request and its answer over one connection: exact bytes up, a strict answer down, and the truth about what was sent.

    call = await engine.open(origin)      dialled or reused; nothing written yet
    call.start(...), call.send(...)       head and first body bytes in one write; `call.written` is true from here on
    call.write(...), call.drained()       the rest of the body, with back-pressure; then call.finish()
    await call.head()                     interim (1xx) answers are read past
    await call.read() ... b""             body bytes as they come; b"" is the clean end and nothing else is
    await call.forward(take)              or: bytes go to `take` in the turn of the loop that brings them
    call.release()                        always; the connection lives on only if both directions ended cleanly

`written` turns true when the first byte is handed to the transport: from then on upstream may have acted. Deadlines
are idle deadlines: written bytes start the head's anew, body bytes the body's. `abort()` may come from any task at any time and wakes
whoever waits with the given error. What arrived before a failure is read before the failure is raised.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fal_proxy.errors import FalProxyError, UpstreamCut, UpstreamInvalid, UpstreamTimeout
from fal_proxy.headers import Headers
from fal_proxy.upstream.answer import Answer, Head
from fal_proxy.upstream.connection import HIGH_WATER_BYTES, Connection
from fal_proxy.upstream.dial import Origin
from fal_proxy.upstream.request_text import request_text

WRITE_SECONDS = 30.0
_BODILESS = frozenset([b"GET", b"HEAD"])
_NO_ANSWER = Answer(b"")  # of a call that has not asked
_NOBODY = Connection()  # what a call that is over speaks to
Released = Callable[[Origin, Connection, bool], None]


class Call:
    """One request and its answer on one connection."""

    def __init__(self, connection: Connection, origin: Origin, released: Released, *, reused: bool) -> None:
        """Take what `release` hands the connection to, with whether it may carry another call."""
        self.reused = reused
        self.written = False
        self.answered = False  # any byte of an answer arrived
        self.request_done = False  # the whole request was handed over
        self._connection = connection
        self._origin = origin
        self._hand_back = released
        self._loop = connection.loop or asyncio.get_running_loop()
        self._answer = _NO_ANSWER
        self._unsent: int | None = 0  # body bytes still owed; None: chunked
        self._waiter: asyncio.Future[None] | None = None
        self._progress = 0.0
        self._seconds, self._silence = 0.0, ""  # how long may be waited, and what to say then
        self._error: Exception | None = None
        self._take: Callable[[bytes], bool] | None = None  # what body bytes go to as they come
        self._take_bytes = 0  # at most
        self._aborted = False
        self._released = False
        connection.listen(self)

    # The request

    def start(self, method: bytes, target: bytes, headers: Headers, *, length: int | None, body: bytes = b"") -> None:
        """Write the request head and the first body bytes.

        `length` is the body's size in bytes, None for a chunked body. `headers` must not hold framing fields or Host.
        Raises ValueError, before anything is written, for bytes that would change the framing, and the call's error
        when the connection ended or the call was aborted before the request.
        """
        self.send(method, request_text(method, target, self._origin.authority, headers), length=length, body=body)

    def send(self, method: bytes, text: bytes, *, length: int | None, body: bytes = b"") -> None:
        """Do what `start` does, with a head that `request_text` and `field_text` made."""
        if self._error is None and not self._connection.open:
            self._fail(UpstreamCut("upstream closed the connection"))
        if self._error is not None:
            raise self._error
        if length is None:
            text += b"transfer-encoding: chunked\r\n\r\n"
        elif length or method not in _BODILESS:
            text += b"content-length: %d\r\n\r\n" % length
        else:
            text += b"\r\n"
        self._answer = Answer(method)
        self._unsent = length
        self._progress = self._loop.time()
        framed = self._framed(body)
        self.written = True
        self._connection.write(text + framed if framed else text)
        self.request_done = self._unsent == 0

    @property
    def write_paused(self) -> bool:
        """Say whether upstream is slower than we write; then await `drained()`."""
        return self._connection.write_paused

    def write(self, data: bytes) -> None:
        """Queue body bytes. Raises the call's error once there is one, ValueError beyond the announced length."""
        if self._error is not None:
            raise self._error
        self._progress = self._loop.time()
        self._connection.write(self._framed(data))

    async def drained(self) -> None:
        """Return when upstream has taken enough of the body. Raises UpstreamTimeout after 30 s without progress."""
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await self._connection.drained()
        except TimeoutError:
            self._fail(UpstreamTimeout("upstream stopped reading the request", written=True))
        self._progress = self._loop.time()
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """End the request body. Raises ValueError when bytes are owed."""
        if self.request_done:
            return
        if self._unsent is None:
            self._connection.write(b"0\r\n\r\n")
        elif self._unsent:
            raise ValueError(f"{self._unsent} announced body bytes were not sent")
        self._unsent = 0
        self.request_done = True

    def _framed(self, data: bytes) -> bytes:
        if self._unsent is None:
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        if len(data) > self._unsent:
            raise ValueError("more body bytes than announced")
        self._unsent -= len(data)
        return data

    # The answer

    async def head(self, seconds: float) -> Head:
        """Return the answer's head. Raises UpstreamTimeout, UpstreamCut, UpstreamInvalid, or what `abort` was given."""
        while not self._aborted:
            if self._answer.head is not None:
                return self._answer.head
            await self._wait(seconds, "upstream did not answer")
        raise self._cause()

    async def read(self, idle_seconds: float) -> bytes:
        """Return the next body bytes, b"" at the clean end. Raises like `head`, after all received bytes are read."""
        answer = self._answer
        while not self._aborted:
            if answer.buffered_bytes:
                data = answer.take()
                self._connection.resume_reading()
                return data
            if answer.done:
                return b""
            await self._wait(idle_seconds, "upstream fell silent")
        raise self._cause()

    async def forward(self, take: Callable[[bytes], bool], most_bytes: int, idle_seconds: float) -> bool:
        """Hand body bytes to `take` in the turn of the loop in which they come, until it says no or the body ends.

        Return whether the body has ended; if not, `read` goes on: also where more than `most_bytes` came at once.
        Raises like `read`, and what `take` raises.
        """
        answer, self._take, self._take_bytes = self._answer, take, most_bytes
        try:
            while not self._aborted:
                if answer.buffered_bytes:
                    self._connection.resume_reading()
                    self._hand_over(take)
                if not self._takes():
                    return False
                if answer.done:
                    return True
                await self._wait(idle_seconds, "upstream fell silent")
        finally:
            self._take = None
        raise self._cause()

    def read_at_once(self, most_bytes: int) -> bytes | None:
        """Return the whole body if all of it has arrived and is no longer than this; nothing is read otherwise."""
        answer = self._answer
        if self._aborted or not answer.done or answer.buffered_bytes > most_bytes:
            return None
        return answer.take()

    def abort(self, error: FalProxyError) -> None:
        """Close the connection at once and raise `error` in whoever waits, unless the call is over."""
        if not self._released:
            self._aborted = True
            self._error = error
            self._connection.abort()
            self._wake()

    def release(self) -> None:
        """End the call: keep the connection if both directions ended cleanly, else close it. Idempotent."""
        if self._released:
            return
        self._released = True
        answer = self._answer
        clean = self.request_done and answer.done and answer.reusable and not answer.buffered_bytes
        connection, self._connection = self._connection, _NOBODY
        connection.listen(None)
        clean = clean and self._error is None and not connection.write_paused
        self._hand_back(self._origin, connection, clean)
        self._error = self._error or UpstreamCut("the call is over", written=self.written)
        self._wake()

    async def _wait(self, seconds: float, silence: str) -> None:
        if self._error is not None:
            raise self._error
        self._progress = self._loop.time()
        self._seconds, self._silence = seconds, silence
        self._connection.look_at(self._progress + seconds)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _hand_over(self, take: Callable[[bytes], bool]) -> None:
        """Let `take` have what came; it is asked no more once that was too much, or once it said no."""
        if self._answer.buffered_bytes > self._take_bytes or not take(self._answer.take()):
            self._take = None

    def _takes(self) -> bool:
        return self._take is not None

    def _cause(self) -> Exception:
        return self._error or UpstreamCut("the call was aborted", written=self.written)

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._connection.abort()
        self._wake()

    # What the connection tells

    def on_bytes(self, data: bytes) -> None:
        """Parse what arrived; hold upstream back when the reader is slow."""
        if not self.written:
            self._fail(UpstreamInvalid("upstream spoke before it was asked"))
            return
        self.answered = True
        answer = self._answer
        before, head = answer.buffered_bytes, answer.head
        try:
            answer.feed(data)
        except UpstreamInvalid as error:
            self._fail(error)
            return
        if answer.buffered_bytes > before:
            # Only body bytes are progress: a drip of head or framing bytes must not hold a deadline open.
            self._progress = self._loop.time()
            if answer.buffered_bytes > HIGH_WATER_BYTES:
                self._connection.pause_reading()
            elif self._take is not None:
                try:
                    self._hand_over(self._take)
                except Exception as error:  # noqa: BLE001 -- the loop's turn must not end with it: whoever waits raises it
                    self._fail(error)
                if self._takes() and not answer.done:
                    return
        elif answer.head is head and not answer.done:
            return  # whoever waits would begin a new deadline
        self._wake()

    def on_time(self) -> None:
        """Fail if the deadline has passed; a wait begins anew with each piece of a stream, and the timer does not."""
        if self._waiter is None:
            return
        ends = self._progress + self._seconds
        if ends > self._loop.time():
            self._connection.look_at(ends)
        else:
            self._fail(UpstreamTimeout(f"{self._silence} for {self._seconds:g} s", written=self.written))

    def on_end(self) -> None:
        """Take an orderly close: the end of a close-delimited body, a cut of any other."""
        if not self._answer.end():
            self._fail(UpstreamCut("upstream closed the connection", written=self.written))
        self._wake()

    def on_lost(self, reason: str) -> None:
        """Fail, unless the answer was whole."""
        self._answer.reusable = False
        if not self._answer.done:
            self._fail(UpstreamCut(reason, written=self.written))
        self._wake()
