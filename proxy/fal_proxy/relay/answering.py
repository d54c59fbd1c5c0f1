"""The way down of one exchange: the head, what was read of the body before it, and the rest as it comes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import NamedTuple, Protocol

from fal_proxy.errors import FalProxyError, Refusal, UpstreamError
from fal_proxy.exchange import Exchange, Kind
from fal_proxy.headers import Headers
from fal_proxy.relay.events import WholeCharacters, is_event_stream
from fal_proxy.relay.guard import KeyGuard, Watch, watched
from fal_proxy.relay.inbound import Answer, Push, Send
from fal_proxy.relay.rewrite import PointedBack, point_back
from fal_proxy.relay.whole import Whole
from fal_proxy.upstream.answer import Head
from fal_proxy.upstream.call import Call

PUSHED_BYTES = 16 * 1024  # a longer piece of a stream waits until the caller has taken what was before it
_WATCHED = frozenset([Kind.STATUS, Kind.STATUS_STREAM, Kind.CANCEL])  # the books learn from what passes


class Reset(FalProxyError):
    """Upstream broke after the head went down: the caller's connection must end unclean."""


Respond = Callable[[int, Headers], Awaitable[None]]


class Down(NamedTuple):
    """The way down: what sends the head together with everything that we add to it, then the body.

    `push` is there where the server can write a piece without being awaited, `at_once` where it can a whole answer.
    """

    respond: Respond
    send: Send
    push: Push | None = None
    at_once: Answer | None = None


class Books(Protocol):
    """Whoever learns from answers before they go down."""

    async def answered(self, status: int, body: bytes) -> None:
        """Take an answer that was read whole. Raises UpstreamError when it must not go down."""

    async def passing(self, data: bytes) -> None:
        """Take a piece of an answer that is not read whole, before it goes down."""

    async def ended(self) -> None:
        """Learn that the answer is whole, before its last byte goes down: the caller may ask again at once."""


async def answer(
    call: Call,
    head: Head,
    whole: Whole,
    down: Down,
    idle_seconds: float,
    exchange: Exchange,
    books: Books,
    guard: KeyGuard,
    queue_base: bytes | None,
) -> None:
    """Send the answer down: head, what was read, and the rest as it comes. Raises Reset when upstream breaks meanwhile.

    With a `queue_base`, its queue URLs begin with that. Guard and books have seen them as fal wrote them.
    """
    if whole.ended:
        await _answer_whole(head, whole.body, down, exchange, queue_base)
        return
    shape: WholeCharacters | PointedBack | None = None
    if is_event_stream(head):
        shape = WholeCharacters() if queue_base is None else PointedBack(queue_base)
    new_length = head.status in (204, 304) or isinstance(shape, PointedBack)

    async def pass_on(data: bytes, *, more: bool = True) -> None:
        exchange.bytes_down += len(data)
        await down.send({"type": "http.response.body", "body": data, "more_body": more})

    await down.respond(head.status, _without_length(head) if new_length else head.headers)
    tells, watch = exchange.kind in _WATCHED, guard.watch()
    push = None if tells or not isinstance(shape, WholeCharacters) else _pusher(down.push, watch, shape, exchange)
    first = whole.body
    try:
        while True:
            reading = watched(first, lambda: call.read(idle_seconds), watch, until_clear=push is not None)
            async with aclosing(reading) as pieces:
                async for data in pieces:
                    if tells:
                        await books.passing(data)
                    if shape is not None and not (data := shape.feed(data)):
                        continue
                    await pass_on(data)
            if push is None or await call.forward(push, PUSHED_BYTES, idle_seconds):
                break
            first = b""
    except (UpstreamError, Refusal) as error:  # a Refusal: the body that was still going up broke its cap
        if shape is not None and (rest := shape.rest()):
            await pass_on(rest)
        raise Reset(error.detail) from error
    exchange.whole = True
    if exchange.trace is not None:
        exchange.answered_seconds = exchange.elapsed_seconds
    await books.ended()
    await pass_on(shape.rest() if shape is not None else b"", more=False)


async def _answer_whole(head: Head, body: bytes, down: Down, exchange: Exchange, queue_base: bytes | None) -> None:
    """Send an answer that was read whole; at once where the server can."""
    fields, bodiless = _without_length(head), head.status in (204, 304)
    if queue_base is not None:
        body = point_back(body, queue_base)
    at_once = down.at_once is not None and not bodiless and down.at_once(head.status, fields, body)
    exchange.bytes_down += len(body)
    if not at_once:
        await down.respond(head.status, fields if bodiless else [*fields, (b"content-length", b"%d" % len(body))])
        await down.send({"type": "http.response.body", "body": body, "more_body": False})


def _without_length(head: Head) -> Headers:
    return [field for field in head.headers if field[0] != b"content-length"]


def _pusher(push: Push | None, watch: Watch, shape: WholeCharacters, exchange: Exchange) -> Push | None:
    """Return what takes an event the shortest way, in the call that it came with; None where the server cannot."""
    if push is None:
        return None

    def pass_at_once(data: bytes) -> bool:
        if passed := shape.feed(watch.feed(data)):
            exchange.bytes_down += len(passed)
            return push(passed) and not watch.held
        return not watch.held

    return pass_at_once
