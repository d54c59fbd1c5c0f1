"""One HTTP exchange from a decided request to the end of its answer.

What must never happen here, and where it is prevented:

- A malformed or oversized request reaches fal: up to JSON_WHOLE_BYTES of a JSON body are read before anything is
  dialled (`_first_bytes`); what is longer streams, and a breach of the cap on the way ends the upload unfinished. A
  body that policy judged was read whole before it came here and goes up as policy rebuilt it.
- Work goes on for nobody: from the first dial to the last byte a watcher holds the caller's `receive()`; a departure
  aborts the upstream call at once. A submit that was sent whole is the exception: its answer is read to the end, for
  at most DEPARTED_SECONDS, because a paid job that nobody knows of helps nobody.
- A client repeats what may have been paid: clients repeat 429, 502, 503, 504 and cut connections by themselves. So
  once a byte of a paid request was written, every failure before the head goes down is 500 `upstream_outcome_unknown`
  (`refusal_for`); and the head of submit, and of a run's JSON answer up to RUN_WHOLE_BYTES, goes down only when the
  answer was read whole.
- A cut answer looks whole: after the head, a broken upstream resets the caller's connection (`Reset`).
- One of our keys goes down: the guard judges the head, and every piece of the body before it is sent.

The relay repeats nothing, with one exception: on a reused connection that died before any answer, an unpaid GET is sent
once more on a fresh one; so is a request of which no byte had been written.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from fal_proxy.errors import ClientGone, Refusal, UpstreamCut, UpstreamError, UpstreamInvalid
from fal_proxy.exchange import Exchange, Kind, Target, Traits
from fal_proxy.headers import UNITS_FIELD, Headers, billable_units
from fal_proxy.relay.answering import Books, Down, answer
from fal_proxy.relay.guard import KeyGuard
from fal_proxy.relay.inbound import Inbound
from fal_proxy.relay.whole import read_whole
from fal_proxy.upstream.answer import Head
from fal_proxy.upstream.call import Call
from fal_proxy.upstream.dial import Origin
from fal_proxy.upstream.engine import Engine
from fal_proxy.upstream.keys import Key
from fal_proxy.upstream.request_text import request_text

JSON_WHOLE_BYTES = 256 * 1024
RUN_HEAD_SECONDS = 3600.0
SESSION_HEAD_SECONDS = 120.0  # what the client of world models waits
DEPARTED_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long upstream may take, in seconds: until the head, and between two pieces of a body."""

    head_seconds: float
    body_idle_seconds: float

    def until_head(self, kind: Kind) -> float:
        """Return the head's deadline: a run answers only when the work is done."""
        least = SESSION_HEAD_SECONDS if kind is Kind.WMA else 0
        return max(RUN_HEAD_SECONDS if kind in (Kind.RUN, Kind.STREAM) else least, self.head_seconds)


class Outgoing(msgspec.Struct, gc=False):
    """A request that was judged in every respect and is ready to be sent, with a key that is chosen each time.

    It may be sent many times, so nothing in it changes but its text, which is made when it is first asked for.
    """

    method: bytes
    origin: Origin
    path_and_query: bytes
    headers: Headers
    target: Target
    announced_bytes: int | None  # by the caller; 0: no body, None: chunked
    judged: bytes | None = None  # what was read and judged: a JSON body of ours, or the first bytes of an upload
    queue_base: bytes | None = None  # what the queue URLs in the answer shall begin with instead of fal's own host
    _text: bytes = b""

    @property
    def text(self) -> bytes:
        """Return the head as text, without what key and body add; made once."""
        if not self._text:
            self._text = request_text(self.method, self.path_and_query, self.origin.authority, self.headers)
        return self._text

    def __repr__(self) -> str:
        return f"Outgoing({self.method!r}, {self.target!r})"  # its fields may hold a bearer

    def rebuilt(self, body: bytes) -> Outgoing:
        """Return the request with this JSON body, called JSON, instead of the caller's."""
        kept = [pair for pair in self.headers if pair[0] != b"content-type"]
        return replace(self, headers=[(b"content-type", b"application/json"), *kept], judged=body, _text=b"")


async def relay(
    engine: Engine,
    outgoing: Outgoing,
    key: Key | None,
    inbound: Inbound,
    down: Down,
    patience: Patience,
    exchange: Exchange,
    books: Books,
    guard: KeyGuard,
) -> None:
    """Carry one exchange, with a fal key where it needs one.

    Raises Refusal before the head went down, Reset after it, ClientGone for a departed caller.
    What happens upstream is noted in `exchange`; `books` learn what answers say before they go down, even if nobody
    waits for them any more.
    """
    kind = outgoing.target.kind
    first = await _first_bytes(outgoing, inbound)
    inbound.watch()
    upload = _Upload(inbound, kind.traits, exchange, b"" if key is None else key.line)
    try:
        try:
            call, head = await _ask(engine, outgoing, upload, first, patience.until_head(kind), exchange)
            base = outgoing.queue_base if 200 <= head.status < 300 else None
            whole = await read_whole(call, head, kind, patience.body_idle_seconds, rewritten=base is not None)
            exchange.whole = whole.ended
            if whole.ended and exchange.trace is not None:
                exchange.answered_seconds = exchange.elapsed_seconds
            if key is not None:
                said = whole.body if whole.ended else b""
                key.answered(head.status, said, from_job=exchange.named, paid=kind.traits.paid)
            if whole.ended:
                await books.answered(head.status, whole.body)
                await books.ended()
            guard.judge_fields(head.headers, whole.body)
        except UpstreamError as error:
            raise refusal_for(error, kind.traits) from error
        if inbound.gone:
            raise ClientGone
        await answer(call, head, whole, down, patience.body_idle_seconds, exchange, books, guard, base)
    finally:
        upload.close()


