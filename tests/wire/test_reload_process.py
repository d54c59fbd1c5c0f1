"""`fal-proxy serve` whose settings change while it runs: by SIGHUP, by themselves, and at the wrong moments."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from support.peers import Peer, Serve
from support.processes import PATIENCE, Process, Start, start_process
from support.raw import raw_client
from support.scripts import ok, read_request

start = start_process

RUN, STREAM = "/fal.run/fal-ai/flux/dev", "/fal.run/fal-ai/flux/dev/stream"
HUP = signal.SIGHUP


class Fal:
    """Answers runs at once, and streams when the test says so."""

    def __init__(self) -> None:
        self.begun, self.over = asyncio.Event(), asyncio.Event()

    async def __call__(self, peer: Peer) -> None:
        while True:
            head, _ = await read_request(peer)
            if b"/stream " not in head:
                await peer.send(ok())
                continue
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            await peer.send(b"9\r\ndata: 1\n\n\r\n")
            self.begun.set()
            await self.over.wait()
            await peer.send(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")


async def run(proxy: Process) -> int:
    async with raw_client(proxy.port) as client:
        await client.send(proxy.request("POST", RUN, b"{}"))
        return (await client.answer()).status


def changed(path: Path, old: str, new: str) -> None:
    """Replace the file, as an editor does."""
    text = path.read_text()
    assert old in text
    path.with_name("new").write_text(text.replace(old, new))
    path.with_name("new").rename(path)


async def test_a_stream_survives_a_reload_and_the_request_behind_it_meets_new_limits(
    serve: Serve, start: Start, tmp_path: Path
) -> None:
    fal = Fal()
    proxy = await start(f"http://127.0.0.1:{serve(fal).port}")
    path = tmp_path / "fal-proxy.toml"
    async with raw_client(proxy.port) as client:
        await client.send(proxy.request("POST", STREAM, b"{}"))
        await asyncio.wait_for(fal.begun.wait(), PATIENCE)
        assert await run(proxy) == 200
        changed(path, 'budget = "1.00/day"', 'budget = "0.60/day"')
        proxy.signal(HUP)
        line = await proxy.hear("fal_proxy.reload")
        assert line.rstrip().endswith(
            "INFO fal_proxy.reload: fal-proxy.toml was read anew; changed: plans.default.budget"
        )
        assert await run(proxy) == 402, "two quarters of a dollar are reserved or spent"
        changed(path, "0.60/day", "0.60/fortnight")
        proxy.signal(HUP)
        said = "ERROR fal_proxy.reload: fal-proxy.toml is not put in force: plans.default.budget: '0.60/fortnight' is no budget"
        assert said in await proxy.hear("fal_proxy.reload")
        assert await run(proxy) == 402
        changed(path, "0.60/fortnight", "9.00/day")
        assert "changed: plans.default.budget" in await proxy.hear("fal_proxy.reload"), "by itself, this time"
        assert await run(proxy) == 200
        fal.over.set()
        answer = await client.answer()
    assert (answer.complete, answer.body) == (True, b"data: 1\n\ndata: 2\n\n")
    proxy.signal()
    code, lines = await proxy.ended()
    assert (code, [line["status"] for line in lines]) == (0, [200, 402, 402, 200, 200])
    assert [line["cost_microusd"] for line in lines if line["status"] == 200] == [250_000] * 3


def minds(pid: int) -> bool:
    """Say whether a process has something in mind for SIGHUP; until Python is there, none can."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool((int(status["SigIgn"], 16) | int(status["SigCgt"], 16)) >> (HUP - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only /proc tells when a process minds a signal")
async def test_neither_before_it_is_ready_nor_while_it_drains_is_a_hangup_deadly(
    serve: Serve, start: Start, tmp_path: Path
) -> None:
    async def storm(pid: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while not minds(pid):  # noqa: ASYNC110 -- a process tells nobody
                await asyncio.sleep(0.005)
        for _ in range(20):
            os.kill(pid, HUP)
            await asyncio.sleep(0.03)

    fal = Fal()
    proxy = await start(f"http://127.0.0.1:{serve(fal).port}", "drain_seconds = 0", early=storm)
    path = tmp_path / "fal-proxy.toml"
    async with raw_client(proxy.port) as client:
        await client.send(proxy.request("POST", STREAM, b"{}"))
        await asyncio.wait_for(fal.begun.wait(), PATIENCE)
        changed(path, "drain_seconds = 0", "drain_seconds = 3600")
        assert "changed: server.drain_seconds" in await proxy.hear("changed: server")
        proxy.signal()
        async with asyncio.timeout(PATIENCE):
            while True:  # until nothing new is accepted
                try:
                    async with raw_client(proxy.port):
                        pass
                except OSError:  # refused, or reset in the instant in which it closes
                    break
        changed(path, "[plans.default]", "[plans.none]")
        for _ in range(5):
            proxy.signal(HUP)
        assert "about to end" in await proxy.hear("fal_proxy.reload")
        fal.over.set()
        assert (await client.answer()).complete, "it had as long as the last good file says"
    assert (await proxy.ended())[0] == 0
