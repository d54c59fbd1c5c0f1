"""The same sessions under a server that is not ours, which has messages in place of the socket: uvicorn as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvicorn

from fal_proxy.app import create_app
from fal_proxy.identity.key import add
from fal_proxy.lifecycle import Stage
from fal_proxy.settings import Realtime, Settings
from support.lines import Lines
from support.peers import Serve
from support.proxied import FAL_KEY, FAL_KEY_SECRET, SIGNING_SECRET, Proxy, open_settings
from support.websocket import BINARY, CLOSE, CONT, GONE, TEXT, CallerEnd, FalEnd, FalSockets, Frame, frame, opened

Pair = tuple[CallerEnd, FalEnd]
Open = Callable[..., Awaitable[Pair]]
PATIENCE = 20.0


class _Server(uvicorn.Server):
    """Leaves signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@pytest.fixture
async def mounted(serve: Serve, tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[tuple[Proxy, FalSockets]]]]:
    """Return a function that serves an app by uvicorn's own protocols, in front of a fal that opens sockets."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(realtime: Realtime, **changes: object) -> tuple[Proxy, FalSockets]:
            fal = FalSockets()
            settings = msgspec.structs.replace(open_settings(tmp_path), realtime=realtime, **changes)
            key = add(tmp_path / "users.toml", uuid.uuid4().hex, "default")
            environ = {
                "FAL_PROXY_SECRET": SIGNING_SECRET,
                "FAL_PROXY_UPSTREAM": f"http://127.0.0.1:{serve(fal.script).port}",
            }
            app = create_app(settings, environ=environ, key=FAL_KEY)
            config = uvicorn.Config(
                app, port=0, ws="websockets-sansio", log_config=None, lifespan="on", timeout_graceful_shutdown=1
            )
            server = _Server(config)
            task = asyncio.create_task(server.serve())

            async def stop() -> None:
                server.should_exit = True
                await task

            stack.push_async_callback(stop)
            async with asyncio.timeout(PATIENCE):
                while not server.started:  # noqa: ASYNC110 -- uvicorn tells nobody
                    await asyncio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            return Proxy(f"http://127.0.0.1:{port}", key, app), fal

        yield start


@pytest.fixture
async def socket(mounted: Callable[..., Awaitable[tuple[Proxy, FalSockets]]]) -> AsyncIterator[Open]:
    """Return a function that opens a socket and gives both of its ends."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(**realtime: Any) -> Pair:
            proxy, fal = await mounted(Realtime(**{"messages": "100000/second", **realtime}))
            caller = await stack.enter_async_context(opened(proxy, list(proxy.bearer.items())))
            return caller, await fal.next()

        yield make


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 300_000])
async def test_messages_pass_unchanged_both_ways(socket: Open, size: int) -> None:
    caller, fal = await socket()
    for opcode, data in ((TEXT, (b"\xc3\xa9" * size)[: size // 2 * 2]), (BINARY, (bytes(range(256)) * size)[:size])):
        await caller.send(opcode, data)
        assert await fal.frame() == Frame(opcode, data)
        sending = asyncio.ensure_future(fal.send(opcode, data))
        assert await caller.frame() == Frame(opcode, data)
        await sending


async def test_order_is_kept_and_fragments_arrive_as_one(socket: Open) -> None:
    caller, fal = await socket()
    sent = [Frame([TEXT, BINARY][n % 2], b"%d" % n * (n % 50)) for n in range(300)]
    await caller.client.send(b"".join(frame(each.opcode, each.data) for each in sent))
    assert [await fal.frame() for _ in sent] == sent
    await fal.peer.send(b"".join(frame(each.opcode, each.data, masked=False) for each in sent))
    assert [await caller.frame() for _ in sent] == sent
    await caller.client.send(frame(TEXT, b"a\xc3", fin=False) + frame(CONT, b"\xa9"))
    assert await fal.frame() == Frame(TEXT, "aé".encode())
    await fal.send(BINARY, b"1", fin=False)
    await fal.send(CONT, b"2")
    assert await caller.frame() == Frame(BINARY, b"12")


@pytest.mark.parametrize("code", [1000, 1001, 1011, 3000, 4999])
async def test_close_codes_pass_both_ways(socket: Open, code: int) -> None:
    caller, fal = await socket()
    await caller.close(code, "because")
    assert (await fal.frame()).closing == (code, "because")
    caller, fal = await socket()
    await fal.close(code, "é" * 61)
    assert await caller.end() == (code, "é" * 61)


async def test_what_asgi_cannot_say_is_said_as_near_as_can_be(socket: Open) -> None:
    caller, fal = await socket()
    await fal.close(1005)
    assert (await caller.end())[0] == 1000
    caller, fal = await socket()
    await fal.send(TEXT, b"last words")
    fal.peer.close()
    assert await caller.frame() == Frame(TEXT, b"last words")
    assert (await caller.end())[0] == 1011


async def test_a_caller_that_vanishes_ends_fals_side(socket: Open, lines: Lines) -> None:
    caller, fal = await socket()
    caller.client.reset()
    assert (await fal.frame()).opcode in (CLOSE, GONE.opcode)
    [line] = await lines.exactly(1)
    assert (line["kind"], line["status"]) == ("realtime", 101)


RULES: list[tuple[dict[str, Any], bytes, int, str]] = [
    ({"messages": "30/second"}, frame(TEXT, b"x") * 300, 4429, "too many"),
    ({"max_message_bytes": 1000}, frame(BINARY, bytes(1001)), 1009, "too large"),
    ({"idle_seconds": 0.4}, b"", 1000, "nothing said"),
    ({"session_seconds": 0.4}, frame(TEXT, b"x"), 1000, "long enough"),
]


@pytest.mark.parametrize(("realtime", "sent", "code", "reason"), RULES, ids=[row[3] for row in RULES])
async def test_the_rules_of_a_session_are_the_same(
    socket: Open, realtime: dict[str, Any], sent: bytes, code: int, reason: str
) -> None:
    caller, fal = await socket(**realtime)
    await caller.client.send(sent)
    assert (await caller.end())[0] == code, reason
    passed = []
    while (found := await fal.frame()).opcode != CLOSE:
        passed.append(found)
    assert found.closing == (1000, "")
    assert len(passed) == {4429: 30, 1009: 0}.get(code, len(passed))


async def test_a_message_with_the_fal_key_never_goes_down(socket: Open) -> None:
    caller, fal = await socket()
    await fal.send(TEXT, b"before")
    await fal.send(TEXT, FAL_KEY_SECRET.encode())
    assert await caller.frame() == Frame(TEXT, b"before")
    assert (await caller.frame()).closing[0] == 1011
    assert (await fal.frame()).opcode == CLOSE


async def test_whoever_does_not_read_stops_fal_and_gets_everything_later(socket: Open) -> None:
    caller, fal = await socket()
    message, sent = bytes(100_000), 0

    async def flow() -> None:
        nonlocal sent
        while True:
            await fal.send(BINARY, message)
            sent += 1

    flowing = asyncio.ensure_future(flow())
    before = -1
    async with asyncio.timeout(PATIENCE):
        while sent != before:
            before = sent
            await asyncio.sleep(0.3)  # the time in which nothing must move
    flowing.cancel()
    assert sent * len(message) < 32 << 20, "somebody holds it all"
    for _ in range(sent):
        assert await caller.frame() == Frame(BINARY, message)


async def test_draining_says_so(mounted: Callable[..., Awaitable[tuple[Proxy, FalSockets]]]) -> None:
    proxy, fal = await mounted(Realtime())
    async with opened(proxy, list(proxy.bearer.items())) as caller:
        end = await fal.next()
        proxy.app.lifecycle.reach(Stage.DRAINING)
        assert await caller.end() == (1012, "this proxy is about to end")
        assert (await end.frame()).closing == (1000, "")


async def test_each_minute_is_charged_ahead_until_the_budget_ends_it(
    mounted: Callable[..., Awaitable[tuple[Proxy, FalSockets]]], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fal_proxy.relay.websocket.LEASE_SECONDS", 0.2)
    plan = msgspec.structs.replace(settings.plans["default"], budget="0.05/day")
    proxy, fal = await mounted(
        Realtime(usd_per_second=0.1), plans={"default": plan}, prices={"default": 0.01}
    )  # a lease of 20,000
    async with opened(proxy, list(proxy.bearer.items())) as caller:
        end = await fal.next()
        assert (await caller.end())[0] == 4402
        assert (await end.frame()).closing == (1000, "")


async def test_a_fault_of_the_server_ends_the_session(
    mounted: Callable[..., Awaitable[tuple[Proxy, FalSockets]]], caplog: pytest.LogCaptureFixture
) -> None:
    proxy, fal = await mounted(Realtime())
    scopes = {"type": "websocket", "http_version": "1.1", "scheme": "ws", "path": "", "extensions": {}}
    path = "/api/fal/proxy/fal.run/fal-ai/fast-lcm/realtime"
    headers = [
        (name.lower().encode(), value.encode()) for name, value in [*proxy.bearer.items(), ("Host", "127.0.0.1")]
    ]
    scope = scopes | {"raw_path": path.encode(), "path": path, "query_string": b"", "headers": headers, "client": None}
    calls = 0

    async def receive() -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise RuntimeError("a fault of the server's")
        return {"type": "websocket.connect"}

    said: list[str] = []

    async def send(message: Any) -> None:
        said.append(message["type"])

    with caplog.at_level(logging.ERROR):
        async with asyncio.timeout(PATIENCE):
            await proxy.app(scope, receive, send)
    assert said[0] == "websocket.accept"
    assert said[-1] == "websocket.close"
    assert "fault in a realtime session" in caplog.text
    assert (await (await fal.next()).frame()).opcode in (CLOSE, GONE.opcode)
