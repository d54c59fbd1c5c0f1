"""Python's fal_client against the emulator itself; its addresses are wss:// and https:// only, so a test changes those."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest
from fal_client import AsyncClient, SyncClient, client

from support.emulated import Emulated, emulated

KEY = "id:secret"
Lead = Callable[[Emulated], None]


@asynccontextmanager
async def caller() -> AsyncIterator[AsyncClient]:
    """Run a client; it has no close of its own, and its connections would outlive the test."""
    made = AsyncClient(key=KEY)
    try:
        yield made
    finally:
        await (await made._client).aclose()


@pytest.fixture
def led(monkeypatch: pytest.MonkeyPatch) -> Lead:
    """Return a function that leads the client to an emulator; what follows the address is the client's own."""

    def lead(fal: Emulated) -> None:
        monkeypatch.setattr(client, "REALTIME_URL_FORMAT", fal.socket("fal.run", "/"))
        monkeypatch.setattr(client, "REST_URL", fal.at("rest.fal.ai", ""))

    return lead


@pytest.mark.parametrize("use_jwt", [True, False])
async def test_the_async_client_gets_its_answers(led: Lead, use_jwt: bool) -> None:
    async with emulated() as fal:
        led(fal)
        async with caller() as python, python.realtime("a/b/c", use_jwt=use_jwt, max_buffering=5) as connection:
            for number in range(3):
                await connection.send({"n": number, "bytes": b"\x00\xff"})
                answer = await connection.recv()
                assert answer is not None
                assert answer["input"] == {"n": number, "bytes": b"\x00\xff"}
        handshake = await fal.finished()
        hosts = [entry.host for entry in fal.app.journal]
        assert hosts == (["rest.fal.ai", "fal.run"] if use_jwt else ["fal.run"])
        assert handshake.header("authorization") == (None if use_jwt else f"Key {KEY}")
        assert handshake.target.startswith(b"/a/b/c/realtime?")
        assert b"max_buffering=5" in handshake.target


async def test_the_sync_client_gets_its_answer(led: Lead) -> None:
    async with emulated() as fal:
        led(fal)

        def talk() -> Any:
            python = SyncClient(key=KEY)
            with closing(python._client), python.realtime("a/b") as connection:
                connection.send({"n": 1})
                return connection.recv()

        assert (await asyncio.to_thread(talk))["input"] == {"n": 1}


@pytest.mark.parametrize(
    ("endpoint", "error"),
    [("emulator/idle", "TIMEOUT"), ("emulator/fail", "INTERNAL_ERROR"), ("emulator/text", "CONNECTION_CLOSED")],
)
async def test_the_ends_of_a_session_are_errors_of_the_clients(led: Lead, endpoint: str, error: str) -> None:
    async with emulated(faults="emulator/text:close=4000") as fal:
        led(fal)
        async with caller() as python, python.realtime(endpoint) as connection:
            if endpoint == "emulator/fail":
                await connection.send({})
            with pytest.raises(client.RealtimeError) as caught:
                await connection.recv()
        assert caught.value.error == error


async def test_a_socket_of_the_apps_own_path_speaks_text(led: Lead) -> None:
    async with emulated() as fal:
        led(fal)
        async with caller() as python, python.ws_connect("emulator/text", path="/chat") as socket:
            await socket.send("hello")
            assert await socket.recv() == "hello"
        assert (await fal.finished()).target.startswith(b"/emulator/text/chat?fal_jwt_token=")


async def test_an_id_that_ends_in_realtime_is_doubled_by_the_client_and_refused(led: Lead) -> None:
    async with emulated() as fal:
        led(fal)
        with pytest.raises(Exception, match="HTTP 403"):
            async with caller() as python, python.realtime("a/b/realtime"):
                pass
        assert (await fal.finished()).target.startswith(b"/a/b/realtime/realtime?")
