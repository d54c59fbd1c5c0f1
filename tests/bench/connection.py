"""What our protocol costs per request, without sockets: `./run env PYTHONPATH=tests python tests/bench/connection.py`.

`PYTHONPATH=tests:/elsewhere/proxy` measures another tree's protocol; CPU time, so that a busy machine does not matter
much. Prints the best of nine series.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import uvicorn
import uvloop
from uvicorn.server import ServerState

from fal_proxy.downstream.deadlines import Sweep
from fal_proxy.downstream.peers import Peers
from fal_proxy.protocol import HttpProtocol
from support.memory_socket import MemoryTransport

REQUESTS = 10_000
SERIES = 9
REQUEST = (
    b"POST /api/fal/proxy HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: Mozilla/5.0\r\nAccept: application/json\r\n"
    b"Accept-Language: en\r\nAccept-Encoding: gzip, deflate, br\r\nReferer: http://127.0.0.1:8080/\r\n"
    b"Content-Type: application/json\r\nx-fal-target-url: https://queue.fal.run/fal-ai/flux/dev\r\n"
    b"Origin: http://127.0.0.1:8080\r\nCookie: session=0123456789abcdef\r\nContent-Length: 2\r\n\r\n{}"
)
BODY = b'{"status":"alive"}'


async def _app(scope: object, receive: Any, send: Any) -> None:
    await receive()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


def _protocol(loop: asyncio.AbstractEventLoop) -> HttpProtocol:
    config = uvicorn.Config(_app, http=HttpProtocol, ws="none", lifespan="off", log_config=None)
    config.load()
    return HttpProtocol(config, ServerState(), {}, loop, peers=Peers(), sweep=Sweep())


async def measure() -> float:
    """Return the microseconds of CPU that one request costs."""
    protocol = _protocol(asyncio.get_running_loop())
    transport = MemoryTransport(lambda: None)
    protocol.connection_made(cast("asyncio.Transport", transport))
    began = time.process_time()
    for _ in range(REQUESTS):
        protocol.data_received(REQUEST)
        while not protocol.cycle.response_complete:  # noqa: ASYNC110 -- the loop's turns are part of the cost
            await asyncio.sleep(0)
    spent = time.process_time() - began
    assert transport.written.count(BODY) == REQUESTS
    return spent / REQUESTS * 1e6


def main() -> None:
    """Measure and print."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(f"{min(runner.run(measure()) for _ in range(SERIES)):.2f} us of CPU per request")


if __name__ == "__main__":
    main()
