"""What a session leaves: one line, its share of the metrics, and nothing else; also when the process ends."""

from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path

import pytest

from fal_proxy.settings import Realtime
from support.limited import wide
from support.lines import Lines, samples, total
from support.peers import Peer, Serve, turns
from support.processes import Start, spent, start_process
from support.raw import raw_client
from support.sockets import Stage, StartStage, stage
from support.websocket import APP, BINARY, TEXT, FalSockets, Frame, closing, frame, handshake, opened, switching

run, start = stage, start_process


async def test_a_session_is_one_line_and_counts_its_bytes_both_ways(run: StartStage, lines: Lines) -> None:
    on = await run()
    async with opened(on.proxy, on.ada) as caller:
        fal = await on.fal.next()
        flying = samples(on.proxy.app)
        assert total(flying, "fal_proxy_in_flight", kind="realtime") == 1
        await caller.send(TEXT, b"12345")
        assert await fal.frame() == Frame(TEXT, b"12345")
        await fal.send(BINARY, b"123")
        await fal.send(BINARY, b"4567")
        assert [(await caller.frame()).data for _ in range(2)] == [b"123", b"4567"]
        await fal.close(4001, "done \u202e")
        assert (await caller.end())[0] == 4001
    [line] = await lines.exactly(1)
    expected = {
        "source": "key",
        "plan": "default",
        "kind": "realtime",
        "endpoint": "fal-ai/fast-lcm",
        "decision": "admitted",
        "reason": "closed with 4001 by fal: done \ufffd",
        "status": 101,
        "bytes_up": 5,
        "bytes_down": 7,
        "units": None,
        "cost_microusd": None,
        "ending": "complete",
    }
    assert expected.items() <= line.items(), line
    assert 0 < line["first_byte_ms"] < line["total_ms"]
    found = samples(on.proxy.app)
    labels = {"kind": "realtime"}
    assert total(found, "fal_proxy_exchanges_total", decision="admitted", ending="complete", **labels) == 1
    assert total(found, "fal_proxy_bytes_up_total", **labels) == 5
    assert total(found, "fal_proxy_bytes_down_total", **labels) == 7
    assert total(found, "fal_proxy_in_flight", **labels) == 0


async def test_a_session_whose_task_is_killed_frees_everything(run: StartStage, lines: Lines) -> None:
    on = await run(wide(realtime_sessions=1, budget="10.00/day"), realtime=Realtime(usd_per_second=0.01))
    before = set(asyncio.all_tasks())
    async with opened(on.proxy, on.ada) as caller:
        fal = await on.fal.next()
        [task] = [each for each in asyncio.all_tasks() - before if "run_asgi" in repr(each)]
        task.cancel()
        assert (await caller.end())[0] == 1006
        assert (await fal.frame()).opcode == -1
    await on.left()
    assert await on.limited.money(on.ada) == (600_000, 0)
    line = next(line for line in map(json.loads, lines.text) if line["kind"] == "realtime")
    assert line["ending"] == "cut"


async def test_a_fault_before_the_handshake_is_answered_is_a_500_and_the_end(
    run: StartStage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on = await run()

    def fault(_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("fal_proxy.app.read_request", fault)
    async with raw_client(on.proxy.port) as client:
        await client.send(handshake(APP, on.ada))
        answer = await client.answer()
        assert (answer.status, answer.body) == (500, b"")
        assert await client.reader.read() == b""
    assert "a bug" in caplog.text


class Count:
    """What a session could leave behind."""

    def __init__(self, on: Stage) -> None:
        gc.collect()
        gateway = on.proxy.app._gateway
        self.tasks = len(asyncio.all_tasks())
        self.descriptors = len(list(Path("/proc/self/fd").iterdir()))
        self.in_progress = len(gateway.telemetry.in_progress)
        self.reservations = len(gateway.settler._open)
        self.waiting_for_the_end = len(gateway.lifecycle._on_draining)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Count) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        return repr(vars(self))


class Ends:
    """A fal that ends every socket in another way."""

    def __init__(self) -> None:
        self._seen = 0

    async def script(self, peer: Peer) -> None:
        """Lead one connection."""
        self._seen += 1
        way = self._seen % 5
        head = await peer.read_head()
        if way == 0:
            await peer.send(b"HTTP/1.1 403 F\r\ncontent-length: 0\r\n\r\n")
        else:
            await peer.send(switching(head) + frame(TEXT, b"hi", masked=False))
            if way == 1:
                await peer.send(closing(1000, masked=False))
            if way == 2:
                await peer.delivered()
                peer.reset()
                return
            await peer.wait_gone()
        peer.close()


async def cycle(on: Stage, n: int) -> None:
    """Open a socket and leave it, in one of two ways."""
    async with raw_client(on.proxy.port) as client:
        await client.send(handshake(APP, on.ada))
        status, _ = await client.read_head()
        assert status in (101, 403, 429)
        if status == 101:
            await client.reader.readexactly(4)
        if n % 2:
            client.reset()


async def test_hundreds_of_sessions_leave_nothing_behind(run: StartStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fal_proxy.downstream.websocket.LINGER_SECONDS", 0.2)
    monkeypatch.setattr("fal_proxy.upstream.websocket.CLOSE_SECONDS", 0.2)
    plan = wide(realtime_sessions=4, budget="1000.00/day")
    on = await run(plan, Ends().script, realtime=Realtime(usd_per_second=0.01))
    assert await on.sessions() == 0
    await turns(50)
    before = Count(on)
    for batch in range(40):
        await asyncio.gather(*[cycle(on, batch + n) for n in range(10)])
    await on.left()
    for _ in range(200):
        if (after := Count(on)) == before:
            break
        await asyncio.sleep(0.05)  # sockets leave in the kernel's time, which tells nobody
    assert after == before
    spent_microusd, reserved = await on.limited.money(on.ada)
    assert (reserved, spent_microusd % 600_000) == (0, 0)


CONFIG = "[realtime]\nusd_per_second = 0.001\n"


async def test_serve_closes_its_sockets_with_1012_when_it_drains(serve: Serve, start: Start, tmp_path: Path) -> None:
    fal = FalSockets()
    proxy = await start(f"http://127.0.0.1:{serve(fal.script).port}", "drain_seconds = 20", CONFIG)
    bearer = list(proxy.bearer.items())
    async with opened(proxy, bearer) as caller:
        end = await fal.next()
        await caller.send(TEXT, b"x")
        assert await end.frame() == Frame(TEXT, b"x")
        proxy.signal()
        assert await caller.end() == (1012, "this proxy is about to end")
        assert (await end.frame()).closing == (1000, "")
        end.peer.close()
    code, [line] = await proxy.ended()
    assert (code, line["kind"], line["status"], line["ending"]) == (0, "realtime", 101, "cut")
    assert line["reason"] == "closed with 1012 by the proxy: this proxy is about to end"
    assert await spent(tmp_path) == (60_000, 0)


async def test_a_caller_who_ignores_the_end_does_not_hold_the_process(
    serve: Serve, start: Start, tmp_path: Path
) -> None:
    fal = FalSockets()
    proxy = await start(f"http://127.0.0.1:{serve(fal.script).port}", "drain_seconds = 1", CONFIG)
    async with opened(proxy, list(proxy.bearer.items())) as caller:
        await fal.next()
        caller.client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        proxy.signal()
        code, [line] = await proxy.ended()
    assert (code, line["ending"]) == (0, "cut")
    assert await spent(tmp_path) == (60_000, 0)
