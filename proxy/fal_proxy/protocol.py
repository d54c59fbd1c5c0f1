"""One caller's connection: uvicorn's HTTP/1.1 protocol, made honest and bounded.

Bytes are counted and cut into messages before the parser sees them; what our cut and the parser do not agree on is
refused, and every refusal ends the connection. A request behind one that is not answered yet is not looked at. The app
learns through `scope["extensions"]["fal_proxy"]` what ASGI leaves out: the request target as it was received, how to
reset the connection, how to be told that the caller has left, even behind bytes that nobody reads yet, what was noted of
the same head before, and what goes faster than messages: a body that has come, a whole answer, a piece of one.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, cast

import httptools

from fal_proxy.asgi import EXTENSION
from fal_proxy.downstream.connection import Connection
from fal_proxy.downstream.cycle import Cycle
from fal_proxy.downstream.deadlines import Phase
from fal_proxy.downstream.faults import FRAMING, NOT_HTTP, TOO_LARGE, Fault
from fal_proxy.downstream.framing import MAX_HEAD_BYTES, BehindChunkedBody, Head
from fal_proxy.downstream.heads import describe, judge_framing, judge_head
from fal_proxy.downstream.known_heads import KnownHead, KnownHeads
from fal_proxy.downstream.websocket import SocketProtocol, take_over
from fal_proxy.lifecycle import Stage

if TYPE_CHECKING:
    from uvicorn._types import HTTPScope

    from fal_proxy.asgi import Scope

_SERVING = Stage.SERVING  # looked up once: an enum's members are slow to find


class HttpProtocol(Connection):
    """One connection of a caller, as it is read."""

    def __init__(self, *args: Any, known_heads: KnownHeads | None = None, **kwargs: Any) -> None:
        """Take the heads that its server knows."""
        super().__init__(*args, **kwargs)
        self._known_heads = KnownHeads() if known_heads is None else known_heads
        self._held = bytearray()  # bytes behind a request that is not answered yet
        self._answered_early = False  # the last request, before its body was whole
        self._head = Head()
        self._message_done = True
        self._left: int | None = 0  # of a body; None: chunked
        self._parsing = True  # the parser has seen all that came of this request
        self._new_head: KnownHead | None = None  # what may be remembered of the one that the parser reads
        self._overhead_bytes = 0  # of chunk framing since the last byte of the body, and of trailers
        self._fault: Fault | None = None
        self._overran = False  # the parser has begun a request that our cut does not know
        self._successor: SocketProtocol | None = None  # what an upgrade handed the connection to

    def data_received(self, data: bytes) -> None:
        """Read on, or keep the bytes until the request before them is answered."""
        if self._deadlines.phase is Phase.ANSWER:
            self._hold(data)
        else:
            self._read(data)

    def _read(self, data: bytes, *, behind: bool = False) -> None:
        while data and not self._refused:
            self._behind = behind or self._answered_early
            data = self._read_body(data) if self._head_done and not self._message_done else self._read_head(data)
            if data and self._deadlines.phase is Phase.ANSWER:
                self._hold(data)
                return
            behind = behind or self._message_done
        self._behind = False
        if self._successor is not None and data:
            self._successor.data_received(data)

    def _hold(self, data: bytes) -> None:
        if not self._refused:
            self._held += data
            self.flow.hold()

    def _read_head(self, data: bytes) -> bytes:
        """Feed the bytes of one head; return what is behind it."""
        begins = not self._head.begun
        if begins:
            self._head_done = self._message_done = False
        size = self._head.take(data)
        if not size:
            self._deadlines.continue_head()
            if self._head.full:
                self._refuse(TOO_LARGE)
            elif self._feed(data) and self._head_done:
                self._refuse(NOT_HTTP)
            return b""
        head = data if size == len(data) else data[:size]
        if begins and (known := self._known_heads.find(head)) is not None:
            self._begin_known(known)
        elif self._feed(head):
            if not self._head_done:
                self._refuse(NOT_HTTP)
            elif not self._message_done:
                self._deadlines.enter(Phase.BODY)
            if begins and (new := self._new_head) is not None and self._message_done == (not new.body_bytes):
                self._known_heads.keep(head, new)
        return data[size:]

    def _read_body(self, data: bytes) -> bytes:
        """Feed the bytes of one body; return what is behind it."""
        if self._left is None:
            before = self._deadlines.received
            if self._feed(data) and not self._message_done:
                self._overhead_bytes = 0 if self._deadlines.received > before else self._overhead_bytes + len(data)
                if self._overhead_bytes > MAX_HEAD_BYTES:
                    self._refuse(TOO_LARGE)
            return b""
        if len(data) < self._left:  # and there is more to come: nothing in it is the parser's business
            self._left -= len(data)
            if self._parsing:
                self._parsing = False
                self.parser = httptools.HttpRequestParser(self)  # the other's count would be behind
            self.on_body(data)
            return b""
        piece = data if len(data) == self._left else data[: self._left]
        if not self._parsing:
            self._left = 0
            self.on_body(piece)
            self.on_message_complete()
            return data[len(piece) :]
        self._left -= len(piece)
        if self._feed(piece) and self._message_done != (self._left == 0):
            self._refuse(FRAMING)
        return data[len(piece) :]

    def _feed(self, data: bytes) -> bool:
        """Let the parser read; say whether to go on."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._fault is None:
                self._refused = True  # by this protocol: another one goes on
                self._successor = self._hand_over()
                return False
        except httptools.HttpParserCallbackError:
            if not self._overran:
                raise
            self._end_with_this_answer()
        except httptools.HttpParserError:
            self._refuse(NOT_HTTP)
        if self._fault is not None:
            self._refuse(self._fault)
        return not self._refused

    def on_message_begin(self) -> None:
        """Begin a request, unless our cut has none here."""
        if self._message_done:
            self._overran = True
            raise BehindChunkedBody
        self._overhead_bytes = 0
        self._parsing, self._new_head = True, None
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a field of the head; what comes after it is a trailer and means nothing (RFC 9110 §6.5.1)."""
        if self._head_done:
            self._overhead_bytes += len(name) + len(value) + 4
            return
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Judge the head, tell the app what ASGI leaves out, and start it."""
        self._head_done = True
        version = self.parser.get_http_version()
        self._fault = judge_head(version, self.parser, self.headers, sockets=self.ws_protocol_class is not None)
        if not self._head.begins_with(self.parser.get_method(), self.url, version.encode()):
            self._fault = NOT_HTTP
        if self._fault is None:
            self._left, self.expect_100_continue, self._fault = judge_framing(version, self.headers)
        if self._fault is not None or self.parser.should_upgrade():
            return
        scope, length = self.scope, self._left
        describe(scope, self.parser.get_method(), self.url, version)
        persistent = version == "1.1" and self.parser.should_keep_alive()
        if length is not None and not self.expect_100_continue:
            self._new_head = KnownHead(cast("Scope", scope), self.url, length, persistent=persistent)
        self._start(scope, self._new_head, persistent=persistent)

    def _begin_known(self, known: KnownHead) -> None:
        """Begin a request whose head was read before; the parser, which is between two requests, learns nothing of it."""
        self._parsing, self._new_head, self._overhead_bytes = False, None, 0
        self._head_done = True
        self.url, self._left, self.expect_100_continue = known.target, known.body_bytes, False
        scope = cast("HTTPScope", {**known.scope, "server": self.server, "client": self.client, "scheme": self.scheme})
        scope["state"] = self.app_state.copy()
        self.scope, self.headers = scope, known.scope["headers"]
        self._start(scope, known, persistent=known.persistent)
        if known.body_bytes:
            self._deadlines.enter(Phase.BODY)
        else:
            self.on_message_complete()

    def _start(self, scope: HTTPScope, known: KnownHead | None, *, persistent: bool) -> None:
        """Tell the app of a request, and what ASGI leaves out."""
        keep_alive = persistent and self._lifecycle.stage is _SERVING
        expects, done = self.expect_100_continue, self.on_response_complete
        self.cycle = cycle = Cycle(scope, self.transport, self.flow, self.loop, expects, keep_alive, done)
        own: dict[object, object] = {"raw_target": self.url, "reset": self.cut}
        own["on_departure"], own["push"] = self._departure.listen, cycle.push
        own["received"], own["answer"] = cycle.received, cycle.answer
        own["receive"], own["send"] = cycle.receive, cycle.send
        if known is not None:
            own["notes"] = known.notes
        scope["extensions"] = {EXTENSION: own}
        self._start_asgi_task(cycle, self.app)

    def on_body(self, body: bytes) -> None:
        """Pass body bytes on to the app."""
        self._deadlines.received += len(body)
        self._new_head = None  # in it, where the parser ends a head before our cut does: nothing to remember
        if self._fault is None and not self.cycle.response_complete:
            self.cycle.take(body)

    def on_message_complete(self) -> None:
        """End a request: from now on it is our turn."""
        if self._overhead_bytes > MAX_HEAD_BYTES:
            self._fault = TOO_LARGE
        if self._fault is not None or (self._parsing and self.parser.should_upgrade()):
            return
        self._message_done = True
        self._answered_early = self.cycle.response_complete
        if self._answered_early:
            self._deadlines.enter(Phase.IDLE)
        else:
            self._deadlines.enter(Phase.ANSWER)
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def on_response_complete(self) -> None:
        """Let go of what the answered request registered, and turn to what waits behind it."""
        self.server_state.total_requests += 1
        self._departure.forget()
        self.scope.pop("extensions", None)  # they lead back to the cycle, and garbage waits for its collector
        if self.transport.is_closing():
            return
        if not self.cycle.keep_alive:
            if self._message_done:
                self.transport.close()
            else:
                self._linger()
            return
        self.flow.release()
        if not self._message_done:
            self._deadlines.enter(Phase.LEFTOVER)
            return
        self._deadlines.enter(Phase.IDLE)
        if self._held:
            held = bytes(self._held)
            self._held.clear()
            self._read(held, behind=True)
        elif self._lifecycle.draining:
            self.dismiss()  # its head had gone before the end was known

    def _hand_over(self) -> SocketProtocol:
        """Let a WebSocket go on with this connection, from its first byte."""
        self._sweep.discard(self)
        self.flow.stop_looking()
        self.connections.discard(self)
        place, self._place = self._place, None
        del self.parser  # they hold each other, and garbage waits for its collector
        make = functools.partial(SocketProtocol, self.config, self.server_state, self.app_state, place=place)
        return take_over(make, self._outlet.transport, self.url, self.headers)

    def _end_with_this_answer(self) -> None:
        """Look at nothing more: the parser has gone beyond our cut."""
        self._refused = True
        self.cycle.keep_alive = False
        if self.cycle.response_complete:
            self.transport.close()