def refusal_for(error: UpstreamError, traits: Traits) -> Refusal:
    """Return what the caller is told about a failed upstream call."""
    if traits.paid and error.written:
        detail = f"the request reached fal and its outcome is unknown ({error.detail}); it may have been billed"
        return Refusal("upstream_outcome_unknown", detail)
    return Refusal(error.error_type, error.detail)


async def _first_bytes(outgoing: Outgoing, inbound: Inbound) -> bytes:
    if outgoing.judged is not None:
        return outgoing.judged
    if outgoing.announced_bytes != 0 and outgoing.target.kind.traits.json_body:
        return await inbound.read_first(JSON_WHOLE_BYTES)
    inbound.complete = True  # a body that the kind does not know is not read
    return b""


class _Upload:
    """The way up: the request, its body, and what the caller's departure means for it. Owns the call it started."""

    def __init__(self, inbound: Inbound, traits: Traits, exchange: Exchange, key_line: bytes) -> None:
        self._inbound = inbound
        self._key_line = key_line
        self._traits = traits
        self._exchange = exchange
        self._call: Call | None = None
        self._pump: asyncio.Task[None] | None = None
        self._patience: asyncio.TimerHandle | None = None  # with an answer for nobody

    def start(self, call: Call, outgoing: Outgoing, first: bytes) -> None:
        """Write the request. Raises ClientGone, with nothing written, when nobody waits for the answer any more."""
        self._call = call
        if self._inbound.gone:
            raise ClientGone
        self._inbound.on_gone = self._departed
        complete = self._inbound.complete
        length = len(first) if complete else outgoing.announced_bytes
        call.send(outgoing.method, outgoing.text + self._key_line, length=length, body=first)
        self._exchange.written = True
        self._exchange.bytes_up = len(first)
        if not complete:
            self._pump = asyncio.get_running_loop().create_task(self._to_upstream(call))

    def drop(self) -> None:
        """Let go of a call that another attempt replaces."""
        self._inbound.on_gone = None
        if self._call is not None:
            self._call.release()

    def close(self) -> None:
        """End everything that this exchange started."""
        self._inbound.close()
        if self._pump is not None:
            self._pump.cancel()
        if self._patience is not None:
            self._patience.cancel()  # a timer that nobody needs would keep call and answer in memory
        if self._call is not None:
            self._call.release()

    def _departed(self) -> None:
        call = self._call
        if call is None:
            return
        if self._traits.survives_departure and call.request_done:
            self._patience = asyncio.get_running_loop().call_later(DEPARTED_SECONDS, call.abort, ClientGone())
        else:
            call.abort(ClientGone())

    async def _to_upstream(self, call: Call) -> None:
        try:
            while data := await self._inbound.read():
                call.write(data)
                self._exchange.bytes_up += len(data)
                if call.write_paused:
                    await call.drained()
            call.finish()
        except Refusal as refusal:
            call.abort(refusal)
        except ValueError:
            call.abort(Refusal("bad_request", "the body is not as long as its Content-Length says"))
        except (ClientGone, UpstreamError):
            pass  # `_departed` has acted, or whoever reads the answer learns it there


async def _ask(
    engine: Engine, outgoing: Outgoing, upload: _Upload, first: bytes, head_seconds: float, exchange: Exchange
) -> tuple[Call, Head]:
    """Send the request and return the answer's head."""
    repeatable = outgoing.method == b"GET" and not outgoing.target.kind.traits.paid
    if exchange.trace is not None:
        exchange.host, exchange.asked_seconds = outgoing.target.host.decode("ascii"), exchange.elapsed_seconds
    call = engine.reuse(outgoing.origin)
    if call is None:
        call = await _dial(engine, outgoing, exchange)
    else:
        exchange.reused = True
    try:
        upload.start(call, outgoing, first)
        head = await call.head(head_seconds)
    except UpstreamCut:
        if not call.reused or call.answered or (call.written and not repeatable):
            raise
        upload.drop()
        call = await _dial(engine, outgoing, exchange)
        upload.start(call, outgoing, first)
        head = await call.head(head_seconds)
    exchange.first_byte_seconds = exchange.clock() - exchange.started
    exchange.upstream_status, exchange.units = head.status, billable_units(head.lines(UNITS_FIELD))
    names = head.lines(b"x-fal-request-id")
    exchange.named = bool(names)
    if names and not exchange.request_id:
        exchange.request_id = names[0].decode("latin-1")
    if 300 <= head.status < 400 and head.status != 304:
        raise UpstreamInvalid("upstream answered with a redirect, which is never followed", written=True)
    return call, head


async def _dial(engine: Engine, outgoing: Outgoing, exchange: Exchange) -> Call:
    """Return a call on a new connection, noting how long dialling took, whether it succeeded or not."""
    began = exchange.clock()
    exchange.reused = False
    try:
        return await engine.open(outgoing.origin, fresh=True)
    finally:
        exchange.dialled_seconds = exchange.clock() - began
