"""A fault proxy of ours between the proxy and whoever plays fal, and the oracle that says what must come of each fault.

`Faulty` leads connections: it reads a request, lets its source answer, and breaks what goes back as a `Fault` says.
`foretell` reads CONTRACT §4 and §8 once more, independently of the proxy's own code.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import NamedTuple

from support.peers import Peer
from support.proxied import MOUNT
from support.scripts import read_body

Source = Callable[[bytes, bytes], Awaitable[bytes]]
PAID = frozenset(["run", "stream", "submit"])
REDIRECT = b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1/elsewhere\r\ncontent-length: 0\r\n\r\n"
STATUS_600 = b"HTTP/1.1 600 Beyond\r\ncontent-length: 2\r\n\r\n{}"
GARBAGE = b"\x16\x03\x01\x02\x00\x01 no HTTP at all \xff\xfe\r\n\r\n"


@dataclass(frozen=True)
class Fault:
    """What becomes of one answer: it is replaced, or sent up to a byte and then ended in some way."""

    after: int | None = None  # bytes of the answer that are sent; None: all
    end: str = "none"  # then: none, reset, close, stall
    instead: bytes | None = None  # another answer in place of it
    extra: bytes = b""  # bytes behind the answer, in one write with it
    drip: bool = False  # byte by byte
    early: bool = False  # before the request's body was read

    def cut(self, wire: bytes) -> bytes:
        """Return the bytes that are sent in place of `wire`."""
        return (wire if self.instead is None else self.instead)[: self.after] + self.extra


CLEAN = Fault()


class Answered(NamedTuple):
    """One answer on the wire, taken apart."""

    status: int
    head_bytes: int
    body: bytes  # as far as it goes, without framing
    whole: bool
    fields: dict[bytes, bytes]


def dissect(wire: bytes, *, ended: bool = False) -> Answered | None:
    """Take an answer apart as far as it goes, None without a whole head; `ended`: its connection was closed."""
    head, found, rest = wire.partition(b"\r\n\r\n")
    if not found:
        return None
    lines = head.split(b"\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
    status = int(lines[0].split(b" ")[1])
    size = len(head) + 4
    if fields.get(b"transfer-encoding") == b"chunked":
        body, whole = _dechunk(rest)
        return Answered(status, size, body, whole, fields)
    if b"content-length" in fields:
        length = int(fields[b"content-length"])
        return Answered(status, size, rest[:length], len(rest) >= length, fields)
    return Answered(status, size, rest, ended, fields)


def _dechunk(rest: bytes) -> tuple[bytes, bool]:
    body = b""
    while True:
        line, found, rest = rest.partition(b"\r\n")
        if not found:
            return body, False
        length = int(line.partition(b";")[0], 16)
        if length == 0:
            return body, rest.startswith(b"\r\n")
        body += rest[:length]
        if len(rest) < length + 2:
            return body, False
        rest = rest[length + 2 :]


POINTED_BACK = b"http://127.0.0.1" + MOUNT.encode() + b"/queue.fal.run/"  # the tests' Host


class Foretold(NamedTuple):
    """What the caller must see, and what the proxy must believe happened."""

    status: int
    error_type: bytes | None  # of an error of ours, None when fal's own answer passes
    body: bytes | None  # fal's, as far as it came
    cut: bool  # the answer must end by a reset
    head: bool  # a usable head of fal's was read
    whole: bool  # fal's answer was read to its end


def foretell(kind: str, wire: bytes, fault: Fault) -> Foretold:
    """Say what must come of a request whose intact answer would be `wire`. The request itself was written whole."""
    sent = fault.cut(wire)
    answer = None if fault.instead == GARBAGE else dissect(sent, ended=fault.end == "close" or fault.end == "none")
    usable = answer is not None and 200 <= answer.status < 600
    redirected = answer is not None and 300 <= answer.status < 400 and answer.status != 304
    if answer is None or not usable or redirected:
        invalid = answer is not None or fault.instead == GARBAGE
        return _failed(kind, fault, invalid=invalid, head=redirected)
    json = answer.fields.get(b"content-type") == b"application/json"
    streamed = answer.fields.get(b"content-type") == b"text/event-stream"
    encoded = b"content-encoding" in answer.fields
    # The tests address by path, so these three kinds' queue URLs are rewritten, where fal accepted.
    rewritten = kind in ("submit", "status", "status_stream") and 200 <= answer.status < 300
    if (kind == "submit" or rewritten) and encoded:
        return _failed(kind, fault, invalid=True, head=True)
    at_once = kind == "submit" or (kind == "run" and json) or (rewritten and not streamed)
    if not answer.whole and at_once:
        return _failed(kind, fault, invalid=False, head=True)
    body = answer.body.replace(b"https://queue.fal.run/", POINTED_BACK) if rewritten else answer.body
    return Foretold(answer.status, None, body, not answer.whole, head=True, whole=answer.whole)


def _failed(kind: str, fault: Fault, *, invalid: bool, head: bool) -> Foretold:
    if kind in PAID:
        return Foretold(500, b"upstream_outcome_unknown", None, cut=False, head=head, whole=False)
    if invalid:
        return Foretold(502, b"upstream_invalid", None, cut=False, head=head, whole=False)
    if fault.end == "stall":
        return Foretold(504, b"upstream_timeout", None, cut=False, head=head, whole=False)
    return Foretold(502, b"upstream_unreachable", None, cut=False, head=head, whole=False)


def charged(sent: Answered | None, *, head: bool, whole: bool, price: int) -> int:
    """Say what CONTRACT §4 charges for a run, a stream or a known result, in micro-dollars; `price` is a unit's.

    `sent` is what came of the answer, `head` and `whole` say how much of it the proxy could use.
    """
    billed = sent.fields.get(b"x-fal-billable-units") if sent is not None and head else None
    if billed is not None:
        return ceil(Fraction(billed.decode()) * price)
    refused = sent is not None and whole and sent.status >= 400 and sent.status != 499
    return 0 if refused else price


class Faulty:
    """Lead connections: ask `source` for each answer, and break it as `choose` says of the request's head."""

    def __init__(self, source: Source, choose: Callable[[bytes], Fault]) -> None:
        self._source = source
        self._choose = choose
        self.resets = 0  # connections yet to come that are reset unread

    async def script(self, peer: Peer) -> None:
        """Lead one connection until it ends."""
        if self.resets:
            self.resets -= 1
            peer.reset()
            return
        while True:
            head = await peer.read_head()
            fault = self._choose(head)
            wire = await self._source(head, b"" if fault.early else await read_body(peer, head))
            sent = fault.cut(wire)
            await (peer.drip(sent) if fault.drip else peer.send(sent))
            if fault.early:
                await read_body(peer, head)
            if fault.end == "stall":
                await peer.wait_gone()
                return
            if fault.end == "reset":
                await peer.delivered()
            if fault.end != "none":
                peer.reset() if fault.end == "reset" else peer.close()
                return


