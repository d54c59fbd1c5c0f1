"""The end of a process: what runs may finish, what is left is cut visibly, what was reserved is settled."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from fal_proxy.lifecycle import Lifecycle, Stage
from fal_proxy.stores.journal import Journal
from fal_proxy.stores.replay import StatePuts
from fal_proxy.stores.state import State
from support.peers import Peer, Serve
from support.processes import PATIENCE, Start, spent, start_process
from support.raw import RawAnswer, raw_client, request
from support.scripts import ok, read_request

start = start_process

STREAM = "/fal.run/fal-ai/flux/dev/stream"
SUBMIT = "/queue.fal.run/fal-ai/flux/dev"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-fal-billable-units: 2\r\n"
EVENT = b"9\r\ndata: 1\n\n\r\n"


class Streaming:
    """An upstream whose stream ends when the test says so."""

    def __init__(self, head: bytes = HEAD + b"transfer-encoding: chunked\r\n\r\n", first: bytes = EVENT) -> None:
        self.begun, self.over = asyncio.Event(), asyncio.Event()
        self.gone, self.submitted = asyncio.Event(), asyncio.Event()
        self._head, self._first = head, first

    async def script(self, peer: Peer) -> None:
        """Answer with the beginning of a stream, wait, and end it."""
        head, _ = await read_request(peer)
        if head.startswith(b"POST /queue"):
            self.submitted.set()
            await peer.wait_gone()
            return
        await peer.send(self._head + self._first)
        self.begun.set()
        waits = [asyncio.ensure_future(self.over.wait()), asyncio.ensure_future(peer.wait_gone())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if self.over.is_set():
            await peer.send(EVENT + b"0\r\n\r\n")
        else:
            self.gone.set()
        for wait in waits:
            wait.cancel()


async def readiness(port: int) -> RawAnswer:
    async with raw_client(port) as probe:
        await probe.send(request("GET", "/readyz"))
        return await probe.answer()


async def test_a_stream_ends_by_itself_while_nothing_new_is_accepted(
    serve: Serve, start: Start, tmp_path: Path
) -> None:
    stream = Streaming()
    proxy = await start(f"http://127.0.0.1:{serve(stream.script).port}")
    async with raw_client(proxy.port) as client, raw_client(proxy.port) as idle:
        await client.send(proxy.request("POST", STREAM, b"{}"))
        await asyncio.wait_for(stream.begun.wait(), PATIENCE)
        proxy.signal()
        assert (await asyncio.wait_for(idle.answer(), PATIENCE)).status == 503, "an idle connection is ended"
        with pytest.raises(ConnectionRefusedError):
            await readiness(proxy.port)
        stream.over.set()
        answer = await client.answer()
        assert (answer.complete, answer.body) == (True, b"data: 1\n\ndata: 1\n\n")
        assert (await asyncio.wait_for(client.answer(), PATIENCE)).status == 503, (
            "its head could not say that it was the last"
        )
    code, [line] = await proxy.ended()
    assert (code, line["ending"], line["cost_microusd"]) == (0, "complete", 500_000)
    assert await spent(tmp_path) == (500_000, 0)


CUT = [
    (b"transfer-encoding: chunked\r\n\r\n", EVENT, "HTTP/1.1", "a chunked stream"),
    (b"content-length: 100\r\n\r\n", b"data: 1\n\n", "HTTP/1.1", "a stream of known length"),
    (b"transfer-encoding: chunked\r\n\r\n", EVENT, "HTTP/1.0", "a caller for whom only the connection's end is an end"),
]


@pytest.mark.parametrize(("framing", "first", "version", "reason"), CUT, ids=[row[3] for row in CUT])
async def test_what_does_not_end_in_time_is_cut_visibly_and_settled(
    serve: Serve, start: Start, tmp_path: Path, framing: bytes, first: bytes, version: str, reason: str
) -> None:
    stream = Streaming(HEAD + framing, first)
    proxy = await start(f"http://127.0.0.1:{serve(stream.script).port}", "drain_seconds = 0.3")
    async with raw_client(proxy.port) as client:
        await client.send(proxy.request("POST", STREAM, b"{}").replace(b"HTTP/1.1", version.encode()))
        await asyncio.wait_for(stream.begun.wait(), PATIENCE)
        await client.reader.readuntil(b"data: 1\n\n")
        proxy.signal()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(client.reader.read(), PATIENCE)
        await asyncio.wait_for(stream.gone.wait(), PATIENCE)
    code, [line] = await proxy.ended()
    assert (code, line["ending"], line["reason"]) == (0, "cut", "the proxy ended"), reason
    assert await spent(tmp_path) == (500_000, 0)


async def test_notice_serves_everything_and_says_not_ready(serve: Serve, start: Start) -> None:
    async def upstream(peer: Peer) -> None:
        for _ in range(2):
            await read_request(peer)
            await peer.send(ok(b'{"images":[]}', b"x-fal-billable-units: 1"))

    proxy = await start(f"http://127.0.0.1:{serve(upstream).port}", "drain_notice_seconds = 20")
    async with raw_client(proxy.port) as kept:
        await kept.send(request("GET", "/readyz"))
        assert (await kept.answer()).status == 200
        proxy.signal()
        async with asyncio.timeout(PATIENCE):
            while (answer := await readiness(proxy.port)).status == 200:
                pass
        assert (answer.status, b"the proxy is about to end" in answer.body) == (503, True)
        async with raw_client(proxy.port) as new:
            for client in (kept, new):
                await client.send(proxy.request("POST", "/fal.run/fal-ai/flux/dev", b"{}"))
                last = await client.answer()
                assert (last.status, last.one(b"connection")) == (200, b"close")
    proxy.signal()
    assert (await proxy.ended())[0] == 0, "a second signal does not wait for the notice"


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once(serve: Serve, start: Start, tmp_path: Path, second: signal.Signals) -> None:
    stream = Streaming()
    proxy = await start(f"http://127.0.0.1:{serve(stream.script).port}", "drain_seconds = 3600")
    async with raw_client(proxy.port) as client, raw_client(proxy.port) as other:
        await client.send(proxy.request("POST", STREAM, b"{}"))
        await other.send(proxy.request("POST", SUBMIT, b"{}"))  # its answer would be waited for
        await asyncio.wait_for(asyncio.gather(stream.begun.wait(), stream.submitted.wait()), PATIENCE)
        proxy.signal()
        async with asyncio.timeout(PATIENCE):
            while True:  # until the first signal has closed the listener
                try:
                    await readiness(proxy.port)
                except (OSError, asyncio.IncompleteReadError):
                    break
        proxy.signal(second)
        code, _ = await proxy.ended()
    assert code == 0
    assert await spent(tmp_path) == (750_000, 0), "the submit, of which nothing is known, as reserved"


async def test_a_submit_that_was_sent_is_owned_even_if_the_drain_cut_its_caller(
    serve: Serve, start: Start, tmp_path: Path
) -> None:
    sent, answer = asyncio.Event(), asyncio.Event()

    async def upstream(peer: Peer) -> None:
        await read_request(peer)
        sent.set()
        await answer.wait()
        body = b'{"request_id":"764cabcf-b745-4b3e-ae38-1200304cf45b","response_url":"https://queue.fal.run/fal-ai/flux/requests/764cabcf-b745-4b3e-ae38-1200304cf45b"}'
        await peer.send(ok(body))

    proxy = await start(f"http://127.0.0.1:{serve(upstream).port}", "drain_seconds = 0")
    async with raw_client(proxy.port) as client:
        await client.send(proxy.request("POST", SUBMIT, b"{}"))
        await asyncio.wait_for(sent.wait(), PATIENCE)
        proxy.signal()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(client.reader.read(100), PATIENCE)
        answer.set()
    assert (await proxy.ended())[0] == 0
    journal = Journal(tmp_path / "state")
    state = State()
    journal.replay(StatePuts(state))
    await journal.close()
    assert list(state.records) == ["764cabcf-b745-4b3e-ae38-1200304cf45b"]


def test_whoever_asked_is_told_once_when_draining_begins() -> None:
    lifecycle, told = Lifecycle(), []
    lifecycle.on_draining(lambda: told.append("stays"))
    lifecycle.on_draining(lambda: told.append("left"))()
    for stage in (Stage.LEAVING, Stage.DRAINING, Stage.CUTTING, Stage.LEAVING):
        lifecycle.reach(stage)
    assert (told, lifecycle.stage) == (["stays"], Stage.CUTTING)
