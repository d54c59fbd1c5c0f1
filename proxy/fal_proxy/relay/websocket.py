"""One WebSocket session from the two handshakes to the two ends: messages pass unchanged and in order, both ways.

A session is callbacks, because messages are many: each side tells what came, and it goes to the other in the same call.
What must never happen here, and where it is prevented:

- Somebody pays for a socket that nobody holds: whichever side ends, the other is ended at once, with the same code and
  reason where a close frame may carry them; an end without a close frame becomes one (`_Session._end`). A side that is
  gone without a word is noticed: upstream by pings of ours, the caller by those of the server.
- A caller floods: messages are counted per socket (`Terms.messages`), their size is bounded, by our own server before it
  collects them.
- One slow side fills our memory: what is behind a message that it has not taken is held back (`hold`, `release`).
- A session outlives its lease, its own length or the silence of both sides: one wait watches all of these (`_watch`).
- A key goes down: the guard judges each message before it is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from fal_proxy.errors import Refusal, close_code
from fal_proxy.exchange import Ending, Exchange
from fal_proxy.relay.guard import KeyGuard
from fal_proxy.sockets.end import Side
from fal_proxy.sockets.frames import NO_FRAME, Closing, Message
from fal_proxy.stores import SLOTS
from fal_proxy.stores.windows import Window
from fal_proxy.upstream.websocket import Socket

LEASE_SECONDS = 60.0
PING_SECONDS = 20.0
Lease = Callable[[], Awaitable[None]]


class CallerSide(Side, Protocol):
    """The caller's side."""

    async def close(self, code: int, reason: str) -> None:
        """Send a close frame, none for NO_FRAME. Somebody who reads nothing is not waited for."""


class Terms(NamedTuple):
    """What one socket may do."""

    messages: tuple[tuple[int, int], ...]  # at most so many in so many seconds
    message_bytes: int  # of the caller's
    session_seconds: float
    idle_seconds: float


class _End(NamedTuple):
    """Why a session is over: what either side said, or what we say to them."""

    by: str  # "caller", "fal" or "proxy"
    closing: Closing
    ending: Ending = Ending.COMPLETE


class Session:
    """One session. `run` carries it to its end; `drain` ends it because the process does."""

    def __init__(
        self,
        caller: CallerSide,
        upstream: Socket,
        terms: Terms,
        exchange: Exchange,
        guard: KeyGuard,
        lease: Lease,
    ) -> None:
        """Take both sides; `lease` is called every LEASE_SECONDS and raises Refusal when the session must end."""
        self.caller = caller
        self.upstream = upstream
        self.exchange = exchange
        self.guard = guard
        self.clock = asyncio.get_running_loop().time
        self.heard = self.clock()  # a message, from either side
        self._terms = terms
        self._lease = lease
        self._ended: _End | None = None
        self._woken: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Carry the session to its end, and end both sides."""
        if self._ended is None:
            self.caller.listen(_Up(self, self._terms))
            self.upstream.listen(_Down(self))
        await self._end(await self._watch())

    def drain(self) -> None:
        """End: the process is about to."""
        self.over(_refused(Refusal("draining", "this proxy is about to end")))

    def over(self, end: _End) -> None:
        """Note the first reason to end, behind which nothing passes."""
        if self._ended is None:
            self._ended = end
            self._wake()
            self.caller.listen(None)
            self.upstream.listen(None)

    async def _watch(self) -> _End:
        """Wait for the first reason to end."""
        began = self.clock()
        next_lease, next_ping = began + LEASE_SECONDS, began + PING_SECONDS
        over = began + self._terms.session_seconds
        while True:
            if self._ended is None:
                await self._sleep(min(next_lease, next_ping, over, self.heard + self._terms.idle_seconds))
            if self._ended is not None:
                return self._ended
            now = self.clock()
            if now >= over:
                return _End("proxy", Closing(1000, "the session has reached its length"))
            if now >= self.heard + self._terms.idle_seconds:
                return _End("proxy", Closing(1000, "the session was idle"))
            if now >= next_ping:
                next_ping += PING_SECONDS
                if not self.upstream.ping():
                    return _refused(Refusal("upstream_unreachable", "fal does not answer any more"))
            if now >= next_lease:
                next_lease += LEASE_SECONDS
                try:
                    await self._lease()
                except Refusal as refusal:
                    return _refused(refusal)

    async def _sleep(self, until: float) -> None:
        """Wait, but no longer than the session."""
        loop = asyncio.get_running_loop()
        self._woken = loop.create_future()
        timer = loop.call_at(until, self._wake)
        try:
            await self._woken
        finally:
            timer.cancel()

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def _end(self, end: _End) -> None:
        """End the other side as this one ended, or both for a reason of ours."""
        self.over(end)
        code, reason = end.closing[:2]
        self.exchange.ending = end.ending
        self.exchange.reason = f"closed with {code} by {'fal' if end.by == 'fal' else 'the ' + end.by}: {reason}"
        if end.by != "fal":
            self.upstream.close(*(end.closing[:2] if end.by == "caller" else (1000, "")))
        if end.by != "caller":
            await self.caller.close(code, reason)


class _Up:
    """What the caller says."""

    def __init__(self, session: Session, terms: Terms) -> None:
        self._session = session
        self._rates = [(Window(), limit, seconds) for limit, seconds in terms.messages]
        self._max_bytes = terms.message_bytes

    def on_message(self, message: Message) -> None:
        session = self._session
        session.heard = now = session.clock()
        for window, limit, seconds in self._rates:
            if not window.admit(int(now * SLOTS / seconds), limit):
                session.over(_refused(Refusal("rate_limited", f"more than {limit} messages in {seconds} s")))
                return
        frame, start, _ = message
        size = len(frame) - start
        if size > self._max_bytes:  # where the server has no bound, or another one
            session.over(_refused(Refusal("body_too_large", f"a message has at most {self._max_bytes} bytes")))
            return
        session.exchange.bytes_up += size
        session.upstream.send(message)
        if session.upstream.write_paused:
            session.caller.hold()

    def on_closing(self, closing: Closing) -> None:
        gone = closing.code == NO_FRAME
        self._session.over(_End("caller", closing, Ending.CLIENT_GONE if gone else Ending.COMPLETE))

    def on_writable(self) -> None:
        self._session.upstream.release()


class _Down:
    """What fal says."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def on_message(self, message: Message) -> None:
        session = self._session
        session.heard = session.clock()
        frame, start, _ = message
        if session.guard.holds_key(frame[start:]):
            found = session.guard.alarm()
            session.over(_refused(Refusal(found.error_type, found.detail)))
            return
        session.exchange.bytes_down += len(frame) - start
        session.caller.send(message)
        if session.caller.write_paused:
            session.upstream.hold()

    def on_closing(self, closing: Closing) -> None:
        self._session.over(_End("fal", closing, Ending.CUT if closing.broken else Ending.COMPLETE))

    def on_writable(self) -> None:
        self._session.caller.release()


def _refused(refusal: Refusal) -> _End:
    return _End("proxy", Closing(close_code(refusal.error_type), refusal.detail), Ending.CUT)
