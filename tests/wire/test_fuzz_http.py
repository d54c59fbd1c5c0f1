"""A short run of bent HTTP: many inputs in memory, some over real sockets. The long run is `tests/soak/fuzz_http.py`."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import pytest

from fal_proxy.downstream import deadlines
from support.fuzzing import Broken, fuzz
from support.mutation import mutate, packets
from support.peers import Serve
from support.proxied import FAL_KEY_SECRET, open_settings, proxied, with_server
from support.raw import raw_client, request
from support.raw_corpus import rows
from support.scripts import answering, ok
from support.strict_http import parse

INPUTS_IN_MEMORY = 6000
INPUTS_OVER_SOCKETS = 300
INPUTS_AT_ONCE = 10  # each ends by a deadline of the server's
PATIENCE_SECONDS = 20


async def test_bent_http_breaks_nothing(tmp_path: Path) -> None:
    stage = await fuzz(tmp_path, INPUTS_IN_MEMORY, seed=random.SystemRandom().randrange(1 << 32))
    assert stage.upstream_calls > INPUTS_IN_MEMORY / 20, "too little of it gets anywhere"


async def test_fuzzing_notices_a_request_that_nobody_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fal_proxy.downstream.framing.Head.begins_with", lambda *_: True)
    with pytest.raises(Broken, match="which nobody asked for"):
        await fuzz(tmp_path, 20 * INPUTS_IN_MEMORY, seed=1)


async def test_bent_http_over_real_sockets_ends_in_time_and_spoils_nothing(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in vars(deadlines) if name.endswith("_SECONDS")]:
        monkeypatch.setattr(deadlines, name, getattr(deadlines, name) / 100)
    monkeypatch.setattr(deadlines, "KEEP_ALIVE_SECONDS", 0.1)
    upstream = serve(answering(ok()))
    chance = random.Random(1)
    settings = with_server(open_settings(tmp_path), hosts=("proxy.test",))
    async with proxied(f"http://127.0.0.1:{upstream.port}", tmp_path, settings) as proxy:
        credential = f"Authorization: Bearer {proxy.user_key}\r\n".encode()
        seeds = [row.bytes_for(credential) for row in rows() if not row.steps and len(row.data) < 4096]
        inputs = [mutate(chance, seeds) for _ in range(INPUTS_OVER_SOCKETS)]
        left = [packets(chance, data) for data in inputs]

        async def play() -> None:
            while left:
                back = b""
                async with raw_client(proxy.port) as client, asyncio.timeout(PATIENCE_SECONDS):
                    with contextlib.suppress(ConnectionError):
                        for piece in left.pop():
                            await client.send(piece)
                        while piece := await client.reader.read(1 << 16):
                            back += piece
                assert FAL_KEY_SECRET.encode() not in back

        async with asyncio.TaskGroup() as group:
            for _ in range(INPUTS_AT_ONCE):
                group.create_task(play())
        async with raw_client(proxy.port) as client:
            await client.send(request("GET", "/healthz", {"Host": "proxy.test"}))
            assert (await client.answer()).status == 200
    requests = [request for peer in upstream.peers for request in parse(bytes(peer.received))[0]]
    assert 0 < len(requests) <= sum(len(parse(data)[0]) for data in inputs)
    assert not caplog.records
