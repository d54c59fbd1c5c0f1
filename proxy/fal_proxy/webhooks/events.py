"""`GET <mount>/events`: a caller's finished jobs as server-sent events, from the mailbox to the page.

A stream holds one number, that of the last event it has sent, and asks the mailbox for what comes after it: when one is
filed for its caller, in whichever process, and as soon as the page has taken what it was sent. So nothing is queued, a slow
reader waits for itself alone, and one that comes back with its number misses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import msgspec

from fal_proxy.admission.refusals import unavailable
from fal_proxy.errors import ClientGone, Refusal, StoreUnavailable, UpstreamInvalid
from fal_proxy.exchange import Caller, Kind
from fal_proxy.gateway import Arrival, Gateway
from fal_proxy.headers import Headers
from fal_proxy.relay.guard import KeyGuard
from fal_proxy.relay.inbound import Inbound
from fal_proxy.request import Request
from fal_proxy.routes import EVENTS
from fal_proxy.stores.mailbox import Event, Mailbox, Notice

HEARTBEAT_SECONDS = 15.0
STREAM_SECONDS = 600.0  # then the page connects again, and shows again who it is
RECONNECT_MILLISECONDS = 2000
MAX_STREAMS = 8  # of one caller, in one process
MAX_PAYLOAD_BYTES = 256 * 1024  # of a whole webhook; a page reads what is larger by its request id
BACKLOG = 100
_PAGE = 20
_RETRY_AFTER = ((b"retry-after", b"5"),)
_HEAD: Headers = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")]
_NUMBER = re.compile(rb"[0-9]{1,15}")


class Events:
    """The open streams of one process, and who they are for."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._streams: Counter[str] = Counter()  # by caller
        self._waiting: dict[str, set[asyncio.Event]] = {}  # by identity
        self._end: Callable[[], None] | None = None

    async def serve(self, gateway: Gateway, arrival: Arrival) -> None:
        """Answer with events until the caller leaves, the stream's time is over, or this process drains."""
        request, reply = arrival.request, arrival.reply
        reply.exchange.kind = Kind.EVENTS
        caller = await gateway.identities.identify(request)
        reply.exchange.caller, reply.exchange.plan, reply.cookie = caller, caller.plan, caller.set_cookie
        if request.path != gateway.mount + EVENTS.raw:
            raise Refusal("not_found", "events are at /events")
        await gateway.judge_ordinary(request, caller, arrival.accepted)
        wake = asyncio.Event()
        inbound = Inbound(arrival.receive, 0, arrival.announced, arrival.server.on_departure)
        inbound.complete = True
        with self._open(caller, wake):
            last = await self._begin_after(request, caller.proves)
            inbound.on_gone = wake.set
            inbound.watch()
            undo = gateway.lifecycle.on_draining(wake.set)
            try:
                await self._stream(gateway, arrival, inbound, caller.proves, last, wake)
            finally:
                undo()
                inbound.close()

    def close(self) -> None:
        """Stop listening."""
        if self._end is not None:
            self._end()

    async def _stream(
        self,
        gateway: Gateway,
        arrival: Arrival,
        inbound: Inbound,
        identities: frozenset[str],
        last: int,
        wake: asyncio.Event,
    ) -> None:
        reply, loop, lifecycle = arrival.reply, asyncio.get_running_loop(), gateway.lifecycle
        ends = loop.time() + STREAM_SECONDS

        def over() -> bool:
            return inbound.gone or lifecycle.draining or loop.time() >= ends

        await reply.begin(_HEAD)
        await reply.piece(b"retry: %d\n\n" % RECONNECT_MILLISECONDS)
        while not over():
            wake.clear()  # before the question: what is filed after it sets it again
            events = await self._since(identities, last)
            for event in events:
                await reply.piece(frame(event, gateway.key_guard))
                last = event.number
                if over():
                    break
            if not events and not await _woken(wake, min(HEARTBEAT_SECONDS, max(ends - loop.time(), 0))):
                await reply.piece(b":\n\n")
        if inbound.gone:
            raise ClientGone
        await reply.piece(b"", last=True)

    async def _begin_after(self, request: Request, identities: frozenset[str]) -> int:
        """Return the number after which the caller has not seen anything: the one it names, or where the backlog begins."""
        given = request.one(b"last-event-id")
        if given is not None and _NUMBER.fullmatch(given):
            return int(given)
        try:
            return await self._mailbox.before_newest(identities, BACKLOG)
        except StoreUnavailable as error:
            raise unavailable() from error

    async def _since(self, identities: frozenset[str], last: int) -> Sequence[Event]:
        try:
            return await self._mailbox.since(identities, last, _PAGE)
        except StoreUnavailable:
            return ()  # the next heartbeat asks again

    @contextlib.contextmanager
    def _open(self, caller: Caller, wake: asyncio.Event) -> Iterator[None]:
        """Count a stream and let it be woken. Raises Refusal `concurrency_limited`."""
        if self._streams[caller.id] >= MAX_STREAMS:
            detail = f"you have {MAX_STREAMS} streams of events open, which is the limit"
            raise Refusal("concurrency_limited", detail, headers=_RETRY_AFTER)
        if self._end is None:
            self._end = self._mailbox.listen(self._wake)
        self._streams[caller.id] += 1
        for identity in caller.proves:
            self._waiting.setdefault(identity, set()).add(wake)
        try:
            yield
        finally:
            self._streams[caller.id] -= 1
            if not self._streams[caller.id]:
                del self._streams[caller.id]
            for identity in caller.proves:
                self._waiting[identity].discard(wake)
                if not self._waiting[identity]:
                    del self._waiting[identity]

    def _wake(self, notice: Notice) -> None:
        for owner in notice.owners:
            for wake in self._waiting.get(owner, ()):
                wake.set()


async def _woken(wake: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await wake.wait()
    except TimeoutError:
        return False


class _Said(msgspec.Struct):
    """What fal said of a job's end, as it stands in the body."""

    payload: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    payload_error: msgspec.Raw = msgspec.Raw()


def frame(event: Event, guard: KeyGuard) -> bytes:
    """Return an event as its stream shows it; its data is one line whatever the body holds."""
    told = {
        "request_id": event.request_id,
        "endpoint_id": event.endpoint_id,
        "status": "OK" if event.ok else "ERROR",
        "received_at": event.received_at,
        **_outcome(event.body, guard),
    }
    return b"id: %d\nevent: result\ndata: %b\n\n" % (event.number, msgspec.json.encode(told))


def _outcome(body: bytes, guard: KeyGuard) -> dict[str, object]:
    """Return what a page is told beside the status: fal's own JSON without its white space, or that it is left out."""
    omitted: dict[str, object] = {"payload_omitted": True}
    if len(body) > MAX_PAYLOAD_BYTES:
        return omitted
    try:
        guard.judge(body)
        body.decode()  # of what is not decoded, msgspec does not look at the encoding
        said = msgspec.structs.asdict(msgspec.json.decode(body, type=_Said))
        # White space between tokens is the only place where JSON allows a line to end.
        return {
            name: msgspec.Raw(msgspec.json.format(bytes(raw), indent=-1)) for name, raw in said.items() if bytes(raw)
        }
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, UpstreamInvalid):
        return omitted
