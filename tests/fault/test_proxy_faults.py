"""Every way in which upstream can break, through the whole live proxy, for every kind: what the caller sees, that the
next caller is served, that nothing is held any more, and whose money it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fal_proxy.relay import http as relay_http
from fal_proxy.settings import Upstream as UpstreamSettings
from fal_proxy.upstream.connection import Connection
from fal_proxy.upstream.dial import Dialer, Origin
from fal_proxy.upstream.pool import Pool
from support.certificates import server_context
from support.faults import (
    CLEAN,
    GARBAGE,
    REDIRECT,
    STATUS_600,
    Fault,
    Faulty,
    Foretold,
    call,
    charged,
    dissect,
    foretell,
    judge,
)
from support.limited import RUN, STREAM, SUBMIT, Limited, events, kind_of, limited, limits, result, said, units, wide
from support.limited import cancel as cancel_of
from support.limited import status as status_of
from support.limited import status_stream as status_stream_of
from support.peers import PATIENCE, Peer, Serve, Upstream, turns
from support.proxied import MOUNT
from support.raw import request
from support.scripts import ok

PRICE = 10_000  # micro-dollars a unit
IMPATIENT = 0.15
NAMED = b"x-fal-request-id: r"


def chunked(data: bytes, kind: bytes = b"application/json", *lines: bytes) -> bytes:
    """Return an answer in two chunks."""
    half = len(data) // 2 or 1
    head = [b"HTTP/1.1 200 OK", b"content-type: " + kind, b"transfer-encoding: chunked", *lines, b"", b""]
    pieces = [piece for piece in (data[:half], data[half:]) if piece]
    return b"\r\n".join(head) + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


def unframed(data: bytes, kind: bytes) -> bytes:
    """Return an answer that ends with its connection."""
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n\r\n%b" % (kind, data)


EVENTS = b"data: 1\n\ndata: \xe2\x82\xac\n\n"
JOB = "job-1"
SUBMITTED = msgspec.json.encode(
    {"request_id": JOB, "response_url": f"https://queue.fal.run/fal-ai/flux/requests/{JOB}"}
)
WIRES = {
    "run": ok(b'{"images": []}', units("2")),
    "stream": chunked(EVENTS, b"text/event-stream", units("3")),
    "submit": ok(SUBMITTED),
    "status": said(202, b'{"status":"IN_QUEUE"}'),
    "status_stream": events(b'{"status":"IN_QUEUE"}'),
    "result": ok(b'{"images": []}', units("5"), NAMED),
    "cancel": said(202, b'{"status":"CANCELLATION_REQUESTED"}'),
}
REQUESTS = {
    "run": RUN,
    "stream": STREAM,
    "submit": SUBMIT,
    "status": status_of(JOB),
    "status_stream": status_stream_of(JOB),
    "result": result(JOB),
    "cancel": cancel_of(JOB),
}
KINDS = list(REQUESTS)


class Rig:
    """A live proxy that counts, behind it the fault proxy, behind that scripted answers."""

    def __init__(self, proxy: Limited, upstream: Upstream) -> None:
        self.limited = proxy
        self.upstream = upstream
        self.fault = CLEAN
        self.wires = dict(WIRES)
        self.heads: list[bytes] = []

    @property
    def app(self) -> Any:
        return self.limited.proxy.app._gateway

    async def ask(
        self, kind: str, fault: Fault = CLEAN, *, version: str = "1.1", body: bytes = b"{}", unsent: int = 0
    ) -> Foretold:
        """Ask with a fault, judge what comes back, and return what the oracle said; the last bytes may stay unsent."""
        self.fault = fault
        expected = foretell(kind, self.wires[kind], fault)
        data = self.raw(kind, version=version, body=body)
        judge(await call(self.limited.proxy.port, data[: len(data) - unsent]), expected)
        self.fault = CLEAN
        return expected

    def raw(self, kind: str, *, version: str = "1.1", body: bytes = b"{}") -> bytes:
        """Return a request that asks for its connection to be closed."""
        method, path = REQUESTS[kind]
        fields = [*self.limited.ada, ("Connection", "close")]
        data = request(method, MOUNT + path, fields, body if method == "POST" else None)
        return data.replace(b"HTTP/1.1", b"HTTP/" + version.encode(), 1)

    async def quiet(self) -> None:
        """Wait until nothing is in progress, and see that nothing is held."""
        async with asyncio.timeout(PATIENCE):
            while self.app.telemetry.in_progress or self.app.engine.open_calls:
                await turns(1)
        assert not self.app.settler._open

    async def money(self) -> tuple[int, int]:
        return await self.limited.money(self.limited.ada)

    async def fine(self) -> None:
        """The next caller is served, on a reused connection too, and no slot is taken."""
        await self.quiet()
        for _ in range(2):
            await self.ask("run")
        await self.quiet()
        assert self.app.engine.idle == 1
        assert await self.limited.in_use(self.limited.ada) == await self.reserved() // PRICE

    async def reserved(self) -> int:
        return (await self.money())[1]


MakeRig = Callable[[], Awaitable[Rig]]


@pytest.fixture
async def rig(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    """A proxy with short deadlines and a budget, which holds one job already."""
    monkeypatch.setattr(relay_http, "RUN_HEAD_SECONDS", IMPATIENT)
    made: list[Rig] = []

    async def source(head: bytes, _: bytes) -> bytes:
        method, path = (word.decode() for word in head.split(b" ")[:2])
        made[0].heads.append(head)
        return made[0].wires[kind_of(method, path)]

    faulty = Faulty(source, lambda _: made[0].fault)
    patience = UpstreamSettings(connect_seconds=1, head_seconds=IMPATIENT, body_idle_seconds=IMPATIENT)
    settings = limits(tmp_path, wide(budget="10000.00/total"), prices={"default": 0.01}, upstream=patience)
    async with contextlib.AsyncExitStack() as stack:
        upstream = serve(faulty.script)
        proxy = await stack.enter_async_context(limited(upstream, tmp_path, settings))
        made.append(Rig(proxy, upstream))
        await made[0].ask("submit")
        yield made[0]


async def _each(rig: Rig, kind: str, faults: list[Fault]) -> None:
    """Ask once for each fault; after each, nothing is held and the money is as the table says."""
    spent, reserved = await rig.money()
    assert reserved == PRICE
    job_open = True
    for fault in faults:
        wire = rig.wires[kind]
        expected = await rig.ask(kind, fault)
        await rig.quiet()
        if kind in ("run", "stream"):
            sent = None if fault.instead == GARBAGE else dissect(fault.cut(wire))
            spent += charged(sent, head=expected.head, whole=expected.whole, price=PRICE)
        elif kind == "submit" and expected.error_type is not None:
            spent += PRICE  # an outcome that nobody knows
        elif kind == "result" and expected.head and expected.status < 300 and job_open:
            spent, reserved, job_open = spent + 5 * PRICE, 0, False
        assert await rig.money() == (spent, reserved if kind != "submit" else (await rig.reserved())), fault
    await rig.fine()


@pytest.mark.parametrize("end", ["reset", "close"])
@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_that_breaks_off_at_any_byte_is_an_error_or_a_visible_cut(
    kind: str, end: str, rig: Rig
) -> None:
    await _each(rig, kind, [Fault(after=count, end=end) for count in range(len(rig.wires[kind]))])


WRONG = [
    (Fault(instead=GARBAGE), "no HTTP at all"),
    (Fault(instead=REDIRECT), "a redirect is never followed"),
    (Fault(instead=STATUS_600), "no status that HTTP knows"),
    (Fault(instead=REDIRECT, end="close"), "a redirect, then the end"),
    (Fault(after=0, end="stall"), "no answer"),
    (Fault(after=20, end="stall"), "half a head"),
    (Fault(after=-1, end="stall"), "all but the last byte"),
    (Fault(extra=b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen"), "an answer that nobody asked for"),
    (Fault(extra=GARBAGE), "bytes behind the answer"),
    (Fault(drip=True), "byte by byte"),
    (Fault(drip=True, after=-1, end="reset"), "byte by byte, but the last"),
]


@pytest.mark.parametrize(("fault", "reason"), WRONG, ids=[reason.replace(" ", "-") for _, reason in WRONG])
@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_that_is_wrong_slow_or_too_long_reaches_only_whom_it_is_for(
    kind: str, fault: Fault, reason: str, rig: Rig
) -> None:
    await _each(rig, kind, [fault])


@pytest.mark.parametrize("kind", KINDS)
async def test_gzip_that_nobody_asked_for_passes_untouched_unless_we_must_read_it(kind: str, rig: Rig) -> None:
    packed = gzip.compress(b'{"request_id": "x"}')
    await _each(rig, kind, [Fault(instead=ok(packed, b"content-encoding: gzip", units("5"), NAMED))])
    assert all(b"accept-encoding: identity" in head for head in rig.heads)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("framing", ["close-delimited", "chunked"])
@pytest.mark.parametrize("kind", ["stream", "status_stream", "run"])
async def test_a_cut_is_a_reset_for_every_caller_and_framing(kind: str, framing: str, version: str, rig: Rig) -> None:
    media = b"image/png" if kind == "run" else b"text/event-stream"
    rig.wires[kind] = unframed(EVENTS, media) if framing == "close-delimited" else chunked(EVENTS, media)
    whole = await rig.ask(kind, Fault(end="close"), version=version)
    assert not whole.cut
    for end in ("reset", "stall"):
        cut = await rig.ask(kind, Fault(after=len(rig.wires[kind]) - 6, end=end), version=version)
        assert cut.cut
    rig.wires[kind] = WIRES[kind]
    await rig.fine()


@pytest.mark.parametrize("unsent", [0, 100_000], ids=["all-was-sent", "the-caller-holds-the-rest"])
@pytest.mark.parametrize("kind", ["run", "stream", "submit"])
async def test_an_answer_before_the_upload_ended_is_the_answer(kind: str, unsent: int, rig: Rig) -> None:
    body = b'{"prompt": "' + b"x" * 700_000 + b'"}'
    early = Fault(early=True, instead=said(413, b'{"detail": "too long"}'))
    expected = await rig.ask(kind, early, body=body, unsent=unsent)
    assert expected.status == 413
    assert await rig.money() == (0, PRICE), "a whole refusal of fal's is released"
    await rig.fine()


NO_CONNECTION = [
    ("refused", 502, b"upstream_unreachable"),
    ("no-such-name", 502, b"upstream_unreachable"),
    ("black-hole", 504, b"upstream_timeout"),
    ("bad-certificate", 502, b"upstream_unreachable"),
]


@pytest.mark.parametrize(("why", "status", "error_type"), NO_CONNECTION, ids=[row[0] for row in NO_CONNECTION])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_connection_that_never_came_to_be_costs_nothing_and_is_told_as_repeatable(
    kind: str, why: str, status: int, error_type: bytes, rig: Rig, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = Dialer.connect

    async def silent(peer: Peer) -> None:
        await peer.wait_gone()

    async def elsewhere(self: Dialer, origin: Origin) -> Connection:
        places = {
            "refused": Origin("http", "127.0.0.1", 1, trusted=True),
            "no-such-name": Origin("http", "no-such-name.invalid", 80, trusted=True),
            # A handshake that is never answered takes the same budget as a SYN that is not.
            "black-hole": Origin("https", "127.0.0.1", quiet.port, trusted=True),
            "bad-certificate": Origin("https", "localhost", stranger.port, trusted=True),
        }
        return await connect(self, places[why])

    quiet = serve(silent)
    stranger = serve(silent, tls=server_context("localhost"))
    rig.app.engine._pool.close()
    monkeypatch.setattr(Dialer, "connect", elsewhere)
    answer = (await call(rig.limited.proxy.port, rig.raw(kind))).answer
    assert (answer.status, answer.fields[b"x-fal-error-type"]) == (status, error_type)
    await rig.quiet()
    assert await rig.money() == (0, PRICE), "only the job that was there before"
    monkeypatch.setattr(Dialer, "connect", connect)
    rig.app.engine._pool = Pool()
    await rig.fine()


async def test_the_next_request_after_a_refusal_finds_upstream_as_soon_as_it_is_back(rig: Rig) -> None:
    rig.app.engine._pool.expire()
    port = rig.upstream.port
    await rig.upstream.close()
    refused = (await call(rig.limited.proxy.port, rig.raw("run"))).answer
    assert (refused.status, refused.fields[b"x-fal-error-type"]) == (502, b"upstream_unreachable")
    server = await asyncio.start_server(_answer_like_fal, "127.0.0.1", port)
    async with server:
        assert (await call(rig.limited.proxy.port, rig.raw("run"))).answer.status == 200
    assert await rig.money() == (2 * PRICE, PRICE)


async def _answer_like_fal(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n{}")
    writer.write(WIRES["run"])
    writer.close()
