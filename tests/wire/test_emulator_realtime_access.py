"""Who gets a socket of the emulator, how the others are told, what the journal keeps and what a session costs."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from support.commands import clean_environment, running
from support.emulated import emulated
from support.realtime import KEY, ask, opened, refused, to_the_end, token

PATH = "/a/b/c/realtime"


class Clock:
    """A clock that only the test moves."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("allowed", "route", "reason"),
    [
        ("b", "/tokens/", "the alias alone, as clients ask"),
        ("a/b", "/tokens/", "the app"),
        ("a/b/c", "/tokens/", "the endpoint"),
        ("a/b/c/realtime", "/tokens/realtime", "the full path, as the docs ask"),
        ("b", "/tokens/realtime", "the alias, from the newer route"),
    ],
)
async def test_a_token_opens_what_it_was_minted_for(allowed: str, route: str, reason: str) -> None:
    async with emulated() as fal:
        minted = await token(fal, [allowed], route)
        async with opened(fal, f"{PATH}?fal_jwt_token={minted}", headers={}) as socket:
            assert (await ask(socket, {}))["query"] == {}, reason
        async with opened(fal, f"{PATH}?max_buffering=60&fal_jwt_token={minted}", headers={}) as socket:
            assert (await ask(socket, {}))["query"] == {"max_buffering": "60"}


@pytest.mark.parametrize(
    ("path", "headers", "status", "body"),
    [
        (PATH, {}, 401, {"detail": 'Cannot access application "a/b"'}),
        (PATH, {"authorization": "Key wrong"}, 401, {"detail": "invalid key credentials"}),
        (PATH, {"authorization": "Basic eDp5"}, 401, {"detail": "invalid key credentials"}),
        (PATH + "?fal_jwt_token=", {}, 401, {"detail": "invalid key credentials"}),
        (PATH + "?fal_jwt_token=a.b.c", {}, 401, {"detail": "invalid key credentials"}),
        ("/a/b", KEY, 403, None),
        ("/a/b/c/realtime/realtime", KEY, 403, None),
        ("/a", KEY, 404, {"detail": "Not Found"}),
        ("/realtime", KEY, 404, {"detail": "Not Found"}),
        (PATH + "?max_buffering=0", KEY, 422, {"detail": "max_buffering must be between 1 and 60 (inclusive)"}),
        (PATH + "?max_buffering=61", KEY, 422, {"detail": "max_buffering must be between 1 and 60 (inclusive)"}),
        (PATH + "?max_buffering=x", KEY, 422, {"detail": "max_buffering must be between 1 and 60 (inclusive)"}),
    ],
)
async def test_a_refused_handshake_is_an_http_answer(
    path: str, headers: dict[str, str], status: int, body: Any
) -> None:
    async with emulated(api_keys=["id:secret"]) as fal:
        assert await refused(fal, path, headers=headers) == (status, body)
        entry = await fal.finished()
        assert (entry.status, entry.session, entry.units) == (status, None, None)


async def test_an_expired_token_is_401_and_one_for_another_app_403() -> None:
    clock = Clock()
    async with emulated(clock=clock) as fal:
        minted, other = await token(fal, ["b"], token_expiration=10), await token(fal, ["c"])
        assert await refused(fal, f"{PATH}?fal_jwt_token={other}", headers={}) == (403, {"detail": "Forbidden"})
        clock.now += 10
        body = {"detail": "invalid key credentials"}
        assert await refused(fal, f"{PATH}?fal_jwt_token={minted}", headers={}) == (401, body)


async def test_an_open_socket_outlives_its_token() -> None:
    clock = Clock()
    async with emulated(clock=clock) as fal:
        minted = await token(fal, ["b"], token_expiration=10)
        async with opened(fal, f"{PATH}?fal_jwt_token={minted}", headers={}) as socket:
            clock.now += 3600
            assert (await ask(socket, {"x": 1}))["input"] == {"x": 1}


@pytest.mark.parametrize("credential", ["", "?fal_jwt_token=a.b.c"])
async def test_a_late_refusal_opens_the_socket_and_says_unauthorized_in_json(credential: str) -> None:
    async with emulated(late_refusals=True) as fal:
        async with opened(fal, PATH + credential, headers={}) as socket:
            assert await to_the_end(socket) == (['{"status":"error","error":"Unauthorized"}'], 1000, "")
        entry = await fal.finished()
        assert (entry.status, entry.units) == (101, None)
        async with opened(fal, PATH) as socket:
            assert (await ask(socket, {}))["input"] == {}


