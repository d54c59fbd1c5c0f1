"""One WebSocket session from the two handshakes to the two ends: messages pass unchanged and in order, both ways.

What must never happen here, and where it is prevented:

- Somebody pays for a socket that nobody holds: whichever side ends, the other is ended at once, with the same code and
  reason where a close frame may carry them; an end without a close frame becomes one (`_Session.end`). A side that is
  gone without a word is noticed: upstream by pings of ours, the caller by those of the server.
- A caller floods: messages are counted per socket (`Terms.messages`), their size is bounded by the server.
- One slow side fills our memory: a message is taken only when the one before it was passed on.
- A session outlives its lease, its own length or the silence of both sides: one wait watches all of these (`_watch`).
- A key goes down: the guard judges each message before it is sent.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fal_proxy.errors import ClientGone, Refusal, UpstreamError, close_code
from fal_proxy.exchange import Ending, Exchange
from fal_proxy.relay.guard import KeyGuard
from fal_proxy.relay.inbound import OnDeparture, Receive, Send
from fal_proxy.stores import SLOTS
from fal_proxy.stores.windows import Window
from fal_proxy.upstream.websocket import CLOSE_SECONDS, NO_CODE, NO_FRAME, SENDABLE_CODES, Closing, Message, Socket

LEASE_SECONDS = 60.0
PING_SECONDS = 20.0
TURN_MESSAGES = 16  # that may wait already; then others have their turn
_REASON_BYTES = 123  # of a close frame (RFC 6455 §5.5)
Lease = Callable[[], Awaitable[None]]


class Terms(NamedTuple):
    """What one socket may do."""

    messages: tuple[tuple[int, int], ...]  # at most so many in so many seconds
    session_seconds: float
    idle_seconds: float


class ServerExtension(NamedTuple):
    """What our own server can do beyond ASGI: end without a close frame, tell of a departure behind unread bytes."""

    break_off: Callable[[], None] | None = None
    on_departure: OnDeparture | None = None


@dataclass(frozen=True, slots=True)
class CallerSocket:
    """The caller's end, as ASGI has it. `gone` is set once they have left, where the server can tell."""

    receive_event: Receive
    send_event: Send
    break_off: Callable[[], None] | None = None  # under our own server, which can close without a code, too
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def receive(self) -> Message | Closing:
        """Return the caller's next message, or how they ended."""
        event = await self.receive_event()
        if event["type"] != "websocket.receive":
            return Closing(event.get("code") or NO_CODE, event.get("reason") or "")
        data = event.get("bytes")
        return Message(data, text=False) if data is not None else Message(event["text"].encode(), text=True)

    async def send(self, message: Message) -> None:
        """Send a message. Raises UnicodeDecodeError for text that is none, ClientGone when the socket is over."""
        event = {"text": message.data.decode()} if message.text else {"bytes": message.data}
        await self._send({"type": "websocket.send", **event})

    async def close(self, code: int, reason: str) -> None:
        """Send a close frame, or none for NO_FRAME. Somebody who reads nothing is not waited for."""
        ours = self.break_off is not None
        if code not in SENDABLE_CODES and not (ours and code in (NO_CODE, NO_FRAME)):
            code = 1000 if code == NO_CODE else 1011
        if code != NO_FRAME:
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._send({"type": "websocket.close", "code": code, "reason": shortened(reason)})
                return
            except ClientGone:
                return
            except TimeoutError:
                pass
        if self.break_off is not None:
            self.break_off()

    async def _send(self, event: dict[str, Any]) -> None:
        try:
            await self.send_event(event)
        except OSError as error:  # what ASGI servers raise once the socket is over
            raise ClientGone from error


async def relay_socket(
    caller: CallerSocket,
    upstream: Socket,
    terms: Terms,
    exchange: Exchange,
    guard: KeyGuard,
    lease: Lease,
    stopped: asyncio.Event,
) -> None:
    """Carry one session to its end, and end both sides.

    `lease` is called every LEASE_SECONDS and raises Refusal when the session must end; `stopped` ends it with 1012.
    """
    session = _Session(caller, upstream, terms, exchange, guard)
    pumps = [asyncio.create_task(session.to_upstream()), asyncio.create_task(session.to_caller())]
    stop = asyncio.create_task(stopped.wait())
    try:
        await session.end(await session.watch(pumps, stop, lease))
    finally:
        for task in (*pumps, stop):
            task.cancel()
        await asyncio.gather(*pumps, stop, return_exceptions=True)


class _End(NamedTuple):
    """Why a session is over: what either side said, or what we say to them."""

    by: str  # "caller", "fal" or "proxy"
    closing: Closing
    ending: Ending = Ending.COMPLETE


