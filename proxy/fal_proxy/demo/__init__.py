"""The page that `fal-proxy dev` serves at `/`, and the few things that only the page may ask; the rest is the proxy's.

It answers literal loopback names only, and a browser only for pages of its own.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from fal_proxy.asgi import EXTENSION, Scope, read_request
from fal_proxy.client import File
from fal_proxy.demo.playground import TOKENS_MOUNT, Playground
from fal_proxy.demo.trace import Arrived, Trace
from fal_proxy.errors import Refusal
from fal_proxy.policy.origin import Site
from fal_proxy.relay.inbound import Receive, Send
from fal_proxy.reply import Reply
from fal_proxy.request import Request
from fal_proxy.upstream.credentials import secret_half

Answer = Callable[[Request, Receive, Reply], Awaitable[None]]

_PAGE = Path(__file__).with_name("page")
_BELOW = b"/demo/"  # where the page's files and questions live; the page itself is `/`
_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".txt": b"text/plain; charset=utf-8",
}
_OURS = ((b"cross-origin-resource-policy", b"same-origin"),)
_MAX_BODY_BYTES = 1024
# What fal may be told to do wrong, in the emulator's own words: the page's models only, and never the pictures.
FAULTS = {
    "none": "",
    "429": "fal-ai/**:status=429",
    "422": "fal-ai/**:status=422",
    "stall": "fal.run/**/realtime:stall=2;fal-ai/**:stall",
    "cut": "fal.run/**/realtime:reset=3;fal-ai/**:truncate",
}


class Demo:
    """The ASGI application of `dev`. `break_fal` takes faults in the emulator's words; close with its lifespan."""

    def __init__(self, playground: Playground, journal: Sequence[Arrived], break_fal: Callable[[str], None]) -> None:
        self._playground = playground
        self._mount = playground.settings.mount
        self._site = Site("", playground.settings.server.hosts, [])
        self._break_fal = break_fal
        self._fault = "none"
        self._trace = Trace([self._mount, TOKENS_MOUNT], journal, self._secrets)
        self._files = _files()
        self._answers: dict[bytes, Answer] = {
            _BELOW + b"world.json": self._answer_world,
            _BELOW + b"trace.json": self._answer_trace,
            _BELOW + b"fault": self._answer_fault,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            scope.get("state", {})[EXTENSION] = self._playground.proxy.unread
            await self._lifespan(receive, send)
            return
        request = read_request(scope)
        if scope["type"] == "http" and (request.path in self._answers or request.path in self._files):
            await self._serve(request, receive, send)
            return
        app = self._playground.tokens if _is_below(request.path, TOKENS_MOUNT) else self._playground.proxy
        receive, send = self._trace.watch(request, receive, send)
        await app(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._playground.tokens.close()
                await self._playground.proxy.close()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def _serve(self, request: Request, receive: Receive, send: Send) -> None:
        reply = Reply(send)
        try:
            host = self._site.judge_host(request)
            if (answer := self._answers.get(request.path)) is not None:
                self._judge_page(request, host)
                await answer(request, receive, reply)
                return
            served = self._files[request.path].answer(request)
        except Refusal as refusal:
            await reply.refuse(refusal)
            return
        headers = served.headers
        if request.path == b"/":
            headers = [*headers, *self._page_headers(host)]
        await send({"type": "http.response.start", "status": served.status, "headers": headers})
        await send({"type": "http.response.body", "body": served.body})

    def _judge_page(self, request: Request, host: str) -> None:
        """Let our own page ask, and whoever is no browser; a page that changes something must say where it is from."""
        origin, site = request.one(b"origin"), request.one(b"sec-fetch-site")
        ours = origin is not None and self._site.is_ours(origin.decode("latin-1"), host)
        if (origin is not None and not ours) or site not in (None, b"same-origin"):
            raise Refusal("origin_denied", "only the page of this `dev` may ask")
        if request.method != "GET" and not ours:
            raise Refusal("origin_denied", "what changes something needs an Origin of this `dev`")

    def _page_headers(self, host: str) -> list[tuple[bytes, bytes]]:
        """Return the fields of the page itself: what it may load and whom it may talk to."""
        fal = self._playground.fal_url
        sockets = f"ws://{host} {fal.replace('http://', 'ws://')}"
        policy = (
            "default-src 'none'; script-src 'self'; style-src 'self'; "
            f"connect-src 'self' {sockets}; img-src 'self' data: blob: {fal}; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return [
            (b"content-security-policy", policy.encode("latin-1")),
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"referrer-policy", b"same-origin"),
        ]

    async def _answer_world(self, request: Request, receive: Receive, reply: Reply) -> None:
        """Tell the page who plays here and where fal is."""
        _only(request, "GET")
        users = [
            {"name": "Guest", "proof": "an anonymous cookie"},
            {"name": "Ada", "proof": "a user key", "key": self._playground.user_key},
        ]
        world = {"mount": self._mount, "tokens": TOKENS_MOUNT, "fal": self._playground.fal_url}
        await reply.own(200, msgspec.json.encode(world | {"users": users, "fault": self._fault}))

    async def _answer_trace(self, request: Request, receive: Receive, reply: Reply) -> None:
        _only(request, "GET")
        await reply.own(200, msgspec.json.encode({"exchanges": self._trace.shown()}))

    async def _answer_fault(self, request: Request, receive: Receive, reply: Reply) -> None:
        """Break fal on purpose, or mend it."""
        _only(request, "POST")
        if request.one(b"content-type") != b"application/json":
            raise Refusal("bad_request", "a fault is JSON: application/json")
        try:
            given = json.loads(await _whole(receive))
            self._fault = next(name for name in FAULTS if name == given["fault"])
        except (ValueError, LookupError, TypeError, StopIteration):
            raise Refusal("bad_request", f"a fault is one of: {', '.join(FAULTS)}") from None
        self._break_fal(FAULTS[self._fault])
        await reply.own(200, msgspec.json.encode({"fault": self._fault}))

    def _secrets(self) -> list[str]:
        key = self._playground.fal_key
        whole = key.reveal()
        return [whole, secret_half(key), whole.partition(":")[0], self._playground.user_key]


def _files() -> dict[bytes, File]:
    """Return the page's files by the paths they are served at."""
    served = {
        _BELOW + str(path.relative_to(_PAGE)).encode(): File.of(path, _TYPES[path.suffix], _OURS)
        for path in _PAGE.rglob("*")
        if path.is_file()
    }
    return {b"/": served.pop(_BELOW + b"index.html"), **served}


def _is_below(path: bytes, mount: str) -> bool:
    return (path + b"/").startswith(mount.encode() + b"/")


def _only(request: Request, method: str) -> None:
    if request.method != method:
        raise Refusal("method_not_allowed", f"this takes {method}", headers=((b"allow", method.encode()),))


async def _whole(receive: Receive) -> bytes:
    """Return a small body. Raises Refusal body_too_large."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body") or b""
        if len(body) > _MAX_BODY_BYTES:
            raise Refusal("body_too_large", f"this takes at most {_MAX_BODY_BYTES} bytes")
        if not message.get("more_body"):
            return body
