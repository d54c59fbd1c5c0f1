"""The only wiring: settings and environment become one ASGI application. Also the few routes beside the mount."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import msgspec

from fal_proxy import check, client
from fal_proxy.address_guard import AddressGuard
from fal_proxy.admin import Admin
from fal_proxy.admin.console import Console
from fal_proxy.admission.gate import Gate
from fal_proxy.admission.limits import compile_limits, parse_budget
from fal_proxy.admission.rates import parse_rates
from fal_proxy.admission.settler import Settler
from fal_proxy.asgi import EXTENSION, Scope, asks_first, closing_instead, read_request
from fal_proxy.authorize import Authorize
from fal_proxy.callbacks import Callbacks
from fal_proxy.direct import Direct
from fal_proxy.environment import Secret, admin_token, captured, signing_secrets
from fal_proxy.errors import Misconfigured, Refusal, StoreUnavailable
from fal_proxy.exchange import Request
from fal_proxy.gateway import ACCEPT_PLAIN, CLIENT_PROXY, Gateway
from fal_proxy.identity.app import Identify
from fal_proxy.identity.network import TrustedProxies
from fal_proxy.identity.opening import open_identities
from fal_proxy.identity.ticket import Tickets
from fal_proxy.lifecycle import Lifecycle, Stage
from fal_proxy.platform_api.price_list import open_price_list
from fal_proxy.policy.inputs import InputRules
from fal_proxy.policy.origin import Site
from fal_proxy.policy.plans import compile_plan
from fal_proxy.policy.pricing import Prices, charge_for
from fal_proxy.realtime import Realtime, ServerExtension
from fal_proxy.relay.answering import Reset
from fal_proxy.relay.guard import KeyGuard
from fal_proxy.relay.http import Patience
from fal_proxy.relay.inbound import OurServer, Receive, Send
from fal_proxy.relay.websocket import Terms
from fal_proxy.reply import Reply
from fal_proxy.routes import DEAD_LETTERS, HEALTH, READY, RETRY
from fal_proxy.settings import ENV_UPSTREAM, Settings, config_path
from fal_proxy.settings import Realtime as RealtimeSettings
from fal_proxy.storage import Storage
from fal_proxy.stores import Store
from fal_proxy.stores.mailbox import Mailbox
from fal_proxy.stores.opening import JournalError, open_store
from fal_proxy.telemetry import Telemetry
from fal_proxy.telemetry.tracing import open_tracing
from fal_proxy.uploads import Uploads
from fal_proxy.upstream.credentials import FalKey, FalKeys, fal_keys
from fal_proxy.upstream.dial import Dialer, Route
from fal_proxy.upstream.engine import Engine
from fal_proxy.upstream.keys import KeyPool
from fal_proxy.webhooks import Hub, open_hub
from fal_proxy.webhooks.dead_letters import DeadLetters


class App:
    """The ASGI application. Close it with its lifespan, or with `await close()`.

    `admin` is another one, for a listener of its own; `metrics` is what it shows, `access` where its lines go, `keys` what it calls
    fal with.
    """

    def __init__(
        self, gateway: Gateway, realtime: Realtime, hub: Hub | None, admin: Admin, max_message_bytes: int
    ) -> None:
        self.admin = admin
        self.max_message_bytes = max_message_bytes  # of a WebSocket; the server bounds it
        self.metrics, self.access = gateway.telemetry.metrics, gateway.telemetry.access
        self.lifecycle = gateway.lifecycle
        self.keys = gateway.keys
        self._gateway = gateway
        self._realtime = realtime
        self._hub = hub
        self._mount = gateway.mount
        self._settling: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if self._settling is None:
            # With the first message of any kind: a host may mount us without a lifespan.
            self._settling = asyncio.get_running_loop().create_task(self._gateway.settler.run())
            if self._hub is not None:
                self._hub.start()
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await self._socket(scope, receive, send)

    async def close(self) -> None:
        """Stop the settler, close connections and the store, and let every access line reach its reader."""
        if self._settling is not None:
            self._settling.cancel()
            await asyncio.wait([self._settling])
        self._gateway.engine.close()
        await self._gateway.identities.close()
        await self._gateway.price_list.close()
        if self._hub is not None:
            await self._hub.close()
        await self._gateway.gate.store.close()
        await self._gateway.telemetry.close()

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = read_request(scope)
        own = scope.get("extensions", {}).get(EXTENSION, {})
        below = request.path[len(self._mount) :] if request.path.startswith(self._mount) else None
        file = client.FILES.get(below or b"")
        if file is not None and not asks_first(request):
            await self._serve(file, request, send)
        elif below is not None and below[:1] in (b"", b"/"):
            try:
                await self._gateway.handle(request, receive, send, OurServer(own.get("on_departure"), own.get("push")))
            except asyncio.CancelledError:
                if self.lifecycle.stage is not Stage.CUTTING:
                    raise  # our own server cancels what its end cuts; nobody is left to be told
            except Reset:
                reset = own.get("reset")
                if reset is None:
                    raise  # the server must cut the connection: an answer without an end is an error of the app
                reset()
        else:
            await self._beside(request, send)

    async def _serve(self, file: client.File, request: Request, send: Send) -> None:
        """Answer with a file that needs no caller: a page's module script comes without credentials."""
        reply = Reply(send)
        try:
            self._gateway.judge_host(request, reply)
            answer = file.answer(request)
        except Refusal as refusal:
            await reply.refuse(refusal)
            return
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            send = closing_instead(send)
        own = (scope.get("extensions") or {}).get(EXTENSION, {})
        server = ServerExtension(own.get("socket"), own.get("on_departure"))
        await self._realtime.handle(read_request(scope), receive, send, server)

    async def _beside(self, request: Request, send: Send) -> None:
        """Answer what lies outside the mount."""
        reply = Reply(send)
        try:
            self._gateway.judge_host(request, reply)
            if request.path not in (HEALTH.raw, READY.raw):
                raise Refusal("not_found", f"nothing is here; the proxy lives at {self._mount.decode()}")
            if request.method not in ("GET", "HEAD"):
                raise Refusal("method_not_allowed", "this route takes GET", headers=((b"allow", b"GET, HEAD"),))
            if request.path == HEALTH.raw:
                await reply.own(200, b'{"status":"alive"}')
            else:
                await self._answer_ready(reply)
        except Refusal as refusal:
            await reply.refuse(refusal)

    async def _answer_ready(self, reply: Reply) -> None:
        reasons, ready = self.keys.reasons(), self.keys.usable() > 0
        if self.lifecycle.stage > Stage.SERVING:
            reasons, ready = ["the proxy is about to end", *reasons], False
        try:
            await self._gateway.gate.store.ping()
        except StoreUnavailable:
            reasons, ready = ["the store does not answer", *reasons], False
        state = {"status": "ready" if ready else "not ready", "reasons": reasons}
        await reply.own(200 if ready else 503, msgspec.json.encode(state))

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


