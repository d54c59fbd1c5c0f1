"""Whoever was on their way when the process was told to end: answered, and told that this was the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import select
import signal
import socket
import sys
from typing import Any

import pytest

from fal_proxy.downstream.backlog import is_waiting, turn_away
from fal_proxy.server import Listener, bind, serving
from support.emulated import emulated
from support.processes import PATIENCE, Start, start_process
from support.raw import RawAnswer, RawClient, raw_client, request

start = start_process

RUN = "/fal.run/emulator/echo"
ASK = b"POST /%b HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the path, without a look at the body."""
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    path = scope["path"].encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(path))]})
    await send({"type": "http.response.body", "body": path})


def listener() -> Listener:
    return Listener(echo, bind("127.0.0.1", 0), trusted_proxies=["127.0.0.1"])


async def readable(client: RawClient) -> None:
    """Wait until something has arrived, or the end, without reading it."""
    sock: socket.socket = client.writer.get_extra_info("socket")
    client.writer.transport.pause_reading()  # type: ignore[attr-defined] # every transport of a socket has it
    async with asyncio.timeout(PATIENCE):
        for _ in iter(lambda: is_waiting(sock), True):
            await asyncio.sleep(0.005)


def farewell(answer: RawAnswer) -> None:
    """Assert that this refusal leaves no doubt: nothing was sent, ask again, elsewhere."""
    assert (answer.status, json.loads(answer.body)["error_type"], answer.complete) == (503, "draining", True)
    assert (answer.one(b"retry-after"), answer.one(b"connection")) == (b"1", b"close")


async def test_paid_requests_that_the_kernel_holds_are_answered_and_late_ones_know_that_they_were_not_sent(
    start: Start,
) -> None:
    async with emulated() as fal:
        proxy = await start(fal.url)
        paid = proxy.request("POST", RUN, b"{}")
        async with (
            raw_client(proxy.port) as kept,
            raw_client(proxy.port) as idle,
            raw_client(proxy.port) as late,
        ):
            for client in (kept, idle, late):
                await client.send(request("GET", "/healthz"))
                assert (await client.answer()).one(b"connection") is None
            proxy.signal(signal.SIGSTOP)
            async with raw_client(proxy.port) as queued, raw_client(proxy.port) as behind:
                asking = (kept, queued, behind)
                for client in asking:
                    await client.send(paid)
                proxy.signal()
                proxy.signal(signal.SIGCONT)
                for client in asking:
                    answer = await asyncio.wait_for(client.answer(), PATIENCE)
                    assert (answer.status, answer.one(b"connection")) == (200, b"close")
                    assert await client.reader.read() == b""
            await readable(late)
            for part in (paid[:-2], paid[-2:]):  # a second write fails where the first one was answered with a reset
                await late.send(part)
            late.writer.transport.resume_reading()  # type: ignore[attr-defined]
            for client in (idle, late):
                farewell(await asyncio.wait_for(client.answer(), PATIENCE))
                assert await client.reader.read() == b"", "an end, and no reset"
        assert (await proxy.ended())[0] == 0
        assert [entry.method for entry in fal.app.journal] == ["POST"] * 3


@pytest.mark.parametrize("kept", [True, False], ids=["on a kept connection", "on one that was not accepted yet"])
async def test_a_request_that_was_not_read_yet_is_answered_before_its_connection_ends(kept: bool) -> None:
    with socket.socket() as sock:
        sock.settimeout(PATIENCE)
        async with serving(listener()) as url:
            address = ("127.0.0.1", int(url.rpartition(":")[2]))
            if kept:
                sock.connect(address)
                sock.sendall(ASK % b"first")
                assert b"connection" not in await asyncio.to_thread(sock.recv, 1000)

            def ask() -> None:
                if not kept:
                    sock.connect(address)
                sock.sendall(ASK % b"last")

            # It comes first of what the loop does next; the end comes second, before anything can be read.
            asyncio.get_running_loop().call_soon(ask)
        answer = await asyncio.to_thread(sock.recv, 1000)
        assert answer.endswith(b"/last")
        assert b"\r\nconnection: close\r\n" in answer


async def test_an_answer_before_the_end_of_its_body_survives_the_end_of_its_connection() -> None:
    head = b"POST /early HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 300000\r\n\r\n"
    async with serving(listener()) as url, raw_client(int(url.rpartition(":")[2])) as client:
        await client.send(head)
        await readable(client)
        for _ in range(3):
            await client.send(bytes(100_000))
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        answer = await asyncio.wait_for(client.answer(), PATIENCE)
        assert (answer.status, answer.body, answer.one(b"connection")) == (200, b"/early", b"close")


@pytest.mark.skipif(sys.platform != "linux", reason="no filters on sockets")
def test_nobody_new_is_let_in_and_who_was_let_in_is_not_reset() -> None:
    with socket.socket() as before, socket.socket() as after:
        listening = bind("127.0.0.1", 0)
        address = listening.getsockname()
        before.connect(address)
        turn_away(listening)
        before.sendall(b"asked")
        after.setblocking(False)
        assert after.connect_ex(address) == errno.EINPROGRESS
        assert is_waiting(listening)
        accepted, _ = listening.accept()
        assert not is_waiting(listening), "only the one who came before"
        listening.close()
        with accepted:
            assert accepted.recv(5) == b"asked"
            accepted.sendall(b"answered")
            assert before.recv(8) == b"answered"
        assert select.select([], [after], [], PATIENCE)[1], "it knocks again after a second"
        assert after.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


async def test_callers_who_reset_in_the_instant_of_the_goodbye_do_not_stop_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What the kernel says when the reset comes between our last look and the end of our side.
    def too_late(_: object) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    async with contextlib.AsyncExitStack() as callers:
        async with serving(listener()) as url:
            client = await callers.enter_async_context(raw_client(int(url.rpartition(":")[2])))
            await client.send(ASK % b"first")
            assert (await client.answer()).body == b"/first"
            monkeypatch.setattr("asyncio.selector_events._SelectorSocketTransport.write_eof", too_late)
        farewell(await client.answer())