async def test_the_journal_has_the_handshake_as_it_came_and_every_message() -> None:
    async with emulated() as fal:
        minted = await token(fal, ["b"])
        target = f"{PATH}?x=%2F&fal_jwt_token={minted}"
        headers = {**KEY, "x-odd": "1"}
        first, second = msgspec.msgpack.encode({"x": 1}), msgspec.msgpack.encode({"y": "ž"})
        async with opened(fal, target, headers=headers, origin="https://page.example") as socket:
            await ask(socket, {"x": 1})
            await socket.send(second)
            await socket.recv()
            await socket.close(4001, "leaving")
        entry = await fal.finished()
        assert (entry.method, entry.host, entry.target) == ("GET", "fal.run", target.encode())
        assert [value for name, value in entry.headers if name == b"authorization"] == [b"Key id:secret"]
        assert (entry.header("x-odd"), entry.header("origin")) == ("1", "https://page.example")
        session = entry.session
        assert session is not None
        assert session.inbound == [first, second]
        assert (session.received, session.received_bytes) == (2, len(first) + len(second))
        assert session.sent == 2
        assert (session.close_code, session.close_reason, session.closed_by_client) == (4001, "leaving", True)
        assert (entry.status, entry.disconnected, entry.answer_complete) == (101, False, True)


async def test_a_client_that_vanishes_is_no_client_that_closes() -> None:
    async with emulated() as fal:
        async with opened(fal, PATH) as socket:
            await ask(socket, {})
            socket.transport.abort()
        entry = await fal.finished()
        assert entry.session is not None
        assert (entry.session.close_code, entry.disconnected) == (1006, True)
        async with opened(fal, PATH) as socket:
            await socket.close(1000)
        entry = await fal.finished()
        assert entry.session is not None
        assert (entry.session.close_code, entry.disconnected) == (1000, False)


async def test_a_session_is_billed_by_the_second_from_upgrade_to_end() -> None:
    clock = Clock()
    async with emulated(clock=clock) as fal:
        async with opened(fal, PATH) as socket:
            await ask(socket, {})
            clock.now += 61.5
        assert Decimal((await fal.finished()).units or "") == Decimal("61.5")
        async with opened(fal, "/emulator/text") as socket:
            await socket.send("x")
            await socket.recv()
            clock.now += 0.25
            socket.transport.abort()
        assert Decimal((await fal.finished()).units or "") == Decimal("0.25")


async def test_a_message_beyond_the_servers_limit_ends_the_session_with_1009() -> None:
    async with emulated(max_message_bytes=1000) as fal, opened(fal, PATH) as socket:
        await socket.send(bytes(1001))
        assert (await to_the_end(socket))[1] == 1009
        session = (await fal.finished()).session
        assert session is not None
        assert session.received == 0


async def test_no_compression_is_agreed_on_although_clients_offer_it() -> None:
    async with emulated() as fal, opened(fal, PATH, compression="deflate") as socket:
        assert "permessage-deflate" in (fal.last.header("sec-websocket-extensions") or "")
        assert socket.protocol.extensions == []


def test_the_command_serves_sockets_and_ends_them_with_1012(tmp_path: Path) -> None:
    with running(["emulate", "--port", "0", "--faults", "c/d:close"], tmp_path, clean_environment()) as fal:
        base = fal.url.replace("http://", "ws://") + "/fal.run"
        with connect(f"{base}/c/d/realtime", additional_headers=KEY, proxy=None) as socket:
            with pytest.raises(ConnectionClosed) as caught:
                socket.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1013
        with connect(f"{base}/a/b/realtime", additional_headers=KEY, proxy=None) as socket:
            socket.send(msgspec.msgpack.encode({"x": 1}))
            answer = socket.recv()
            assert isinstance(answer, bytes)
            assert msgspec.msgpack.decode(answer)["input"] == {"x": 1}
            fal.process.terminate()
            with pytest.raises(ConnectionClosed) as caught:
                socket.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1012
