"""Metrics add up, return to rest, and nobody can grow them."""

from __future__ import annotations

import asyncio
import random

from fal_proxy.telemetry.catalogue import label_values
from support.lines import Lines, samples, total
from support.peers import Peer, Serve
from support.proxied import MOUNT, Proxy, StartProxy
from support.raw import raw_client, request
from support.scripts import answering, ok, read_request

RUN = MOUNT + "/fal.run/fal-ai/flux/dev"


async def _ask(proxy: Proxy, data: bytes) -> int:
    async with raw_client(proxy.port) as client:
        await client.send(data)
        return (await client.answer()).status


async def test_every_request_is_counted_once_whatever_became_of_it(
    serve: Serve, start: StartProxy, lines: Lines
) -> None:
    proxy = await start(serve(answering(ok(b"{}"))))
    asked = [
        request("POST", RUN, proxy.bearer, b"{}"),
        request("POST", RUN, proxy.bearer, b"{}"),
        request("POST", RUN, {"Authorization": "Bearer fpk_unknown"}, b"{}"),
        request("POST", MOUNT + "/evil.example/", proxy.bearer, b"{}"),
        request("OPTIONS", MOUNT, {"Origin": "http://127.0.0.1", "Access-Control-Request-Method": "POST"}),
        request("GET", MOUNT + "/queue.fal.run/a/b/requests/abc/status", proxy.bearer),
    ]
    statuses = [await _ask(proxy, data) for data in asked]
    assert statuses == [200, 200, 401, 400, 204, 200]
    await lines.exactly(len(asked))
    found = samples(proxy.app)
    name = "fal_proxy_exchanges_total"
    assert total(found, name) == total(found, "fal_proxy_exchange_seconds_count") == len(asked)
    assert total(found, name, kind="run", decision="admitted", ending="complete") == 2
    assert total(found, name, decision="unidentified", ending="refused") == 1
    assert total(found, name, kind="preflight") == 1
    assert total(found, "fal_proxy_first_byte_seconds_count") == 3
    assert total(found, "fal_proxy_bytes_up_total") == 4
    assert total(found, "fal_proxy_bytes_down_total", kind="run") == 4
    assert total(found, "fal_proxy_in_flight") == total(found, "fal_proxy_upstream_open_calls") == 0
    assert total(found, "fal_proxy_upstream_idle_connections") == 1


async def test_ten_departures_leave_nothing_in_flight(serve: Serve, start: StartProxy, lines: Lines) -> None:
    waiting = asyncio.Semaphore(0)

    async def script(peer: Peer) -> None:
        await read_request(peer)
        waiting.release()
        await peer.wait_gone()

    proxy = await start(serve(script))
    clients = []
    for _ in range(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(request("POST", RUN, proxy.bearer, b"{}"))
        clients.append((reader, writer))
        await waiting.acquire()
    assert total(samples(proxy.app), "fal_proxy_in_flight", kind="run") == 10
    assert total(samples(proxy.app), "fal_proxy_upstream_open_calls") == 10
    for _, writer in clients:
        writer.transport.abort()
    await lines.exactly(10)
    found = samples(proxy.app)
    assert total(found, "fal_proxy_in_flight") == total(found, "fal_proxy_upstream_open_calls") == 0
    assert total(found, "fal_proxy_exchanges_total", kind="run", ending="client_gone") == 10


def _hostile(rng: random.Random, proxy: Proxy) -> bytes:
    """Return a request in which everything that a caller chooses is chosen badly."""
    junk = "".join(rng.choice("abcXYZ019-_.~%/\"{}=,;:@!$&'()*+") for _ in range(rng.randrange(1, 40)))
    path = rng.choice(
        [
            RUN,
            f"{MOUNT}/fal.run/{junk}",
            f"{MOUNT}/{junk}",
            f"{MOUNT}/queue.fal.run/{junk}/requests/{rng.random()}/status",
            f"{MOUNT}/queue.fal.run/a/{rng.randrange(1 << 30)}",
            MOUNT,
        ]
    )
    headers = {
        "Host": rng.choice(["127.0.0.1", "localhost:1", junk]),
        "Authorization": rng.choice([f"Bearer {junk}", f"Bearer {proxy.user_key}"]),
        "Origin": rng.choice([f"http://{junk}", "http://127.0.0.1"]),
        "x-fal-target-url": f"https://fal.run/{junk}",
        "x-fal-billable-units": junk,
    }
    chosen = {name: value for name, value in headers.items() if name == "Host" or rng.random() < 0.5}
    method = rng.choice(["POST", "GET", "PUT", "OPTIONS", "PATCH", "DELETE", "PROPFIND"])
    return request(method, path, chosen, junk.encode() if rng.random() < 0.5 else None)


async def test_hostile_requests_create_no_label_value(serve: Serve, start: StartProxy, lines: Lines) -> None:
    rng = random.Random(7)
    proxy = await start(serve(answering(ok(b"{}", b"x-fal-billable-units: 1"))))
    statuses = [await _ask(proxy, _hostile(rng, proxy)) for _ in range(300)]
    assert len(set(statuses)) > 4, "they reach different stages"
    allowed = label_values(["default"])
    found = samples(proxy.app)
    labels = [(name, value) for _, have, _ in found for name, value in have.items() if name != "le"]
    assert [pair for pair in labels if pair[1] not in allowed[pair[0]]] == []
    assert total(found, "fal_proxy_exchanges_total") == len(lines.text)
    assert total(found, "fal_proxy_in_flight") == 0
