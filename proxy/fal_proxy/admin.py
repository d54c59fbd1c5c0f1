"""The admin listener: metrics and an overview for whoever operates this. Relays nothing and knows no caller.

A web page must not reach it through its visitor's browser: a Host that is a name of its own is what DNS rebinding
looks like, and any Origin but our own is another page's.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, MutableMapping
from typing import Any

import msgspec

from fal_proxy._version import __version__
from fal_proxy.address_guard import AddressGuard
from fal_proxy.environment import Secret
from fal_proxy.errors import Refusal, render
from fal_proxy.exchange import Request
from fal_proxy.headers import Headers
from fal_proxy.identity.network import TrustedProxies
from fal_proxy.relay.inbound import Receive, Send
from fal_proxy.telemetry.metrics import CONTENT_TYPE, Metrics

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
_LOOPBACK_NAMES = frozenset(["localhost", "127.0.0.1", "[::1]"])
_ALWAYS: Headers = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox; default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
]

Answer = tuple[bytes, bytes]  # content type, body


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
        self._routes: dict[bytes, Callable[[], Answer]] = {b"/": self._overview, b"/metrics": self._exposition}

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
            scope["query_string"],
            list(scope["headers"]),
            client[0] if client else "",
            scope["scheme"],
        )
        status, headers = 200, _ALWAYS
        try:
            content_type, body = self._judge(request)()
        except Refusal as refusal:
            own, body = render(refusal.error_type, refusal.detail)
            status, content_type, headers = refusal.status, b"application/json", [*_ALWAYS, *own, *refusal.headers]
        length = (b"content-length", b"%d" % len(body))
        headers = [*headers, (b"content-type", content_type), length]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _judge(self, request: Request) -> Callable[[], Answer]:
        """Return what answers the request. Raises Refusal."""
        self._guard.hit(self._networks.client_network(request.peer, []))
        host = self._judge_host(request)
        origin = request.one(b"origin")
        if origin is not None and origin.decode("latin-1") not in (f"http://{host}", f"https://{host}"):
            raise Refusal("origin_denied", "the admin listener answers no other origin's pages")
        if self._needs_token and not self._holds_token(request):
            detail = "send `Authorization: Bearer <FAL_PROXY_ADMIN_TOKEN>`"
            raise Refusal("unidentified", detail, headers=((b"www-authenticate", b"Bearer"),))
        route = self._routes.get(request.path)
        if route is None:
            raise Refusal("not_found", "nothing is here; see / and /metrics")
        if request.method not in ("GET", "HEAD"):
            raise Refusal("method_not_allowed", "this route takes GET", headers=((b"allow", b"GET, HEAD"),))
        return route

    def _judge_host(self, request: Request) -> str:
        host = (request.one(b"host") or b"").decode("latin-1").strip().lower()
        match = _HOST.fullmatch(host)
        if match is None:
            raise Refusal("bad_request", "a request needs exactly one plain Host field")
        name = match[1]
        if name not in self._names and not (self._any_address and _is_address(name)):
            raise Refusal("misdirected_host", "the admin listener answers to loopback names and admin.host")
        return host

    def _holds_token(self, request: Request) -> bool:
        scheme, _, given = (request.one(b"authorization") or b"").partition(b" ")
        if self._token is None or scheme.lower() != b"bearer":
            return False
        expected = self._token.reveal().encode()
        return hmac.compare_digest(hashlib.sha256(given.strip()).digest(), hashlib.sha256(expected).digest())

    def _overview(self) -> Answer:
        running = {kind: count for kind, count in self._metrics.in_flight().items() if count}
        overview = {"name": "fal-proxy", "version": __version__, "in_flight": running, "routes": ["/metrics"]}
        return b"application/json", msgspec.json.encode(overview)

    def _exposition(self) -> Answer:
        return CONTENT_TYPE.encode(), self._metrics.exposition()


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach a listener on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
