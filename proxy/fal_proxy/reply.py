"""The way down: what every answer carries, whoever it comes from. Decides nothing."""

from __future__ import annotations

from fal_proxy import headers as fields
from fal_proxy.errors import Refusal, render
from fal_proxy.exchange import Exchange
from fal_proxy.headers import Headers
from fal_proxy.relay.inbound import Answer, Send

_NO_PAGE = fields.cors(None, ours=True)


class Reply:
    """The way down: what every answer carries, and whether its head has gone."""

    def __init__(self, send: Send, exchange: Exchange | None = None, answer: Answer | None = None) -> None:
        """Take what writes a whole answer at once, where the server can."""
        self.send = send
        self._answer = answer
        self.exchange = exchange or Exchange()  # beside the mount there is none, and nobody reads this one
        self.cors = _NO_PAGE
        self.cookie: bytes | None = None
        self.limits: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def started(self) -> bool:
        """Say whether the head has gone."""
        return self.exchange.status is not None

    async def head(self, status: int, upstream: Headers) -> None:
        """Send a head: fal's fields by allow-list, then ours."""
        await self._start(status, fields.to_downstream(upstream) if upstream else [])

    def at_once(self, status: int, upstream: Headers, body: bytes) -> bool:
        """Send a head as `head` does, and all of the body; return False, with nothing sent, where the server cannot."""
        if self._answer is None or not self._answer(status, self._all(fields.to_downstream(upstream)), body):
            return False
        self.exchange.status = status
        return True

    async def file_head(self, status: int, upstream: Headers) -> None:
        """Send a file's head: caches may keep it as the CDN says, and it is shown as nothing that could run."""
        passed = [*fields.to_downstream(upstream), *fields.only(upstream, fields.CACHING)]
        if status in (200, 206) and not fields.values(passed, b"content-type"):
            passed.append((b"content-type", b"application/octet-stream"))
        await self._start(status, passed, fields.ALWAYS_DOWN_FILE)

    async def refuse(self, refusal: Refusal) -> None:
        """Send one of our own errors."""
        own, body = render(refusal.error_type, refusal.detail)
        await self.own(refusal.status, body, [*own, *refusal.headers])

    async def empty(self, status: int, headers: Headers) -> None:
        """Send an answer of ours without a body."""
        await self._start(status, headers)
        await self.send({"type": "http.response.body", "body": b""})

    async def own(self, status: int, body: bytes, headers: Headers | None = None) -> None:
        """Send an answer that did not come from fal; JSON."""
        headers = list(headers or [])
        headers += [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"date", fields.http_date()),
        ]
        await self._start(status, headers)
        self.exchange.bytes_down += len(body)
        await self.send({"type": "http.response.body", "body": body})

    async def begin(self, headers: Headers) -> None:
        """Send the head of an answer of ours whose body follows in pieces."""
        await self._start(200, [*headers, (b"date", fields.http_date())])

    async def piece(self, data: bytes, *, last: bool = False) -> None:
        """Send a piece of that body; returns when the caller's connection can take more."""
        self.exchange.bytes_down += len(data)
        await self.send({"type": "http.response.body", "body": data, "more_body": not last})

    async def _start(self, status: int, passed: Headers, always: Headers = fields.ALWAYS_DOWN) -> None:
        self.exchange.status = status
        headers = self._all(passed, always)
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    def _all(self, passed: Headers, always: Headers = fields.ALWAYS_DOWN) -> Headers:
        headers = [*passed, *self.limits, *always, *self.cors]
        if self.cookie is not None:
            headers.append((b"set-cookie", self.cookie))
        return headers
