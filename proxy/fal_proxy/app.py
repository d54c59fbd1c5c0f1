"""The app as its server and its operator meet it: ASGI in, the gateway of the settings in force out, and the few routes
beside the mount.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec

from fal_proxy import check, client
from fal_proxy.admin import Admin
from fal_proxy.admin.console import Console
from fal_proxy.asgi import EXTENSION, Scope, asks_first, closing_instead, read_request
from fal_proxy.assembly import Deployment, Lasting, deploy, open_lasting, put_in_force
from fal_proxy.environment import Secret, admin_token, captured
from fal_proxy.errors import Misconfigured, Refusal, StoreUnavailable
from fal_proxy.exchange import Request
from fal_proxy.gateway import Gateway
from fal_proxy.identity.app import Identify
from fal_proxy.lifecycle import Stage
from fal_proxy.realtime import ServerExtension
from fal_proxy.relay.answering import Reset
from fal_proxy.relay.inbound import Receive, Send
from fal_proxy.reply import Reply
from fal_proxy.routes import DEAD_LETTERS, HEALTH, READY, RETRY
from fal_proxy.settings import Settings, config_path
from fal_proxy.stores import Store
from fal_proxy.stores.mailbox import Mailbox
from fal_proxy.upstream.credentials import FalKey, FalKeys, fal_keys
from fal_proxy.webhooks import Hub
from fal_proxy.webhooks.dead_letters import DeadLetters


class App:
    """The ASGI application. Close it with its lifespan, or with `await close()`.

    `admin` is another one, for a listener of its own; `metrics` is what it shows, `access` where its lines go, `keys` what it calls
    fal with.
    """

    def __init__(self, lasting: Lasting, deployment: Deployment, admin: Admin) -> None:
        self.admin = admin
        self.metrics, self.access = lasting.telemetry.metrics, lasting.telemetry.access
        self.lifecycle = lasting.lifecycle
        self.keys = lasting.keys
        self._lasting = lasting
        self._deployment = deployment
        self._mount = deployment.gateway.mount
        self._settling: asyncio.Task[None] | None = None
        put_in_force(lasting, deployment)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._deployment.settings

    @property
    def max_message_bytes(self) -> int:
        """The bound of a WebSocket's messages, which the server is to keep."""
        return self.settings.realtime.max_message_bytes

    @property
    def _gateway(self) -> Gateway:
        return self._deployment.gateway

    @property
    def _hub(self) -> Hub | None:
        return self._lasting.hub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if self._settling is None:
            # With the first message of any kind: a host may mount us without a lifespan.
            self._settling = asyncio.get_running_loop().create_task(self._lasting.settler.run())
            if self._lasting.hub is not None:
                self._lasting.hub.start()
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
        await self._deployment.close()
        await self._lasting.close()

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = read_request(scope)
        own = scope.get("extensions", {}).get(EXTENSION, {})
        below = request.path[len(self._mount) :] if request.path.startswith(self._mount) else None
        file = client.FILES.get(below or b"")
        if file is not None and not asks_first(request):
            await self._serve(file, request, send)
        elif below is not None and below[:1] in (b"", b"/"):
            try:
                await self._gateway.handle(request, receive, send, own.get("on_departure"))
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
        await self._deployment.realtime.handle(read_request(scope), receive, send, server)

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
    settings, folder = report.settings, config_path(config, environ).parent
    found = FalKeys((FalKey(key),)) if key else fal_keys(environ, [])
    lasting = open_lasting(settings, folder, environ, found, store=store, mailbox=mailbox, identify=identify)
    token = admin_token(environ, [])
    admin = Admin(settings.admin.host, token, lasting.telemetry.metrics)
    app = App(lasting, deploy(lasting, settings), admin)
    mailbox = lasting.hub.mailbox if lasting.hub else None
    Console(lambda: app._gateway, can_act=token is not None, mailbox=mailbox).open(admin)
    if mailbox is not None:
        letters = DeadLetters(mailbox)
        admin.show(DEAD_LETTERS.raw, letters.view)
        admin.act(*RETRY.around, letters.retry)
    return app
