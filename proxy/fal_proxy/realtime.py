"""Realtime: one WebSocket of a caller's to one of fal's app's, judged before the handshake as every request is.

    host  →  ticket or identity  →  target  →  origin  →  policy  →  admit  →  dial  →  spend the ticket  →  101  →  relay

In a browser the ticket is the identity: it is taken off the query before the target is looked at, and it is spent by the
101, so that no refusal costs the page its ticket. Whatever is refused before the 101 is an ordinary answer. A session
holds one of the caller's places and is charged a minute at a time.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from fal_proxy import headers as fields
from fal_proxy.admission.accounts import Account
from fal_proxy.admission.gate import Grant
from fal_proxy.errors import ClientGone, Refusal, UpstreamError, UpstreamInvalid, close_code
from fal_proxy.exchange import Caller, Ending, Exchange, Kind, Target
from fal_proxy.gateway import Gateway, draining
from fal_proxy.headers import Headers
from fal_proxy.identity.ticket import Ticket
from fal_proxy.judging import CLIENT_PROXY
from fal_proxy.policy.arrival import address
from fal_proxy.policy.origin import judge_cross_site
from fal_proxy.policy.plans import closed_plan, permit
from fal_proxy.policy.pricing import charge_for, per_seconds_microusd
from fal_proxy.policy.target import resolve_socket
from fal_proxy.relay import websocket as sessions
from fal_proxy.relay.http import refusal_for
from fal_proxy.relay.inbound import Message, OnDeparture, Receive, Send
from fal_proxy.relay.messages import MessageSide
from fal_proxy.relay.websocket import CallerSide, Session, Terms
from fal_proxy.reply import Reply
from fal_proxy.request import Request
from fal_proxy.sockets.frames import shortened
from fal_proxy.upstream.dial import Dialer
from fal_proxy.upstream.handshake import Denied, Opened, open_socket
from fal_proxy.upstream.keys import Key
from fal_proxy.upstream.websocket import Socket

TOKEN_PARAMETER = b"fal_jwt_token"
SWITCHED = 101
_log = logging.getLogger("fal_proxy")


class ServerExtension(NamedTuple):
    """What our own server can do beyond ASGI: hand over the socket itself, tell of a departure behind unread bytes."""

    socket: CallerSide | None = None
    on_departure: OnDeparture | None = None


@dataclass(frozen=True, slots=True)
class Realtime:
    """What sockets need beside the gateway; one per app."""

    gateway: Gateway
    dialer: Dialer
    terms: Terms
    usd_per_second: Fraction | None

    async def handle(self, request: Request, receive: Receive, send: Send, server: ServerExtension) -> None:
        """Serve one WebSocket below the mount."""
        gateway = self.gateway
        exchange = gateway.telemetry.begin(request)
        reply = Reply(_before_handshake(send), exchange)
        await receive()  # websocket.connect
        try:
            accepted = gateway.judge_host(request, reply)
            if not request.path.startswith(gateway.mount + b"/"):
                raise Refusal("not_found", f"no socket is here; the proxy lives at {gateway.mount.decode()}")
            if gateway.lifecycle.draining:
                raise draining()
            ticket = self._take_ticket(request)
            caller = ticket.known() if ticket else await gateway.identities.identify(request)
            exchange.caller = caller
            plan = gateway.plans.get(caller.plan) or closed_plan(caller.plan)
            exchange.plan = plan.name
            target = resolve_socket(address(request, gateway.mount).raw)
            exchange.kind, exchange.endpoint_id = target.kind, target.endpoint_id
            self._judge_page(ticket, caller, target, request, accepted)
            permit(target, plan, storage_mode=gateway.uploads.mode, realtime_mode=gateway.realtime_mode)
            if ticket and await gateway.gate.is_spent(ticket.id, ticket.seconds):
                raise _spent()
            amount = self._reservation(target, plan.name)
            key = gateway.keys.choose()
            grant = await gateway.gate.admit(caller, gateway.gate.demand(caller, plan.name, target), amount)
            reply.limits = grant.headers
            account = Account(gateway.gate.store, grant, exchange, caller, target, charge_for, key.id)
            gateway.settler.opened(grant.entry_id)
            try:
                await self._serve(request, target, caller, ticket, key, grant, receive, send, reply, server)
            finally:
                await account.close()
                gateway.settler.closed(grant.entry_id)
        except Refusal as refusal:
            exchange.refused(refusal)
            await reply.refuse(refusal)
        except ClientGone:
            exchange.ending = Ending.CLIENT_GONE
        except asyncio.CancelledError:
            exchange.ending = Ending.CUT
            raise
        except Exception:  # noqa: BLE001 -- its text may hold anything; the caller gets none of it
            _log.exception("fault in a realtime session")
            fault = Refusal("internal_error", "a fault of the proxy; its log says more")
            exchange.refused(fault, Ending.FAULT)
            if reply.started:
                closed = {"code": close_code(fault.error_type), "reason": shortened(fault.detail)}
                await send({"type": "websocket.close", **closed})
            else:
                await reply.refuse(fault)
        finally:
            gateway.telemetry.finish(exchange)

    def _take_ticket(self, request: Request) -> Ticket | None:
        """Take the one ticket off the query. Raises Refusal: bad_request for two, unidentified for one that is not ours."""
        parts = [] if request.query is None else request.query.split(b"&")
        found = [part for part in parts if part.partition(b"=")[0] == TOKEN_PARAMETER]
        if not found:
            return None
        if len(found) > 1:
            raise Refusal("bad_request", "more than one fal_jwt_token")
        rest = [part for part in parts if part is not found[0]]
        request.query = b"&".join(rest) if rest else None
        if self.gateway.tickets is None:
            raise Refusal("mode_off", "this proxy knows no tickets (FAL_PROXY_SECRET signs them)")
        return self.gateway.tickets.read(found[0].partition(b"=")[2])

    def _judge_page(
        self, ticket: Ticket | None, caller: Caller, target: Target, request: Request, accepted: bool | None
    ) -> None:
        if ticket is None:
            judge_cross_site(caller, request, origin_accepted=accepted, header_form=False)
            return
        origin = request.one(b"origin")
        if (None if origin is None else origin.decode("latin-1")) != ticket.origin:
            raise Refusal("origin_denied", "this ticket was given to another page")
        if not ticket.opens(target.endpoint_id):
            raise Refusal("endpoint_denied", f"this ticket is for {ticket.app}")

    def _reservation(self, target: Target, plan: str) -> int:
        """Return what a minute costs. Raises Refusal where it cannot be counted, or its inputs cannot be judged."""
        endpoint_id = target.endpoint_id
        if self.gateway.inputs.applies(endpoint_id) or self.gateway.prices.needs_input(endpoint_id):
            raise Refusal("endpoint_denied", "inputs of this endpoint are judged here, and those of a socket cannot be")
        if not self.gateway.gate.has_budget(plan):
            return 0
        if self.usd_per_second is None:
            raise Refusal(
                "endpoint_denied", "realtime has no price here, and budgets need one (realtime.usd_per_second)"
            )
        return per_seconds_microusd(self.usd_per_second, sessions.LEASE_SECONDS)

    async def _serve(
        self,
        request: Request,
        target: Target,
        caller: Caller,
        ticket: Ticket | None,
        key: Key,
        grant: Grant,
        receive: Receive,
        send: Send,
        reply: Reply,
        server: ServerExtension,
    ) -> None:
        """Open both sides, and carry the session."""
        gateway, exchange = self.gateway, reply.exchange
        upstream = await self._open(request, target, ticket, key, send, reply, server)
        request.forget()
        if upstream is None:
            return

        async def lease() -> None:
            await gateway.gate.lease(caller, caller.plan, grant)

        side = server.socket or MessageSide(receive, send)
        session = Session(side, upstream, self.terms, exchange, gateway.key_guard, lease)
        resume = gateway.lifecycle.on_draining(session.drain)
        try:
            if gateway.lifecycle.draining:
                session.drain()
            await session.run()
        except BaseException:
            upstream.abort()
            raise
        finally:
            resume()
            if isinstance(side, MessageSide):
                await side.stop()

    async def _open(
        self,
        request: Request,
        target: Target,
        ticket: Ticket | None,
        key: Key,
        send: Send,
        reply: Reply,
        server: ServerExtension,
    ) -> Socket | None:
        """Dial and switch protocols on both sides; return fal's end.

        None when fal has answered otherwise, which then went down as it came. Raises ClientGone for a caller who has left.
        """
        gateway, exchange = self.gateway, reply.exchange
        found = await self._dial(request, target, key, exchange, server)
        exchange.first_byte_seconds = exchange.elapsed_seconds
        if isinstance(found, Denied):
            exchange.upstream_status, exchange.whole = found.status, True
            named = any(name == b"x-fal-request-id" for name, _ in found.headers)
            key.answered(found.status, found.body, from_job=named, paid=True)
            await self._answer(found, reply)
            return None
        exchange.upstream_status = SWITCHED
        try:
            self._judge_fields(found.headers)
            if ticket and not await gateway.gate.spend(ticket.id, ticket.seconds):
                exchange.written = False  # for the account: who is refused by us pays nothing
                raise _spent()
            exchange.status = SWITCHED
            try:
                await send({"type": "websocket.accept", "headers": fields.to_handshake(found.headers)})
            except OSError as error:  # what ASGI servers raise once the caller has left
                raise ClientGone from error
        except BaseException:
            found.socket.abort()
            raise
        return found.socket

    async def _dial(
        self, request: Request, target: Target, key: Key, exchange: Exchange, server: ServerExtension
    ) -> Opened | Denied:
        """Return fal's answer to the handshake. Raises ClientGone for a caller who does not wait for it."""
        lifecycle = self.gateway.lifecycle
        origin, path_and_query = self.gateway.route.to(target.host, target.path_and_query)
        passed = [*fields.to_upstream_socket(request.headers), CLIENT_PROXY, key.field]

        if exchange.trace is not None:
            exchange.host, exchange.asked_seconds = target.host.decode("ascii"), exchange.elapsed_seconds

        def note_written() -> None:
            exchange.written = True

        interrupted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def interrupt() -> None:
            if not interrupted.done():
                interrupted.set_result(None)

        if server.on_departure is not None:
            server.on_departure(interrupt)
        resume = lifecycle.on_draining(interrupt)
        dialling = asyncio.create_task(open_socket(self.dialer, origin, path_and_query, passed, note_written))
        waits: list[asyncio.Future[Any]] = [dialling, interrupted]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if interrupted.done():
                if not lifecycle.draining:
                    raise ClientGone
                exchange.written = False  # for the account: who is refused by us pays nothing
                raise draining()
            return dialling.result()
        except UpstreamError as error:
            raise refusal_for(error, Kind.REALTIME.traits) from error
        except BaseException:
            dialling.add_done_callback(_abort)
            raise
        finally:
            resume()
            dialling.cancel()

    async def _answer(self, denied: Denied, reply: Reply) -> None:
        status, headers, body = denied
        self._judge_fields(headers, body)
        if not 400 <= status < 600:
            error = UpstreamInvalid(f"fal answered the handshake with {status}", written=True)
            raise refusal_for(error, Kind.REALTIME.traits)
        kept = [pair for pair in headers if pair[0] not in (b"content-length", b"connection")]
        await reply.head(status, [*kept, (b"content-length", b"%d" % len(body))])
        reply.exchange.bytes_down = len(body)
        await reply.send({"type": "http.response.body", "body": body})

    def _judge_fields(self, headers: Headers, body: bytes = b"") -> None:
        """Raise Refusal when fal's answer to the handshake holds a key of ours."""
        try:
            self.gateway.key_guard.judge_fields(headers)
            self.gateway.key_guard.judge(body)
        except UpstreamError as error:
            raise refusal_for(error, Kind.REALTIME.traits) from error


def _abort(dialling: asyncio.Task[Opened | Denied]) -> None:
    """Let go of a socket that came to be when nobody waited for it any more."""
    if not dialling.cancelled() and dialling.exception() is None and isinstance(found := dialling.result(), Opened):
        found.socket.abort()


def _spent() -> Refusal:
    return Refusal("unidentified", "this ticket was used; every socket needs one of its own")


def _before_handshake(send: Send) -> Send:
    """Return a way to send an ordinary answer in place of the 101 (ASGI's denial response)."""

    async def denial(message: Message) -> None:
        await send({**message, "type": "websocket." + message["type"]})

    return denial