def create_app(
    settings: Settings | None = None,
    *,
    config: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    key: Secret | None = None,
    store: Store | None = None,
    mailbox: Mailbox | None = None,
    identify: Identify | None = None,
) -> App:
    """Return the application for `settings`, or for file and environment.

    `key` replaces the environment's fal key; `store` and `mailbox` what `state.url` names, and the app closes them;
    `identify` names the users of an app that this one is mounted in, before every configured source. Raises
    Misconfigured with every error that `check` finds.
    """
    environ = captured() if environ is None else environ
    report = check.examine(settings, config, environ, key=key, embedded=identify is not None)
    if report.errors:
        raise Misconfigured([f"{finding.path}: {finding.message}" for finding in report.errors])
    settings = report.settings
    found = FalKeys((FalKey(key),)) if key else fal_keys(environ, [])
    site = Site(settings.server.public_url, settings.server.hosts, settings.cors.origins)
    folder = config_path(config, environ).parent
    try:
        store = store or open_store(settings.state.url, folder, local_on_failure=settings.state.on_failure == "local")
    except JournalError as error:
        raise Misconfigured([f"state.url: {error}"]) from error
    dialer = Dialer(settings.upstream.connect_seconds)
    engine = Engine(dialer)
    keys = KeyPool(found.keys, found.file)
    telemetry = Telemetry(settings.plans, engine, keys, open_tracing(settings, environ))
    key_guard = KeyGuard(telemetry.metrics.cut_for_key)
    keys.listen(key_guard.watch_for)
    route = Route(environ.get(ENV_UPSTREAM))
    signing = signing_secrets(environ, [])
    inputs, prices = InputRules(settings.inputs), Prices(settings.prices)
    gate = Gate(
        store,
        {name: compile_limits(plan) for name, plan in settings.plans.items()},
        parse_budget(settings.total_budget),
        network_factor=settings.identity.anonymous.network_factor,
        ownership=settings.state.ownership == "strict",
    )
    price_list = open_price_list(settings, prices, folder, route, keys)
    telemetry.metrics.prices = price_list.feed
    second, realtime = _usd_per_second(settings.realtime), settings.realtime
    gateway = Gateway(
        mount=settings.mount.encode(),
        site=site,
        identities=open_identities(settings, folder, environ, identify, is_https=site.is_https),
        plans={name: compile_plan(name, plan) for name, plan in settings.plans.items()},
        inputs=inputs,
        realtime_mode=settings.realtime.mode,
        tickets=Tickets(signing, settings.realtime.token_seconds) if signing else None,
        direct=Direct(gate, inputs, prices, second, realtime.token_seconds, realtime.wma),
        engine=engine,
        route=route,
        keys=keys,
        key_guard=key_guard,
        patience=Patience(settings.upstream.head_seconds, settings.upstream.body_idle_seconds),
        max_body_bytes=settings.server.max_body_bytes,
        telemetry=telemetry,
        prices=prices,
        price_list=price_list,
        gate=gate,
        settler=Settler(store, engine, route, keys, charge_for, [ACCEPT_PLAIN, CLIENT_PROXY], telemetry),
        guard=AddressGuard(),
        trusted_proxies=TrustedProxies(settings.server.trusted_proxies),
        lifecycle=Lifecycle(),
        uploads=Uploads.of(settings, site, route, signing),
        callbacks=Callbacks.of(settings, site, signing),
    )
    storage = Storage.of(settings.storage, gateway)
    storage.open()
    Authorize(storage).open()
    try:
        hub = open_hub(settings, gateway, dialer, environ, folder, mailbox)
    except JournalError as error:
        raise Misconfigured([f"state.url: {error}"]) from error
    token = admin_token(environ, [])
    admin = Admin(settings.admin.host, token, telemetry.metrics)
    Console(gateway, can_act=token is not None, mailbox=hub.mailbox if hub else None).open(admin)
    if hub is not None:
        letters = DeadLetters(hub.mailbox)
        admin.show(DEAD_LETTERS.raw, letters.view)
        admin.act(*RETRY.around, letters.retry)
    sockets = _realtime(settings.realtime, gateway, dialer)
    return App(gateway, sockets, hub, admin, settings.realtime.max_message_bytes)


def _realtime(settings: RealtimeSettings, gateway: Gateway, dialer: Dialer) -> Realtime:
    rates = tuple((rate.limit, rate.window_seconds) for rate in parse_rates(settings.messages))
    terms = Terms(rates, settings.max_message_bytes, settings.session_seconds, settings.idle_seconds)
    return Realtime(gateway, dialer, terms, _usd_per_second(settings))


def _usd_per_second(settings: RealtimeSettings) -> Fraction | None:
    return None if settings.usd_per_second is None else Fraction(repr(settings.usd_per_second))
