"""A live proxy that counts, behind it the fault proxy, behind that scripted answers of every kind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fal_proxy.relay import http as relay_http
from fal_proxy.relay.http import Patience
from support.faults import CLEAN, Fault, Faulty, Foretold, call, foretell, judge
from support.limited import RUN, STREAM, SUBMIT, Limited, events, kind_of, limited, limits, result, said, units, wide
from support.limited import cancel as cancel_of
from support.limited import status as status_of
from support.limited import status_stream as status_stream_of
from support.peers import PATIENCE, Serve, Upstream, turns
from support.proxied import MOUNT
from support.raw import request
from support.scripts import ok

PRICE = 10_000  # micro-dollars a unit
PATIENT = Patience(head_seconds=20.0, body_idle_seconds=20.0)
IMPATIENT = Patience(head_seconds=0.15, body_idle_seconds=0.15)  # where upstream stalls, and only there
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
        object.__setattr__(self.app, "patience", IMPATIENT if fault.end == "stall" else PATIENT)  # it is frozen
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


@pytest.fixture
async def rigged(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    """A proxy with a budget, whose runs wait no longer than others, which holds one job already."""
    monkeypatch.setattr(relay_http, "RUN_HEAD_SECONDS", 0.0)
    made: list[Rig] = []

    async def source(head: bytes, _: bytes) -> bytes:
        method, path = (word.decode() for word in head.split(b" ")[:2])
        made[0].heads.append(head)
        return made[0].wires[kind_of(method, path)]

    faulty = Faulty(source, lambda _: made[0].fault)
    settings = limits(tmp_path, wide(budget="10000.00/total"), prices={"default": 0.01})
    async with contextlib.AsyncExitStack() as stack:
        upstream = serve(faulty.script)
        proxy = await stack.enter_async_context(limited(upstream, tmp_path, settings))
        made.append(Rig(proxy, upstream))
        await made[0].ask("submit")
        yield made[0]
