"""The spine: one request from its first byte to its last, in the order in which it is judged.

    identify  →  resolve target  →  origin  →  policy  →  send  →  relay

Every stage is a function that returns a value or raises a Refusal with a reason; no stage knows another. The first
failure answers. What a caller is told about a page's origin comes before what they are told about endpoints, and
nothing is dialled before everything was judged. However it ends, the exchange is recorded once, at its end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from fal_proxy import headers as fields
from fal_proxy._version import __version__
from fal_proxy.errors import ClientGone, Refusal, render
from fal_proxy.exchange import Addressed, Caller, Ending, Exchange, Request, Target
from fal_proxy.headers import Headers
from fal_proxy.identity import Identities
from fal_proxy.policy.endpoints import permit
from fal_proxy.policy.origin import Site, judge_cross_site
from fal_proxy.policy.plans import CompiledPlan, plan_of
from fal_proxy.policy.target import resolve
from fal_proxy.relay.http import Outgoing, Patience, Reset, relay
from fal_proxy.relay.inbound import Inbound, Receive, Send
from fal_proxy.settings import Secret
from fal_proxy.telemetry import Telemetry
from fal_proxy.upstream.credentials import authorization
from fal_proxy.upstream.dial import Route
from fal_proxy.upstream.engine import Engine

TARGET_HEADER = b"x-fal-target-url"
_CLIENT_PROXY = (b"x-fal-client-proxy", f"fal-proxy/{__version__}".encode())
_ACCEPT_PLAIN = (b"accept-encoding", b"identity")

_log = logging.getLogger("fal_proxy")


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything that judging and sending one request needs; wired once by the app, shared by all requests."""

    mount: bytes
    site: Site
    identities: Identities
    plans: Mapping[str, CompiledPlan]
    storage_mode: str
    engine: Engine
    route: Route
    key: Secret
    patience: Patience
    max_body_bytes: int
    telemetry: Telemetry

    async def handle(self, request: Request, receive: Receive, send: Send) -> None:
        """Answer one request below the mount. Raises Reset when the connection must end unclean."""
        exchange = self.telemetry.begin()
        reply = Reply(send, exchange)
        try:
            host = self.site.judge_host(request)
            origin = request.one(b"origin")
            accepted = self._accept_origin(origin, host, reply)
            if is_preflight(request):
                exchange.preflight = True
                await self._answer_preflight(request, accepted, reply)
                return
            caller = self.identities.identify(request)
            exchange.caller, reply.cookie = caller, caller.set_cookie
            plan = plan_of(self.plans, caller.plan)
            exchange.plan = plan.name
            addressed = address(request, self.mount)
            target = resolve(addressed.raw, request.method, plan.methods)
            exchange.kind, exchange.endpoint_id = target.kind, target.endpoint_id
            judge_cross_site(caller, request, origin_accepted=accepted, header_form=addressed.header_form)
            permit(target, plan.name, plan.globs, storage_mode=self.storage_mode)
            outgoing = self._prepare(request, target, plan, caller)
            inbound = Inbound(receive, self.max_body_bytes)
            await relay(self.engine, outgoing, inbound, send, reply.head, self.patience, exchange)
        except Refusal as refusal:
            exchange.refused(refusal)
            await reply.refuse(refusal)
        except ClientGone:
            exchange.ending = Ending.CLIENT_GONE
        except (Reset, asyncio.CancelledError) as cut:
            exchange.ending, exchange.reason = Ending.CUT, str(cut)
            raise
        except Exception:
            # The text of a fault of ours may hold anything; the caller gets none of it.
            _log.exception("fault while answering %s", request.method)
            fault = Refusal("internal_error", "a fault of the proxy; its log says more")
            exchange.refused(fault, Ending.FAULT)
            if reply.started:
                raise
            await reply.refuse(fault)
        finally:
            self.telemetry.finish(exchange)

    def _accept_origin(self, origin: bytes | None, host: str, reply: Reply) -> bool | None:
        """Say whether the page's origin is ours or listed (None: there is none), and settle the answer's CORS fields."""
        if origin is None:
            return None
        text = origin.decode("latin-1")
        ours = self.site.is_ours(text, host)
        if ours or self.site.is_listed(text):
            reply.cors = fields.cors(origin, ours=ours)
            return True
        return False

    async def _answer_preflight(self, request: Request, accepted: bool | None, reply: Reply) -> None:
        if not accepted:
            raise Refusal(
                "origin_denied", "this origin may not use the proxy; the operator can list it in cors.origins"
            )
        granted = fields.preflight(request.one(b"access-control-request-headers") or b"")
        if granted is None:
            raise Refusal("bad_request", "Access-Control-Request-Headers is no list of header names")
        await reply.head(204, granted)
        await reply.send({"type": "http.response.body", "body": b""})

    def _prepare(self, request: Request, target: Target, plan: CompiledPlan, caller: Caller) -> Outgoing:
        """Build the upstream request: the caller's fields by allow-list, ours after them, the key last."""
        announced, has_body = body_of(request)
        if announced is not None and announced > self.max_body_bytes and target.kind.traits.json_body:
            raise Refusal("body_too_large", f"the body exceeds {self.max_body_bytes} bytes (server.max_body_bytes)")
        request.one(b"content-type")
        origin, path_and_query = self.route.to(target.host, target.path_and_query)
        passed = fields.to_upstream(request.headers, optional=plan.allow_headers)
        passed += [_ACCEPT_PLAIN, _CLIENT_PROXY, authorization(self.key)]
        return Outgoing(request.method.encode("ascii"), origin, path_and_query, passed, target, announced, has_body)


