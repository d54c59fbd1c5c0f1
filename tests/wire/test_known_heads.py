"""Heads that come again: answered, sent up, counted and refused as if nobody had seen them before."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from fal_proxy.asgi import Scope
from fal_proxy.downstream.known_heads import KnownHeads
from fal_proxy.identity.key import revoke
from fal_proxy.lifecycle import Lifecycle, Stage
from fal_proxy.relay.inbound import Message, Receive, Send
from fal_proxy.settings import Settings
from support.fuzzing import fuzz
from support.hub import StartHub, starting
from support.limited import OURS, RUN, SUBMIT, Limit, limiting, said, wide
from support.memory_socket import MemoryServer
from support.peers import PATIENCE, Peer, Serve
from support.proxied import MOUNT, OPEN_PLAN, CanaryWatch, StartProxy, proxied
from support.raw import RawAnswer, raw_client, request
from support.reloaded import change
from support.scripts import answering, ok, read_request
from support.traced import JSON, PARENT, Heads, ask

limit, hubs = limiting, starting
AGAIN = 3  # times, after the first


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return every head that was known when it came."""
    heads: list[bytes] = []
    find = KnownHeads.find

    def noted(self: KnownHeads, head: bytes) -> object:
        known = find(self, head)
        if known is not None:
            heads.append(head)
        return known

    monkeypatch.setattr(KnownHeads, "find", noted)
    return heads


async def _answers(port: int, data: bytes, count: int) -> list[RawAnswer]:
    async with raw_client(port) as client, asyncio.timeout(PATIENCE):
        answers = []
        for _ in range(count):
            await client.send(data)
            answers.append(await client.answer())
    return answers


async def test_what_comes_again_goes_up_and_down_as_it_did_the_first_time(
    serve: Serve, start: StartProxy, found: list[bytes]
) -> None:
    fal = Heads()
    proxy = await start(serve(fal.script))
    fields = [*proxy.bearer.items(), ("X-Fal-Queue-Priority", "low"), ("Accept", "a"), ("Cookie", "c=1")]
    data = request("POST", MOUNT + "/fal.run/fal-ai/flux/dev?x=1", fields, b'{"seed":1}')
    answers = await _answers(proxy.port, data, 1 + AGAIN)
    assert len(found) == AGAIN
    assert len(set(fal.seen)) == 1
    first = {name for name, _ in answers[0].headers}
    assert all({name for name, _ in answer.headers} == first for answer in answers)
    assert {(answer.status, answer.body) for answer in answers} == {(200, b'{"images": []}')}


async def test_the_body_is_read_anew_however_it_is_cut(limit: Limit, found: list[bytes]) -> None:
    limited, fal = await limit(wide())
    bodies = [b'{"seed":%d}' % number for number in range(9)]
    async with raw_client(limited.proxy.port) as client, asyncio.timeout(PATIENCE):
        for body in bodies:
            data = request("POST", MOUNT + RUN[1], limited.ada, body)
            at = data.index(b"\r\n\r\n") + 4
            for cut in (at, at + 1, len(data) - 1, len(data)):
                await client.send(data[:cut])
                await asyncio.sleep(0)
                await client.send(data[cut:])
                assert (await client.answer()).status == 200
    assert fal.inputs == [body for body in bodies for _ in range(4)]
    assert len(found) == 4 * len(bodies) - 1


async def test_a_head_that_comes_in_two_packets_is_parsed_and_what_follows_it_is_known_again(
    limit: Limit, found: list[bytes]
) -> None:
    limited, fal = await limit(wide())
    data = request("POST", MOUNT + RUN[1], limited.ada, b"{}")
    async with raw_client(limited.proxy.port) as client, asyncio.timeout(PATIENCE):
        for pieces in ([data], [data[:40], data[40:]], [data], [data[:-3], data[-3:]], [data]):
            for piece in pieces:
                await client.send(piece)
                await asyncio.sleep(0.01)  # so that they are two packets: nothing tells us that one was read
            assert (await client.answer()).status == 200
    assert len(fal.inputs) == 5
    assert 2 <= len(found) <= 4  # those that came in one packet, and a head that was whole before its body


async def test_known_requests_in_one_packet_are_answered_one_after_the_other(limit: Limit, found: list[bytes]) -> None:
    limited, fal = await limit(wide())
    data = request("POST", MOUNT + RUN[1], limited.ada, b'{"a":1}')
    read = request("GET", MOUNT + "/me", limited.ada)
    async with raw_client(limited.proxy.port) as client, asyncio.timeout(PATIENCE):
        for _ in range(2):
            await client.send((data + read) * 2)
            assert [(await client.answer()).status for _ in range(4)] == [200] * 4
    assert fal.inputs == [b'{"a":1}'] * 4
    assert len(found) == 6


