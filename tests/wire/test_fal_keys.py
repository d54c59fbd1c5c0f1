"""Several fal keys as callers and operators meet them: a refused one rests, jobs keep theirs, a changed file is in force."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from fal_proxy.settings import State
from fal_proxy.upstream import keys as pools
from support.limited import APP, RUN, STREAM, SUBMIT, kind_of, said
from support.peers import Peer, Serve
from support.proxied import MOUNT, Proxy, open_settings, proxied
from support.raw import RawAnswer, raw_client, request
from support.scripts import ok, read_request

A, B = "aaaaaaaa-0000-4000-8000-00000000feed:" + "a1" * 16, "bbbbbbbb-0000-4000-8000-00000000feed:" + "b2" * 16
INVALID = said(401, b'{"detail":"invalid key credentials"}')
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LOCKED = said(403, b'{"detail":"User is locked. Reason: Exhausted balance. Top up your balance"}')


@dataclass
class Fal:
    """A fal that knows which keys it accepts, and notes who asked for what."""

    refuses: dict[str, bytes] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)  # kind, first letter of the key
    jobs: int = 0
    go_on: asyncio.Event = field(default_factory=asyncio.Event)  # streams end with it

    async def script(self, peer: Peer) -> None:
        while True:
            head, _ = await read_request(peer)
            method, path = (word.decode() for word in head.split(b" ")[:2])
            key = head.lower().partition(b"authorization: key ")[2].partition(b"\r\n")[0].decode()
            kind = kind_of(method, path)
            self.seen.append((kind, key[0]))
            if kind == "stream":
                await peer.send(EVENTS + b"9\r\ndata: 1\n\n\r\n")
                await self.go_on.wait()
                await peer.send(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
            elif key in self.refuses:
                await peer.send(self.refuses[key])
            elif kind == "submit":
                self.jobs += 1
                url = f"https://queue.fal.run/{APP}/requests/job-{self.jobs}"
                await peer.send(ok(msgspec.json.encode({"request_id": f"job-{self.jobs}", "response_url": url})))
            else:
                await peer.send(ok())


@dataclass
class Setting:
    proxy: Proxy
    fal: Fal
    file: Path

    async def ask(self, kind: tuple[str, str]) -> RawAnswer:
        method, path = kind
        async with raw_client(self.proxy.port) as client:
            body = b"{}" if method == "POST" else None
            await client.send(request(method, MOUNT + path, self.proxy.bearer, body))
            return await client.answer()

    async def ready(self) -> tuple[int, list[str]]:
        async with raw_client(self.proxy.port) as client:
            await client.send(request("GET", "/readyz"))
            answer = await client.answer()
            return answer.status, msgspec.json.decode(answer.body)["reasons"]

    def rewrite(self, text: str) -> None:
        self.file.write_text(text)


@pytest.fixture
async def setting(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setting]:
    monkeypatch.setattr(pools, "LOOK_SECONDS", 0.0)
    fal, file = Fal(), tmp_path / "fal.keys"
    file.write_text(f"{A}\n{B}\n")
    settings = msgspec.structs.replace(open_settings(tmp_path), state=State())
    async with contextlib.AsyncExitStack() as stack:
        upstream = f"http://127.0.0.1:{serve(fal.script).port}"
        environ = {"FAL_KEY_FILE": str(file)}
        proxy = await stack.enter_async_context(proxied(upstream, tmp_path, settings, environ, key=None))
        yield Setting(proxy, fal, file)


def job(number: int, end: str = "") -> tuple[str, str]:
    return ("PUT" if end == "/cancel" else "GET", f"/queue.fal.run/{APP}/requests/job-{number}{end}")


async def test_requests_take_turns_and_jobs_keep_the_key_that_submitted_them(setting: Setting) -> None:
    for _ in range(2):
        assert (await setting.ask(SUBMIT)).status == 200
    for number, end in ((1, "/status"), (2, "/status"), (1, ""), (2, ""), (2, "/cancel"), (1, "/cancel")):
        assert (await setting.ask(job(number, end))).status == 200
    letters = [letter for _, letter in setting.fal.seen]
    assert letters[:2] == ["a", "b"]
    assert letters[2:] == ["a", "b", "a", "b", "b", "a"]


@pytest.mark.parametrize(("refusal", "status"), [(INVALID, 401), (LOCKED, 403)])
@pytest.mark.parametrize("kind", [RUN, SUBMIT])
async def test_refusal_of_our_key_goes_down_as_it_came_once_and_the_next_request_uses_another_key(
    kind: tuple[str, str], refusal: bytes, status: int, setting: Setting
) -> None:
    setting.fal.refuses[A] = refusal
    first = await setting.ask(kind)
    assert (first.status, first.body) == (status, refusal.partition(b"\r\n\r\n")[2]), "fal's own words"
    assert first.one(b"x-fal-error-type") is None, "and not marked as ours"
    assert [(await setting.ask(kind)).status for _ in range(3)] == [200, 200, 200]
    assert [letter for _, letter in setting.fal.seen] == ["a", "b", "b", "b"], "no request was repeated"
    name = {401: "invalid", 403: "locked"}[status]
    assert await setting.ready() == (200, [f"1 of 2 fal keys set aside: fal calls them {name}"])
    text = setting.proxy.app.metrics.exposition()
    assert b"\nfal_proxy_usable_keys 1.0\n" in text
    assert b"\nfal_proxy_resting_keys 1.0\n" in text
    assert b"\nfal_proxy_key_refusals_total 1.0\n" in text


async def test_without_a_usable_key_nothing_is_dialled_and_the_proxy_is_not_ready(setting: Setting) -> None:
    setting.fal.refuses = {A: INVALID, B: LOCKED}
    await setting.ask(RUN)
    await setting.ask(RUN)
    refused = await setting.ask(RUN)
    assert (refused.status, refused.one(b"x-fal-error-type")) == (503, b"no_usable_key")
    assert 25 <= int(refused.one(b"retry-after") or 0) <= 30
    assert len(setting.fal.seen) == 2
    status, reasons = await setting.ready()
    assert (status, reasons) == (503, ["2 of 2 fal keys set aside: fal calls them invalid or locked"])
    setting.rewrite("cccccccc-0000-4000-8000-00000000feed:" + "c3" * 16)
    assert (await setting.ask(RUN)).status == 200, "a new file is in force without a restart"
    assert await setting.ready() == (200, [])


async def test_refusal_before_dialling_reserves_nothing(setting: Setting) -> None:
    setting.fal.refuses = {A: INVALID, B: INVALID}
    for _ in range(5):
        await setting.ask(SUBMIT)
    me = msgspec.json.decode((await setting.ask(("GET", "/me"))).body)
    assert me["concurrent"]["in_use"] == 0


async def test_jobs_of_a_key_that_left_the_file_stay_readable_and_its_secret_stays_guarded(setting: Setting) -> None:
    await setting.ask(SUBMIT)
    setting.rewrite(B)
    assert (await setting.ask(job(1, "/status"))).status == 200
    assert (await setting.ask(SUBMIT)).status == 200
    assert [letter for _, letter in setting.fal.seen] == ["a", "a", "b"]
    setting.fal.refuses[B] = ok(b'{"echo":"' + A.partition(":")[2].encode() + b'"}')
    assert (await setting.ask(RUN)).status == 500


async def test_bad_file_keeps_the_keys_and_is_told_where_operators_look(setting: Setting) -> None:
    setting.rewrite("nonsense")
    assert (await setting.ask(RUN)).status == 200
    reasons = ["FAL_KEY_FILE is not in force: line 1 is not `<id>:<secret> [weight]`"]
    assert await setting.ready() == (200, reasons)
    assert b"\nfal_proxy_key_file_faults_total 1.0\n" in setting.proxy.app.metrics.exposition()


async def test_changed_file_does_not_cut_a_stream(setting: Setting) -> None:
    async with raw_client(setting.proxy.port) as client:
        await client.send(request("POST", MOUNT + STREAM[1], setting.proxy.bearer, b"{}"))
        status, _ = await client.read_head()
        assert (status, await client.read_chunk()) == (200, b"data: 1\n\n")
        setting.rewrite(B)
        assert [(await setting.ask(RUN)).status for _ in range(3)] == [200, 200, 200]
        setting.fal.go_on.set()
        assert [await client.read_chunk(), await client.read_chunk()] == [b"data: 2\n\n", b""]
    assert setting.fal.seen == [("stream", "a"), ("run", "b"), ("run", "b"), ("run", "b")]