def through(port: int) -> Source:
    """Return a source that asks a server on loopback, on a connection for each request."""

    async def ask(head: bytes, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(head[:-2] + b"connection: close\r\n\r\n" + body)
            answer = await reader.read(-1)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        return answer.replace(b"connection: close\r\n", b"", 1)

    return ask


class Heard(NamedTuple):
    """What came back to a caller on a connection of its own, and how that ended: "fin" or "reset"."""

    received: bytes
    ending: str | None

    @property
    def answer(self) -> Answered:
        """Take the answer apart."""
        answer = dissect(self.received, ended=self.ending == "fin")
        assert answer is not None, self
        return answer


async def call(port: int, data: bytes, seconds: float = 20.0) -> Heard:
    """Send `data` on a connection of its own and read until the other side ends it. Raises TimeoutError: it hangs."""
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    peer = Peer(sock)
    try:
        async with asyncio.timeout(seconds):
            await loop.sock_connect(sock, ("127.0.0.1", port))
            with contextlib.suppress(ConnectionError):  # refused in the middle of an upload: the answer says why
                await peer.send(data)
            ending = await peer.wait_gone()
            return Heard(bytes(peer.received), ending)
    finally:
        peer.close()


def judge(heard: Heard, expected: Foretold, *, unread: bool = False) -> None:
    """Assert that a caller saw what the oracle says.

    `unread`: some of the request may not have been read; then the kernel ends even a whole answer by a reset.
    """
    answer = heard.answer
    assert (answer.status, answer.fields.get(b"x-fal-error-type")) == (expected.status, expected.error_type), heard
    if expected.body is None:
        assert answer.whole, heard
        return
    assert heard.ending == ("reset" if expected.cut else "fin") or (unread and not expected.cut), (heard, expected)
    if expected.cut:
        assert expected.body.startswith(answer.body), heard
    else:
        assert (answer.body, answer.whole) == (expected.body, True), heard
