"""The corpus of raw HTTP through the live server: what is refused never reaches upstream, what is right is served."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from fal_proxy.downstream import deadlines
from support.peers import Peer, Serve
from support.proxied import SIGNING_SECRET, Proxy, open_settings, proxied, with_server
from support.raw import raw_client, request
from support.raw_corpus import AMBIENT, SMUGGLED, Row, rows
from support.scripts import ok, read_request

PLAIN = [row for row in rows() if not row.steps]
SLOW = [row for row in rows() if row.steps]
LANES = 8
QUIET_SECONDS = 0.3  # how long nothing may come before a connection that stays open counts as done
FASTER = 50  # rows in which time matters are played so much faster, with deadlines as much shorter

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


class Upstream:
    """What arrived, as complete requests and as bytes."""

    def __init__(self, serve: Serve) -> None:
        self.heads: list[bytes] = []
        self._socket = serve(self._script)
        self.url = f"http://127.0.0.1:{self._socket.port}"

    async def _script(self, peer: Peer) -> None:
        while True:
            head, _ = await read_request(peer)
            self.heads.append(head)
            await peer.send(ok(b'{"request_id": "6b1b1a0e-0000-4000-8000-000000000001"}'))

    @property
    def bytes(self) -> bytes:
        """Everything, complete or not."""
        return b"".join(bytes(peer.received) for peer in self._socket.peers)


class Lane(NamedTuple):
    """A proxy with an upstream of its own, so that rows beside each other know what each of them let through."""

    proxy: Proxy
    upstream: Upstream


class Spoken(NamedTuple):
    """What came of a row."""

    row: Row
    back: bytes
    closed: bool
    heads: list[bytes]  # that upstream has seen
    smuggled: bool  # by now


Speak = Callable[[Proxy, bytes, bool], Awaitable[tuple[bytes, bool]]]


@pytest.fixture
def upstream(serve: Serve) -> Upstream:
    return Upstream(serve)


@pytest.fixture
async def lanes(serve: Serve, tmp_path: Path) -> AsyncIterator[list[Lane]]:
    """Rows that stay open take the time in which nothing may come: several are played beside each other."""
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for number in range(LANES):
            folder, upstream = tmp_path / str(number), Upstream(serve)
            folder.mkdir()
            proxy = proxied(upstream.url, folder, with_server(open_settings(folder), hosts=("proxy.test",)))
            made.append(Lane(await stack.enter_async_context(proxy), upstream))
        yield made


async def _played(rows: list[Row], lanes: list[Lane], speak: Speak) -> list[Spoken]:
    """Play every row in a lane and return what came of them, in order."""
    left = list(rows)
    spoken: dict[str, Spoken] = {}

    async def play(lane: Lane) -> None:
        while left:
            row = left.pop()
            lane.upstream.heads.clear()
            sent = row.bytes_for(await _credential(lane.proxy, row))
            back, closed = await speak(lane.proxy, sent, row.half_closes)
            smuggled = SMUGGLED in lane.upstream.bytes
            spoken[row.id] = Spoken(row, back, closed, list(lane.upstream.heads), smuggled)

    await asyncio.gather(*map(play, lanes))
    return [spoken[row.id] for row in rows]


async def _credential(proxy: Proxy, row: Row) -> bytes:
    """Return the line that stands for the session: a bearer, or a real anonymous cookie."""
    if row.id not in AMBIENT:
        return f"Authorization: Bearer {proxy.user_key}\r\n".encode()
    async with raw_client(proxy.port) as client:
        headers = {"Host": "proxy.test", "Origin": "http://proxy.test"}
        await client.send(request("GET", "/api/fal/proxy/me", headers))
        cookie = (await client.answer()).one(b"set-cookie")
    assert cookie is not None, SIGNING_SECRET
    return b"Cookie: " + cookie.partition(b";")[0] + b"\r\n"


async def _at_once(proxy: Proxy, data: bytes, half_close: bool) -> tuple[bytes, bool]:
    """Send, and return what came back and whether the server closed."""
    back = b""
    async with raw_client(proxy.port) as client:
        with contextlib.suppress(ConnectionError):
            await client.send(data)
            if half_close:
                client.writer.write_eof()
        try:
            while piece := await asyncio.wait_for(client.reader.read(1 << 16), QUIET_SECONDS):
                back += piece
        except TimeoutError:
            return back, False
        except ConnectionError:
            pass
    return back, True


async def _byte_by_byte(proxy: Proxy, data: bytes, half_close: bool) -> tuple[bytes, bool]:
    async with raw_client(proxy.port) as client:
        return await _drip(client.reader, client.writer, data, half_close=half_close)


async def _drip(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes, *, half_close: bool
) -> tuple[bytes, bool]:
    back = bytearray()

    async def collect() -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(1 << 16):
                back.extend(piece)

    collecting = asyncio.ensure_future(collect())
    with contextlib.suppress(ConnectionError):
        for value in data:
            writer.write(bytes([value]))
            await writer.drain()
            await asyncio.sleep(0)
        if half_close:
            writer.write_eof()
    await asyncio.wait([collecting], timeout=QUIET_SECONDS)
    closed = collecting.done()
    collecting.cancel()
    return bytes(back), closed


def _judge(spoken: Spoken) -> None:
    row = spoken.row
    assert not spoken.smuggled
    statuses = [int(status) for status in _STATUS.findall(spoken.back)]
    assert 101 not in statuses
    if row.expect == "ok":
        assert [status // 100 for status in statuses] == [2] * row.responses
        assert len(spoken.heads) == row.upstream_calls
    else:
        assert len(statuses) <= row.responses
        assert len(spoken.heads) <= row.upstream_calls
    if row.expect == "reject":
        assert spoken.closed or statuses, "neither an answer nor an end"
        assert all(400 <= status < 500 or status in (501, 505) for status in statuses)


async def test_corpus_row_comes_out_as_labelled(lanes: list[Lane], subtests: pytest.Subtests) -> None:
    assert len(PLAIN) > 100
    for spoken in await _played(PLAIN, lanes, _at_once):
        with subtests.test(f"{spoken.row.id}: {spoken.row.why}"):
            _judge(spoken)


async def test_corpus_row_comes_out_as_labelled_byte_by_byte(lanes: list[Lane], subtests: pytest.Subtests) -> None:
    short = [row for row in PLAIN if len(row.data) <= 1000]
    for spoken in await _played(short, lanes, _byte_by_byte):
        with subtests.test(f"{spoken.row.id}: {spoken.row.why}"):
            _judge(spoken)


async def test_slow_corpus_row_is_answered_or_ended_in_time(
    upstream: Upstream, tmp_path: Path, subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SWEEP_SECONDS", "HEAD_SECONDS", "BODY_IDLE_SECONDS", "BODY_GRACE_SECONDS", "LINGER_SECONDS"):
        monkeypatch.setattr(deadlines, name, getattr(deadlines, name) / FASTER)
    assert len(SLOW) == 2
    settings = with_server(open_settings(tmp_path), hosts=("proxy.test",))
    async with proxied(upstream.url, tmp_path, settings) as proxy:
        for row in SLOW:
            with subtests.test(f"{row.id}: {row.why}"):
                assert row.within_seconds is not None
                async with raw_client(proxy.port) as client, asyncio.timeout(row.within_seconds / FASTER + 5):
                    answer = asyncio.ensure_future(client.reader.read(1 << 16))
                    for step in row.steps_for(await _credential(proxy, row)):
                        with contextlib.suppress(ConnectionError):
                            await client.send(step.data)
                        await asyncio.wait([answer], timeout=step.wait_seconds / FASTER)
                    with contextlib.suppress(ConnectionError):
                        back = await answer
                        assert not back or back.startswith(b"HTTP/1.1 408 ")
    assert not upstream.heads
    assert SMUGGLED not in upstream.bytes
