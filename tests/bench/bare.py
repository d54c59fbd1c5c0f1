"""Our server and our engine with nothing between them: what a request costs before anything is judged or counted.

`python -m bench.bare` listens and says on which port; upstream is FAL_PROXY_UPSTREAM.
"""

from __future__ import annotations

import os
import sys

from fal_proxy import headers as fields
from fal_proxy.asgi import Scope
from fal_proxy.relay.inbound import Receive, Send
from fal_proxy.server import Listener, bind, serve
from fal_proxy.upstream.dial import Dialer, Route
from fal_proxy.upstream.engine import Engine

IDLE_SECONDS = 60.0


class Bare:
    """An ASGI application that sends everything to where `x-fal-target-url` says, with a key."""

    def __init__(self) -> None:
        self._engine = Engine(Dialer(5))
        self._route = Route(os.environ["FAL_PROXY_UPSTREAM"])
        self._key = (b"authorization", f"Key {os.environ['FAL_KEY']}".encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            for stage in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{stage}.complete"})
            return
        headers = scope["headers"]
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        [target] = fields.values(headers, b"x-fal-target-url")
        host, slash, path = target.removeprefix(b"https://").partition(b"/")
        origin, path_and_query = self._route.to(host, slash + path)
        call = await self._engine.open(origin)
        try:
            passed = [*fields.to_upstream(headers, optional=()), self._key]
            call.start(scope["method"].encode(), path_and_query, passed, length=len(body), body=body)
            head = await call.head(IDLE_SECONDS)
            down = fields.to_downstream(head.headers)
            await send({"type": "http.response.start", "status": head.status, "headers": down})
            while data := await call.read(IDLE_SECONDS):
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            call.release()


def main() -> None:
    """Serve until SIGTERM."""
    listener = Listener(Bare(), bind("127.0.0.1", 0), trusted_proxies=["127.0.0.1"])

    def announce() -> None:
        sys.stdout.write(f"listening on {listener.url}\n")
        sys.stdout.flush()

    serve(listener, announce)


if __name__ == "__main__":
    main()