async def test_a_chunked_body_and_an_expectation_are_never_known(limit: Limit, found: list[bytes]) -> None:
    limited, fal = await limit(wide())
    head = request("POST", MOUNT + RUN[1], [*limited.ada, ("Transfer-Encoding", "chunked")])
    for _ in range(2):
        [answer] = await _answers(limited.proxy.port, head + b"2\r\n{}\r\n0\r\n\r\n", 1)
        assert answer.status == 200
    waits = request("POST", MOUNT + RUN[1], [*limited.ada, ("Expect", "100-continue")], b"{}")
    async with raw_client(limited.proxy.port) as client, asyncio.timeout(PATIENCE):
        for _ in range(2):
            await client.send(waits[:-2])
            assert (await client.read_head())[0] == 100
            await client.send(waits[-2:])
            assert (await client.answer()).status == 200
    assert len(fal.inputs) == 4
    assert found == []


async def test_a_revoked_key_ends_with_the_next_request_though_its_head_is_known(
    limit: Limit, found: list[bytes]
) -> None:
    limited, _ = await limit(wide())
    data = request("POST", MOUNT + RUN[1], limited.user("eve"), b"{}")
    async with raw_client(limited.proxy.port) as client, asyncio.timeout(PATIENCE):
        for code in (200, 200, 401, 401):
            if code == 401 and len(found) == 1:
                revoke(limited.folder / "users.toml", "eve")
            await client.send(data)
            assert (await client.answer()).status == code
    assert len(found) == 3


async def test_each_request_is_counted_though_its_head_is_known(limit: Limit, found: list[bytes]) -> None:
    limited, _ = await limit(wide(submit="3/hour"))
    answers = await _answers(limited.proxy.port, request("POST", MOUNT + RUN[1], limited.ada, b"{}"), 5)
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    assert len(found) == 4


async def test_a_refusal_is_said_again_in_full(limit: Limit, found: list[bytes]) -> None:
    limited, fal = await limit(wide(endpoints=("other/**",)))
    page = ("Origin", "https://elsewhere.example")
    for fields, code in (([page, *limited.ada], 403), ([page], 403), ([("Authorization", "Bearer x")], 401)):
        answers = await _answers(limited.proxy.port, request("POST", MOUNT + RUN[1], fields, b"{}"), 3)
        assert {answer.status for answer in answers} == {code}
        assert len({answer.body for answer in answers}) == 1
    assert fal.seen == []
    assert len(found) == 6


async def test_callers_behind_the_same_head_are_counted_apart(limit: Limit, found: list[bytes]) -> None:
    """A trusted proxy names the network; the rest of the head may be that of another caller from there."""
    limited, _ = await limit(wide(submit="1/hour"))
    pages = [await limited.page(("X-Forwarded-For", f"192.0.2.{number}")) for number in range(40)]
    for code in (200, 429):
        answers = [await limited.ask(RUN, page) for page in pages]
        assert {answer.status for answer in answers} == {code}
    assert len(found) >= len(pages)


async def test_settings_that_change_are_in_force_for_heads_that_were_judged_by_others(
    limit: Limit, found: list[bytes]
) -> None:
    limited, _ = await limit(wide())
    data = request("POST", MOUNT + RUN[1], [*limited.ada, OURS], b"{}")
    steps = (
        (wide(), 200),
        (wide(endpoints=("other/**",)), 403),
        (wide(submit="1/hour"), 200),
        (wide(submit="1/hour"), 429),
    )
    async with raw_client(limited.proxy.port) as client, asyncio.timeout(PATIENCE):
        for plan, code in steps:
            await change(limited, plan)
            await client.send(data)
            assert (await client.answer()).status == code
    assert len(found) == 3


async def test_a_field_that_a_plan_no_longer_allows_goes_up_no_more(
    serve: Serve, start: StartProxy, settings: Settings
) -> None:
    fal = Heads()
    proxy = await start(serve(fal.script), settings)
    data = request("POST", MOUNT + RUN[1], [*proxy.bearer.items(), ("X-Fal-Tags", "t")], b"{}")
    for allowed in ((), ("x-fal-tags",), ()):
        plan = msgspec.structs.replace(OPEN_PLAN, allow_headers=allowed)
        await proxy.app.reload(msgspec.structs.replace(settings, plans={"default": plan}))
        [answer] = await _answers(proxy.port, data, 1)
        assert answer.status == 200
        assert fal.field("x-fal-tags") == ("t" if allowed else None)