class _Session:
    def __init__(
        self, caller: CallerSocket, upstream: Socket, terms: Terms, exchange: Exchange, guard: KeyGuard
    ) -> None:
        self._caller = caller
        self._upstream = upstream
        self._terms = terms
        self._exchange = exchange
        self._guard = guard
        self._clock = asyncio.get_running_loop().time
        self._heard = self._clock()
        self._rates = [(Window(), limit, seconds) for limit, seconds in terms.messages]

    async def to_upstream(self) -> _End:
        """Pass the caller's messages on until they end, or send too many."""
        for count in itertools.count(1):
            if count % TURN_MESSAGES == 0:
                await asyncio.sleep(0)
            message = await self._caller.receive()
            if isinstance(message, Closing):
                gone = message.code == NO_FRAME
                return _End("caller", message, Ending.CLIENT_GONE if gone else Ending.COMPLETE)
            self._heard = now = self._clock()
            for window, limit, seconds in self._rates:
                slot = int(now * SLOTS / seconds)
                if window.count(slot) >= limit:
                    refusal = Refusal("rate_limited", f"more than {limit} messages in {seconds} s")
                    return _refused(refusal)
                window.hit(slot)
            self._exchange.bytes_up += len(message.data)
            self._upstream.send(message)
            if self._upstream.write_paused and not await self._drained():
                return _GONE
        raise AssertionError("the count has no end")

    async def to_caller(self) -> _End:
        """Pass upstream's messages on until it ends."""
        for count in itertools.count(1):
            if count % TURN_MESSAGES == 0:
                await asyncio.sleep(0)
            message = await self._upstream.receive()
            if isinstance(message, Closing):
                return _End("fal", message, Ending.CUT if message.broken else Ending.COMPLETE)
            self._heard = self._clock()
            try:
                self._guard.judge(message.data)
                await self._caller.send(message)
            except UpstreamError as error:
                return _refused(Refusal(error.error_type, error.detail))
            except UnicodeDecodeError:
                return _refused(Refusal("upstream_invalid", "fal sent text that is not UTF-8"))
            except ClientGone:
                return _GONE
            self._exchange.bytes_down += len(message.data)
        raise AssertionError("the count has no end")

    async def _drained(self) -> bool:
        """Wait until upstream takes more; False when the caller has left meanwhile, which no message tells then."""
        waits = [asyncio.create_task(self._upstream.drained()), asyncio.create_task(self._caller.gone.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return waits[0].done()
        finally:
            for wait in waits:
                wait.cancel()

    async def watch(self, pumps: list[asyncio.Task[_End]], stop: asyncio.Task[bool], lease: Lease) -> _End:
        """Wait for the first reason to end."""
        began = self._clock()
        next_lease, next_ping = began + LEASE_SECONDS, began + PING_SECONDS
        over = began + self._terms.session_seconds
        while True:
            due = min(next_lease, next_ping, over, self._heard + self._terms.idle_seconds)
            await asyncio.wait([*pumps, stop], timeout=max(due - self._clock(), 0), return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                if pump.done():
                    return pump.result()
            if stop.done():
                return _refused(Refusal("draining", "this proxy is about to end"))
            now = self._clock()
            if now >= over:
                return _End("proxy", Closing(1000, "the session has reached its length"))
            if now >= self._heard + self._terms.idle_seconds:
                return _End("proxy", Closing(1000, "the session was idle"))
            if now >= next_ping:
                next_ping += PING_SECONDS
                if not self._upstream.ping():
                    return _refused(Refusal("upstream_unreachable", "fal does not answer any more"))
            if now >= next_lease:
                next_lease += LEASE_SECONDS
                try:
                    await lease()
                except Refusal as refusal:
                    return _refused(refusal)

    async def end(self, end: _End) -> None:
        """End the other side as this one ended, or both for a reason of ours."""
        code, reason = end.closing[:2]
        self._exchange.ending = end.ending
        self._exchange.reason = f"closed with {code} by {'fal' if end.by == 'fal' else 'the ' + end.by}: {reason}"
        if end.by != "fal":
            self._upstream.close(*(end.closing[:2] if end.by == "caller" else (1000, "")))
        if end.by == "caller":
            return
        await self._caller.close(code, reason)


_GONE = _End("caller", Closing(NO_FRAME), Ending.CLIENT_GONE)


def _refused(refusal: Refusal) -> _End:
    return _End("proxy", Closing(close_code(refusal.error_type), refusal.detail), Ending.CUT)


def shortened(reason: str) -> str:
    """Return as much of a reason as a close frame holds."""
    return reason.encode()[:_REASON_BYTES].decode(errors="ignore")
