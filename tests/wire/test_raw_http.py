"""The corpus of raw HTTP through the live server: what is refused never reaches upstream, what is right is served."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fal_proxy.downstream import deadlines
from support.peers import Peer, Serve
from support.proxied import SIGNING_SECRET, Proxy, open_settings, proxied, with_server
from support.raw import raw_client, request
from support.raw_corpus import AMBIENT, SMUGGLED, Row, rows
from support.scripts import ok, read_request

PLAIN = [row for row in rows() if not row.steps]
SLOW = [row for row in rows() if row.steps]
QUIET_SECONDS = 0.2  # how long nothing may come before a connection that stays open counts as done
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


@pytest.fixture
def upstream(serve: Serve) -> Upstream:
    return Upstream(serve)


@pytest.fixture
async def proxy(upstream: Upstream, tmp_path: Path) -> AsyncIterator[Proxy]:
    async with proxied(upstream.url, tmp_path, with_server(open_settings(tmp_path), hosts=("proxy.test",))) as proxy:
        yield proxy


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


async def _speak(proxy: Proxy, data: bytes, *, half_close: bool) -> tuple[bytes, bool]:
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


def _judge(row: Row, back: bytes, heads: list[bytes], *, closed: bool) -> None:
    statuses = [int(status) for status in _STATUS.findall(back)]
    assert 101 not in statuses
    if row.expect == "ok":
        assert [status // 100 for status in statuses] == [2] * row.responses
        assert len(heads) == row.upstream_calls
    else:
        assert len(statuses) <= row.responses
        assert len(heads) <= row.upstream_calls
    if row.expect == "reject":
        assert closed or statuses, "neither an answer nor an end"
        assert all(400 <= status < 500 or status in (501, 505) for status in statuses)


async def test_corpus_row_comes_out_as_labelled(proxy: Proxy, upstream: Upstream, subtests: pytest.Subtests) -> None:
    assert len(PLAIN) > 100
    for row in PLAIN:
        with subtests.test(f"{row.id}: {row.why}"):
            upstream.heads.clear()
            sent = row.bytes_for(await _credential(proxy, row))
            back, closed = await _speak(proxy, sent, half_close=row.half_closes)
            _judge(row, back, upstream.heads, closed=closed)
            assert SMUGGLED not in upstream.bytes


async def test_corpus_row_comes_out_as_labelled_byte_by_byte(
    proxy: Proxy, upstream: Upstream, subtests: pytest.Subtests
) -> None:
    for row in PLAIN:
        if len(row.data) > 1000:
            continue
        with subtests.test(f"{row.id}: {row.why}"):
            upstream.heads.clear()
            sent = row.bytes_for(await _credential(proxy, row))
            async with raw_client(proxy.port) as client:
                back, closed = await _drip(client.reader, client.writer, sent, half_close=row.half_closes)
            _judge(row, back, upstream.heads, closed=closed)
            assert SMUGGLED not in upstream.bytes


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