async def test_every_submit_has_a_webhook_of_its_own_though_their_heads_are_one(
    hubs: StartHub, found: list[bytes]
) -> None:
    hub = await hubs()
    data = request("POST", MOUNT + SUBMIT[1], hub.limited.ada, b"{}")
    await _answers(hub.limited.proxy.port, data, 4)
    submitted = [path for kind, path in zip(hub.fal.seen, hub.fal.paths, strict=True) if kind == "submit"]
    assert len(set(submitted)) == 4
    assert len(found) == 3


async def test_every_call_has_its_own_place_in_the_trace_though_their_heads_are_one(
    serve: Serve, start: StartProxy, traced: Settings, found: list[bytes]
) -> None:
    fal = Heads()
    proxy = await start(serve(fal.script), traced)
    told = []
    for _ in range(3):
        assert await ask(proxy.port, proxy.bearer, JSON, {"traceparent": PARENT}) == 200
        told.append(fal.field("traceparent"))
    assert len(set(told)) == 3
    assert len(found) == 2


async def test_the_last_answer_of_a_server_that_leaves_says_so_to_known_heads_too(found: list[bytes]) -> None:
    lifecycle = Lifecycle()
    app = MemoryServer(_nothing, lifecycle)
    caller = app.connect()
    for stage in (Stage.SERVING, Stage.SERVING, Stage.LEAVING):
        lifecycle.reach(stage)
        await caller.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        await caller.settle(lambda: caller.protocol._unanswered is None)
    answers = bytes(caller.transport.written).split(b"HTTP/1.1 204")[1:]
    assert [b"connection: close" in answer for answer in answers] == [False, False, True]
    assert caller.transport.is_closing()
    assert len(found) == 2


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def test_a_caller_that_leaves_is_noticed_behind_a_known_head(serve: Serve, start: StartProxy) -> None:
    gone = asyncio.Event()
    waiting = asyncio.Event()

    async def script(peer: Peer) -> None:
        await read_request(peer)
        await peer.send(ok())
        await read_request(peer)
        waiting.set()
        await peer.wait_gone()
        gone.set()

    proxy = await start(serve(script))
    data = request("POST", MOUNT + RUN[1], list(proxy.bearer.items()), b"{}")
    async with asyncio.timeout(PATIENCE):
        async with raw_client(proxy.port) as client:
            await client.send(data)
            assert (await client.answer()).status == 200
            await client.send(data)
            await waiting.wait()
        await gone.wait()


async def test_bent_http_whose_heads_are_known_is_answered_as_it_was(tmp_path: Path) -> None:
    stage = await fuzz(tmp_path, 1500, random.Random(7).getrandbits(30))
    assert stage.replayed > 50


async def test_who_stands_in_front_of_the_proxy_sees_every_message(
    serve: Serve, tmp_path: Path, found: list[bytes]
) -> None:
    """Our server's shorter ways lead past `receive` and `send`: they are closed where these are somebody else's."""
    received: list[Message] = []
    sent: list[Message] = []

    def front(app: CanaryWatch) -> Callable[..., Awaitable[None]]:
        async def between(scope: Scope, receive: Receive, send: Send) -> None:
            async def receiving() -> Message:
                message = await receive()
                received.append(message)
                return message

            async def sending(message: Message) -> None:
                sent.append(message)
                await send(message)

            await app(scope, receiving, sending)

        return between

    event = b"data: 1\n\n"
    fal = [ok(b'{"a":1}'), said(200).replace(b"application/json", b"text/event-stream").replace(b"{}", event)]
    fal[1] = fal[1].replace(b"content-length: 2", b"content-length: %d" % len(event))
    for answer, path in zip(fal, (RUN[1], RUN[1] + "/stream"), strict=True):
        upstream = serve(answering(answer), answering(answer))
        folder = tmp_path / path.rpartition("/")[2]
        folder.mkdir()
        async with proxied(f"http://127.0.0.1:{upstream.port}", folder, front=front) as proxy:
            received.clear()
            sent.clear()
            data = request("POST", MOUNT + path, list(proxy.bearer.items()), b'{"seed":1}')
            await _answers(proxy.port, data, 2)
            assert b"".join(message.get("body", b"") for message in received) == b'{"seed":1}' * 2
            body = answer.partition(b"\r\n\r\n")[2]
            assert b"".join(message.get("body", b"") for message in sent) == body * 2
            assert sum(message["type"] == "http.response.start" for message in sent) == 2
    assert len(found) == 2
