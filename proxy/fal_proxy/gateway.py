"""The spine: one request from its first byte to its last, in the order in which it is judged.

    identify  →  resolve target  →  origin  →  policy  →  input  →  admit (reserve)  →  send  →  relay  →  settle

Every stage is a function that returns a value or raises a Refusal with a reason; no stage knows another. The first
failure answers. What a caller is told about a page's origin comes before what they are told about endpoints, and
nothing is dialled before everything was judged. However it ends, the exchange is recorded once, at its end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from fal_proxy import headers as fields
from fal_proxy.address_guard import AddressGuard
from fal_proxy.admission.accounts import Account
from fal_proxy.admission.gate import Demand, Gate, Grant
from fal_proxy.admission.leases import Lease, LeaseAccount
from fal_proxy.admission.settler import Settler
from fal_proxy.asgi import refused_by_server
from fal_proxy.callbacks import Callbacks
from fal_proxy.direct import KINDS, Direct
from fal_proxy.errors import ClientGone, Refusal
from fal_proxy.exchange import Caller, Ending, Exchange, Kind, Target
from fal_proxy.identity import Identities
from fal_proxy.identity.network import TrustedProxies
from fal_proxy.identity.ticket import Tickets
from fal_proxy.judging import Judging
from fal_proxy.lifecycle import Lifecycle, Stage
from fal_proxy.platform_api.price_list import PriceList
from fal_proxy.policy import tokens
from fal_proxy.policy.arrival import announced_bytes, is_preflight
from fal_proxy.policy.inputs import Input, InputRules, carries_input, decode_input, encode_input, judge_shape
from fal_proxy.policy.origin import Site, judge_cross_site
from fal_proxy.policy.plans import CompiledPlan, closed_plan
from fal_proxy.policy.pricing import Prices, charge_for, reservation_microusd
from fal_proxy.relay.answering import Down, Reset
from fal_proxy.relay.guard import KeyGuard
from fal_proxy.relay.http import Outgoing, Patience, relay
from fal_proxy.relay.inbound import NOT_OURS, Inbound, OurServer, Receive, Send
from fal_proxy.reply import Reply
from fal_proxy.request import Request
from fal_proxy.routes import ME
from fal_proxy.telemetry import Telemetry
from fal_proxy.uploads import RewrittenAnswer, Uploads
from fal_proxy.upstream.dial import Route
from fal_proxy.upstream.engine import Engine
from fal_proxy.upstream.keys import Key, KeyPool

_log = logging.getLogger("fal_proxy")


class Entrance(NamedTuple):
    """What follows from a head before anybody asks who sent it."""

    cors: fields.Headers
    accepted: bool | None  # the page's origin; None: no page
    announced: int | None  # bytes of the body; None: chunked
    segment: bytes | None  # below the mount, the first; None: a preflight


class Arrival(msgspec.Struct, frozen=True):
    """A request for a route that judges its callers by itself: framing, Host and preflights are behind it."""

    request: Request
    receive: Receive
    send: Send
    server: OurServer
    reply: Reply
    accepted: bool | None  # the page's origin; None: no page
    announced: int | None  # bytes of the body; None: chunked


Serve = Callable[[Arrival], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything that judging and sending one request needs; wired once by the app, shared by all requests."""

    mount: bytes
    site: Site
    identities: Identities
    plans: Mapping[str, CompiledPlan]
    inputs: InputRules
    realtime_mode: str
    tickets: Tickets | None
    direct: Direct
    engine: Engine
    route: Route
    keys: KeyPool
    key_guard: KeyGuard
    patience: Patience
    max_body_bytes: int
    telemetry: Telemetry
    prices: Prices
    price_list: PriceList  # the same, with what fal itself says
    gate: Gate
    settler: Settler
    guard: AddressGuard
    trusted_proxies: TrustedProxies
    lifecycle: Lifecycle
    uploads: Uploads
    callbacks: Callbacks
    judging: Judging
    routes: dict[bytes, Serve] = field(default_factory=dict)  # by first segment: what judges its callers by itself

    async def handle(self, request: Request, receive: Receive, send: Send, server: OurServer = NOT_OURS) -> None:
        """Answer one request below the mount. Raises Reset when the connection must end unclean."""
        exchange = self.telemetry.begin(request)
        reply = Reply(send, exchange, server.answer)
        try:
            entrance = self._enter(request, reply)
            if self.lifecycle.draining:
                raise draining()
            if entrance.segment is None:
                exchange.preflight = True
                await self._answer_preflight(request, entrance.accepted, reply)
                return
            serve = self.routes.get(entrance.segment, self._relay)
            await serve(Arrival(request, receive, send, server, reply, entrance.accepted, entrance.announced))
        except Refusal as refusal:
            if reply.started:
                exchange.ending, exchange.reason = Ending.CUT, refusal.detail
                raise Reset(refusal.detail) from refusal
            exchange.refused(refusal)
            await reply.refuse(refusal)
        except ClientGone:
            exchange.left(refused_by_server(request), cut=self.lifecycle.stage is Stage.CUTTING)
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

    def _enter(self, request: Request, reply: Reply) -> Entrance:
        """Judge what follows from the head alone, or remember it."""
        known: Entrance | None = request.notes.get(self.judging.number)
        if known is not None:
            reply.cors = known.cors
            return known
        accepted = self.judge_host(request, reply)
        announced = announced_bytes(request)
        segment = None if is_preflight(request) else request.path[len(self.mount) + 1 :].partition(b"/")[0]
        entrance = Entrance(reply.cors, accepted, announced, segment)
        request.note(self.judging.number, entrance)
        return entrance

    async def _relay(self, arrival: Arrival) -> None:
        """Go the whole way, from the caller to the books."""
        request, receive, on_departure = arrival.request, arrival.receive, arrival.server.on_departure
        reply, accepted, announced = arrival.reply, arrival.accepted, arrival.announced
        exchange = reply.exchange
        caller = await self.identities.identify(request)
        exchange.caller, reply.cookie = caller, caller.set_cookie
        plan = self.plans.get(caller.plan) or closed_plan(caller.plan)
        exchange.plan = plan.name
        if request.path == self.mount + ME.raw:
            await self._answer_me(request, caller, accepted, reply)
            return
        outgoing = self.judging.decide(request, caller, plan, announced, accepted, exchange)
        target = outgoing.target
        if target.kind is Kind.TOKEN and self.realtime_mode == "relay":
            inbound = Inbound(receive, tokens.MAX_BYTES, announced, on_departure)
            await self._answer_ticket(request, target, caller, inbound, reply)
            return
        if target.kind is Kind.UPLOAD_TOKEN:
            inbound = Inbound(receive, self.max_body_bytes, announced, on_departure)
            await self.gate.judge_blocked(caller)
            await self.uploads.answer_token(request, caller, inbound, reply)
            return
        received = arrival.server.received
        inbound = Inbound(receive, self.max_body_bytes, announced, on_departure, received=received)
        judged = await self._judge_body(request, caller, plan, inbound, outgoing)
        target, outgoing, amount, price, lease = judged
        exchange.endpoint_id = target.endpoint_id  # a session's endpoint is in its body
        key = None if target.request_id else self.keys.choose()  # a job has a key already
        demand = self._demand(request, caller, plan.name, target, lease)
        grant = await self.gate.admit(caller, demand, amount, price)
        reply.limits = grant.headers
        key = key or self.keys.of_job(grant.record.key_id if grant.record else "")
        account = self._account(grant, lease, exchange, caller, target, key)
        self.settler.opened(grant.entry_id)
        down = Down(reply.head, arrival.send, arrival.server.push, reply.at_once)
        if (rewrite := self.uploads.rewriting(outgoing, caller, request)) is not None:
            down = RewrittenAnswer(reply, rewrite).down
        try:
            await relay(self.engine, outgoing, key, inbound, down, self.patience, exchange, account, self.key_guard)
        finally:
            await account.close()
            self.settler.closed(grant.entry_id)

    def _demand(self, request: Request, caller: Caller, plan: str, target: Target, lease: Lease | None) -> Demand:
        """Return what the gate is asked, which is the same for the same head and caller."""
        if lease is not None:
            return self.gate.demand(caller, plan, target, lease)
        name = (self.judging.number, plan, caller.id, caller.network)
        demand: Demand | None = request.notes.get(name)
        if demand is None:
            demand = self.gate.demand(caller, plan, target)
            request.note(name, demand)
        return demand

    def judge_host(self, request: Request, reply: Reply) -> bool | None:
        """Judge the Host, settle the answer's CORS fields, and say whether the page's origin is accepted (None: no page).

        A page that the operator lists may read even that it used a wrong name; what is ours depends on the name.
        """
        origin = request.one(b"origin")
        text = "" if origin is None else origin.decode("latin-1")
        listed = self.site.is_listed(text)
        if listed:
            reply.cors = fields.cors(origin, ours=False)
        host = self.site.judge_host(request)
        if origin is None:
            return None
        if self.site.is_ours(text, host):
            reply.cors = fields.cors(origin, ours=True)
            return True
        return listed

    async def _answer_preflight(self, request: Request, accepted: bool | None, reply: Reply) -> None:
        if not accepted:
            detail = "this origin may not use the proxy; the operator can list it in cors.origins"
            raise Refusal("origin_denied", detail)
        granted = fields.preflight(request.one(b"access-control-request-headers") or b"")
        if granted is None:
            raise Refusal("bad_request", "Access-Control-Request-Headers is no list of header names")
        await reply.empty(204, granted)

    async def _answer_me(self, request: Request, caller: Caller, accepted: bool | None, reply: Reply) -> None:
        """Tell the caller where they stand; costs nothing."""
        await self.judge_ordinary(request, caller, accepted)
        about = {"id": caller.shown, "plan": caller.plan, "source": caller.source}
        await reply.own(200, msgspec.json.encode(about | await self.gate.standing(caller, caller.plan)))

    async def judge_ordinary(self, request: Request, caller: Caller, accepted: bool | None) -> None:
        """Judge what relays nothing and costs nothing: its address, method, page, plan and block."""
        self.guard.hit(self.trusted_proxies.client_network(request.peer, request.headers))
        if request.method != "GET" or request.query is not None:
            raise Refusal("method_not_allowed", "this route takes GET, without a query", headers=((b"allow", b"GET"),))
        judge_cross_site(caller, request, origin_accepted=accepted, header_form=True)
        if caller.plan not in self.plans:
            raise Refusal("endpoint_denied", f"there is no plan called {caller.plan!r}")
        await self.gate.judge_blocked(caller)

    async def _answer_ticket(
        self, request: Request, target: Target, caller: Caller, inbound: Inbound, reply: Reply
    ) -> None:
        """Answer fal's token request ourselves: the socket that it is for goes through us."""
        if self.tickets is None:
            raise Refusal("mode_off", "this proxy hands out no tickets (FAL_PROXY_SECRET signs them)")
        app = tokens.asked_app(await inbound.read_first(tokens.MAX_BYTES))
        reply.limits = (await self.gate.admit(caller, self.gate.demand(caller, caller.plan, target))).headers
        origin = request.one(b"origin")
        ticket = self.tickets.issue(caller, app, None if origin is None else origin.decode("latin-1"))
        # Fal's two routes answer in two forms, and clients rely on either.
        answer: object = {"token": ticket} if target.path.endswith(b"/realtime") else ticket
        await reply.own(201, msgspec.json.encode(answer))

    async def _judge_body(
        self, request: Request, caller: Caller, plan: CompiledPlan, inbound: Inbound, outgoing: Outgoing
    ) -> tuple[Target, Outgoing, int, str, Lease | None]:
        """Return what the body says the target is, the request to send, what to reserve, at which price, and a lease."""
        if outgoing.target.kind not in KINDS:
            return outgoing.target, *await self._judge_input(request, plan.name, inbound, outgoing), None
        target, body, amount, price, lease = await self.direct.judge(outgoing.target, caller, plan, inbound)
        return target, outgoing.rebuilt(body), amount, price, lease

    def _account(
        self, grant: Grant, lease: Lease | None, exchange: Exchange, caller: Caller, target: Target, key: Key
    ) -> Account | LeaseAccount:
        if lease is None:
            return Account(self.gate.store, grant, exchange, caller, target, charge_for, key.id)
        return LeaseAccount(self.gate.store, grant, lease, exchange, caller, charge_for, key.id, self.settler.hold)

    async def _judge_input(
        self, request: Request, plan: str, inbound: Inbound, outgoing: Outgoing
    ) -> tuple[Outgoing, int, str]:
        """Return the request to send, what to reserve for it, and the price of the day. Nothing has been dialled yet.

        Where a rule or a price looks at the input, the whole body is read, whatever it calls itself, and sent as judged.
        """
        target = outgoing.target
        if target.kind is Kind.UPLOAD_INITIATE:
            return await self.uploads.judge(target, inbound, outgoing), 0, ""
        if not carries_input(target):
            return outgoing, 0, ""
        counts = self.gate.has_budget(plan)
        price = await self.price_list.price_of(target.endpoint_id) if counts else None
        if counts and price is None:
            raise Refusal("endpoint_denied", f"{target.endpoint_id} has no price here, and budgets need one ([prices])")
        given: Input = {}
        if self.inputs.applies(target.endpoint_id) or (price is not None and price.units_from is not None):
            judge_shape(target, request)
            given = self.inputs.apply(target.endpoint_id, decode_input(await inbound.read_first(self.max_body_bytes)))
            outgoing = outgoing.rebuilt(encode_input(given))
        if price is None:
            return outgoing, 0, ""
        return outgoing, reservation_microusd(price, given), price.text


def draining() -> Refusal:
    """Return the refusal of what comes while the process ends; another one may be serving already."""
    return Refusal("draining", "this proxy is about to end; repeat the request", headers=((b"retry-after", b"1"),))