class Reply:
    """The way down: what every answer carries, and whether its head has gone."""

    def __init__(self, send: Send, exchange: Exchange | None = None) -> None:
        self.send = send
        self.exchange = exchange or Exchange()  # beside the mount there is none, and nobody reads this one
        self.cors = fields.cors(None, ours=True)
        self.cookie: bytes | None = None

    @property
    def started(self) -> bool:
        """Say whether the head has gone."""
        return self.exchange.status is not None

    async def head(self, status: int, upstream: Headers) -> None:
        """Send a head: fal's fields by allow-list, then ours."""
        await self._start(status, fields.to_downstream(upstream) if upstream else [])

    async def refuse(self, refusal: Refusal) -> None:
        """Send one of our own errors."""
        own, body = render(refusal.error_type, refusal.detail)
        await self.own(refusal.status, body, [*own, *refusal.headers])

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

    async def _start(self, status: int, passed: Headers) -> None:
        self.exchange.status = status
        headers = passed + fields.ALWAYS_DOWN + self.cors
        if self.cookie is not None:
            headers.append((b"set-cookie", self.cookie))
        await self.send({"type": "http.response.start", "status": status, "headers": headers})


def is_preflight(request: Request) -> bool:
    """Say whether this is a CORS preflight (Fetch §3.2.2)."""
    return request.method == "OPTIONS" and request.one(b"access-control-request-method") is not None


def address(request: Request, mount: bytes) -> Addressed:
    """Return the target as written: in the header on the bare mount, or in the path below it; never both."""
    lines = [value for name, value in request.headers if name == TARGET_HEADER]
    below = request.path[len(mount) :]
    if below in (b"", b"/"):
        if len(lines) != 1:
            raise Refusal("invalid_target", "send exactly one x-fal-target-url, or put /<host>/<path> behind the mount")
        if request.query is not None:
            raise Refusal("invalid_target", "the bare mount takes no query: it belongs into x-fal-target-url")
        return Addressed(lines[0], header_form=True)
    if lines:
        raise Refusal("invalid_target", "a target in the path and one in x-fal-target-url contradict each other")
    query = b"" if request.query is None else b"?" + request.query
    return Addressed(b"https:/" + below + query, header_form=False)


def body_of(request: Request) -> tuple[int | None, bool]:
    """Return the announced length (None: chunked) and whether there is a body at all."""
    length = request.one(b"content-length")
    if any(name == b"transfer-encoding" for name, _ in request.headers):
        return None, True
    if length is None:
        return 0, False
    if not length.isdigit():
        raise Refusal("bad_request", "Content-Length is no number")
    return int(length), length.strip(b"0") != b""
