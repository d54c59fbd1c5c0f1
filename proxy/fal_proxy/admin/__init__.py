"""The admin listener: views and actions for whoever operates this. Relays nothing and knows no caller.

A web page must not reach it through its visitor's browser: a Host that is a name of its own is what DNS rebinding
looks like, and any Origin but our own is another page's. Actions need the token's field even on loopback: no page can
send it without having been given it, and no other user of this machine either.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import partial
from typing import Any, NamedTuple

import msgspec

from fal_proxy._version import __version__
from fal_proxy.address_guard import AddressGuard
from fal_proxy.client import File
from fal_proxy.environment import Secret
from fal_proxy.errors import Refusal, render
from fal_proxy.headers import Headers, values
from fal_proxy.identity.network import TrustedProxies
from fal_proxy.relay.inbound import Receive, Send
from fal_proxy.request import Request
from fal_proxy.routes import METRICS, OVERVIEW
from fal_proxy.telemetry.metrics import CONTENT_TYPE, Metrics

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
_NUMBER = re.compile(r"[0-9]{1,16}")
_SHOWN = re.compile(r"[0-9a-f]{12}")
_LOOPBACK_NAMES = frozenset(["localhost", "127.0.0.1", "[::1]"])
_ALWAYS: Headers = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox; default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE: Headers = [
    (b"content-security-policy", _POLICY),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"vary", b"accept"),
]

Answer = tuple[bytes, bytes]  # content type, body
View = Callable[[], Awaitable[Answer]]
Action = Callable[[int], Awaitable[Answer]]
OnCaller = Callable[[str], Awaitable[Answer]]  # by what the caller is shown as


class _Route(NamedTuple):
    """What a path leads to whose middle says whom or what it is about."""

    method: str
    before: str
    after: str
    middle: re.Pattern[str]
    named: str  # in the list of routes
    answer: OnCaller

    def middle_of(self, path: str) -> str | None:
        """Return the middle if the path is one of these."""
        middle = path.removeprefix(self.before).removesuffix(self.after)
        return middle if path == self.before + middle + self.after and self.middle.fullmatch(middle) else None


class Admin:
    """The ASGI application of the admin listener."""

    def __init__(self, host: str, token: Secret | None, metrics: Metrics, guard: AddressGuard | None = None) -> None:
        """Take the address that it listens on: off loopback, `token` is needed for everything."""
        self._names = _LOOPBACK_NAMES | {f"[{host}]" if ":" in host else host.lower()}
        # Listening everywhere, an address is as literal as the configured one; a rebound name is never an address.
        self._any_address = host in ("0.0.0.0", "::")  # noqa: S104 -- recognised, not listened on
        self._needs_token = not is_loopback(host)
        self._token = token
        self._guard = guard or AddressGuard()
        self._networks = TrustedProxies(())
        self._metrics = metrics
        self._views: dict[bytes, View] = {OVERVIEW.raw: self._overview, METRICS.raw: self._exposition}
        self._actions: dict[bytes, View] = {}
        self._routes: list[_Route] = []
        self._page: Mapping[bytes, File] = {}

    def show(self, path: bytes, view: View) -> None:
        """Answer GET on a path. What is shown may raise Refusal."""
        self._views[path] = view

    def act(self, before: bytes, after: bytes, action: Action) -> None:
        """Let a POST on `before`, a number and `after` do something to the thing of that number."""

        async def by_number(number: str) -> Answer:
            return await action(int(number))

        self._routes.append(_Route("POST", before.decode(), after.decode(), _NUMBER, "<number>", by_number))

    def do(self, path: bytes, action: View) -> None:
        """Let a POST on a path do something."""
        self._actions[path] = action

    def show_caller(self, before: bytes, view: OnCaller) -> None:
        """Answer GET on `before` and what a caller is shown as."""
        self._routes.append(_Route("GET", before.decode(), "", _SHOWN, "<caller>", view))

    def act_on_caller(self, before: bytes, after: bytes, action: OnCaller) -> None:
        """Let a POST on `before`, what a caller is shown as and `after` do something to the caller."""
        self._routes.append(_Route("POST", before.decode(), after.decode(), _SHOWN, "<caller>", action))

    def serve_page(self, files: Mapping[bytes, File]) -> None:
        """Answer browsers with a page: `/` and what it loads, which hold nothing and so need no token."""
        self._page = files

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http":
            await self._http(scope, send)
        elif scope["type"] == "lifespan":
            while (message := await receive())["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": message["type"] + ".complete"})
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _http(self, scope: MutableMapping[str, Any], send: Send) -> None:
        client = scope.get("client")
        request = Request(
            scope["method"],
            scope.get("raw_path") or scope["path"].encode(),
            scope["query_string"] or None,
            list(scope["headers"]),
            client[0] if client else "",
            scope["scheme"],
        )
        status, headers = 200, _ALWAYS
        try:
            self._judge_page(request)
            if (file := self._file(request)) is not None:
                await _send_file(file, request, send)
                return
            content_type, body = await self._judge(request)()
        except Refusal as refusal:
            own, body = render(refusal.error_type, refusal.detail)
            status, content_type, headers = refusal.status, b"application/json", [*_ALWAYS, *own, *refusal.headers]
        length = (b"content-length", b"%d" % len(body))
        headers = [*headers, (b"content-type", content_type), length]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _judge_page(self, request: Request) -> None:
        """Judge where a request comes from. Raises Refusal."""
        self._guard.hit(self._networks.client_network(request.peer, []))
        host = self._judge_host(request)
        origin = request.one(b"origin")
        if origin is not None and origin.decode("latin-1") not in (f"http://{host}", f"https://{host}"):
            raise Refusal("origin_denied", "the admin listener answers no other origin's pages")

    def _file(self, request: Request) -> File | None:
        """Return the page's file that the request asks for; `/` is one to browsers alone."""
        file = self._page.get(request.path)
        if file is None or request.method not in ("GET", "HEAD"):
            return None
        is_browser = any(b"text/html" in line for line in values(request.headers, b"accept"))
        return file if request.path != b"/" or is_browser else None

    def _judge(self, request: Request) -> View:
        """Return what answers the request. Raises Refusal."""
        if self._needs_token and not self._holds_token(request):
            raise self._unidentified()
        view = self._views.get(request.path)
        if view is not None:
            _judge_method(request, "GET", "HEAD")
            return view
        route, answer = self._route(request.path)
        if answer is None:
            raise Refusal("not_found", "nothing is here; / names the routes")
        if route == "GET":
            _judge_method(request, "GET", "HEAD")
            return answer
        _judge_method(request, "POST")
        if self._token is None:
            raise Refusal("mode_off", "actions need FAL_PROXY_ADMIN_TOKEN, and none is set")
        if not self._holds_token(request):
            raise self._unidentified()
        return answer

    def _route(self, path: bytes) -> tuple[str, View | None]:
        """Return the method that a path takes, and what answers it."""
        if (action := self._actions.get(path)) is not None:
            return "POST", action
        text = path.decode("latin-1")
        for route in self._routes:
            if (middle := route.middle_of(text)) is not None:
                return route.method, partial(route.answer, middle)
        return "", None

    def _judge_host(self, request: Request) -> str:
        host = (request.one(b"host") or b"").decode("latin-1").strip().lower()
        match = _HOST.fullmatch(host)
        if match is None:
            raise Refusal("bad_request", "a request needs exactly one plain Host field")
        name = match[1]
        if name not in self._names and not (self._any_address and _is_address(name)):
            raise Refusal("misdirected_host", "the admin listener answers to loopback names and admin.host")
        return host

    def _unidentified(self) -> Refusal:
        detail = "send `Authorization: Bearer <FAL_PROXY_ADMIN_TOKEN>`"
        return Refusal("unidentified", detail, headers=((b"www-authenticate", b"Bearer"),))

    def _holds_token(self, request: Request) -> bool:
        scheme, _, given = (request.one(b"authorization") or b"").partition(b" ")
        if self._token is None or scheme.lower() != b"bearer":
            return False
        expected = self._token.reveal().encode()
        return hmac.compare_digest(hashlib.sha256(given.strip()).digest(), hashlib.sha256(expected).digest())

    async def _overview(self) -> Answer:
        running = {kind: count for kind, count in self._metrics.in_flight().items() if count}
        routes = [path.decode() for path in self._views if path != OVERVIEW.raw]
        routes += [f"POST {path.decode()}" for path in self._actions]
        routes += [
            ("POST " if each.method == "POST" else "") + each.before + each.named + each.after for each in self._routes
        ]
        overview = {"name": "fal-proxy", "version": __version__, "in_flight": running, "routes": routes}
        return b"application/json", msgspec.json.encode(overview)

    async def _exposition(self) -> Answer:
        return CONTENT_TYPE.encode(), self._metrics.exposition()


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach a listener on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


async def _send_file(file: File, request: Request, send: Send) -> None:
    answer = file.answer(request)
    headers = [*answer.headers, *_PAGE]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _judge_method(request: Request, *allowed: str) -> None:
    if request.method not in allowed:
        allow = ((b"allow", ", ".join(allowed).encode()),)
        raise Refusal("method_not_allowed", f"this route takes {allowed[0]}", headers=allow)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
