"""The app as its server and its operator meet it: ASGI in, the gateway of the settings in force out, and the few routes
beside the mount.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec

from fal_proxy import client
from fal_proxy.admin import Admin
from fal_proxy.admin.console import Console
from fal_proxy.asgi import EXTENSION, Scope, asks_first, closing_instead, read_request
from fal_proxy.assembly import Lasting, deploy, open_lasting
from fal_proxy.deployments import Deployments, Origin
from fal_proxy.environment import Secret, admin_token, captured
from fal_proxy.errors import Misconfigured, Refusal, StoreUnavailable
from fal_proxy.gateway import Gateway
from fal_proxy.identity.app import Identify
from fal_proxy.lifecycle import Stage
from fal_proxy.realtime import Realtime, ServerExtension
from fal_proxy.relay.answering import Reset
from fal_proxy.relay.inbound import OurServer, Receive, Send
from fal_proxy.reloading import SETTLED_SECONDS, Asking, FileWatch, Follower, Reloaded, Unsettled, version_of
from fal_proxy.reply import Reply
from fal_proxy.request import Request
from fal_proxy.routes import DEAD_LETTERS, HEALTH, READY, RETRY
from fal_proxy.settings import Settings
from fal_proxy.stores import Store
from fal_proxy.stores.mailbox import Mailbox
from fal_proxy.unread import Unread
from fal_proxy.upstream.credentials import FalKey, FalKeys, fal_keys
from fal_proxy.webhooks import Hub
from fal_proxy.webhooks.dead_letters import DeadLetters

TRIES = 10  # to read a file that somebody writes to


class App:
    """The ASGI application. Close it with its lifespan, or with `await close()`.

    `admin` is another one, for a listener of its own; `metrics` is what it shows, `access` where its lines go, `keys` what it calls
    fal with; `unread` is what our own server tells of requests that it could not read whole.
    """

    def __init__(self, lasting: Lasting, deployments: Deployments, admin: Admin, watch: FileWatch | None) -> None:
        """Take what looks at the settings' file, None where they are not of one."""
        self.admin = admin
        self.metrics, self.access = lasting.telemetry.metrics, lasting.telemetry.access
        self.lifecycle = lasting.lifecycle
        self.keys = lasting.keys
        self._lasting = lasting
        self._deployments = deployments
        self._watch = watch
        self._mount = deployments.current.gateway.mount
        self._settling: asyncio.Task[None] | None = None
        self.unread = Unread(lambda: self._gateway)
        self._follower: Follower | None = None
        self._following: asyncio.Task[None] | None = None

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._deployments.current.settings

    @property
    def max_message_bytes(self) -> int:
        """The bound of a WebSocket's messages, which the server is to keep."""
        return self.settings.realtime.max_message_bytes

    def trusts(self, peer: str) -> bool:
        """Say whether a connection's other end is one of `server.trusted_proxies`, as they are in force."""
        return self._gateway.trusted_proxies.trusts(peer)

    @property
    def _is_ending(self) -> bool:
        return self.lifecycle.stage > Stage.SERVING

    @property
    def _gateway(self) -> Gateway:
        return self._deployments.current.gateway

    @property
    def _hub(self) -> Hub | None:
        return self._lasting.hub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if self._settling is None:
            self._begin()  # with the first message of any kind: a host may mount us without a lifespan
        if scope["type"] == "lifespan":
            scope.get("state", {})[EXTENSION] = self.unread
            await self._lifespan(receive, send)
            return
        deployment = self._deployments.enter()
        try:
            if scope["type"] == "http":
                await self._http(deployment.gateway, scope, receive, send)
            else:
                await self._socket(deployment.realtime, scope, receive, send)
        finally:
            self._deployments.leave(deployment)

    async def reload(self, settings: Settings | None = None) -> Reloaded:
        """Read the settings' file anew, or take `settings`, for whatever begins from now on; what runs is left alone.

        Returns which settings changed and which wait for a restart, by dotted names; nothing that is counted, reserved
        or owned begins anew. Several calls come one after the other. Raises Misconfigured with every error that `check`
        finds, and then nothing has changed; ValueError without `settings` if the app was not made from a file.
        """
        if settings is not None:
            return await self._deployments.renew(partial(self._deployments.origin.examine, settings))
        if self._watch is None:
            raise ValueError("this app was made from settings: give it others")
        path = self._deployments.origin.path
        for _ in range(TRIES):
            try:
                return await self._deployments.reread(version_of(path))
            except Unsettled:
                await asyncio.sleep(SETTLED_SECONDS)
        raise Misconfigured([f"{path}: is written to all the time"])

    def follow_file(self, asking: Asking) -> None:
        """Read the settings' file anew by itself, from the first message on: when it changes, and when `asking` does.

        For a process of our own: what comes of it is said in the log. Call it before the first message.
        """
        if self._watch is not None:
            name = self._deployments.origin.path.name
            self._follower = Follower(self._watch, self._deployments.reread, asking, lambda: self._is_ending, name)

    async def close(self) -> None:
        """Stop the settler, close connections and the store, and let every access line reach its reader."""
        tasks = [task for task in (self._following, self._settling) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._deployments.close()
        await self._lasting.close()

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._settling = loop.create_task(self._lasting.settler.run())
        if self._follower is not None:
            self._following = loop.create_task(self._follower.run())
        if self._lasting.hub is not None:
            self._lasting.hub.start()

    async def _http(self, gateway: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
        request = read_request(scope)
        own = scope.get("extensions", {}).get(EXTENSION, {})
        below = request.path[len(self._mount) :] if request.path.startswith(self._mount) else None
        file = client.FILES.get(below or b"")
        if file is not None and not asks_first(request):
            await self._serve(gateway, file, request, send)
        elif below is not None and below[:1] in (b"", b"/"):
            try:
                await gateway.handle(request, receive, send, OurServer.of(own, receive, send))
            except asyncio.CancelledError:
                if self.lifecycle.stage is not Stage.CUTTING:
                    raise  # our own server cancels what its end cuts; nobody is left to be told
            except Reset:
                reset = own.get("reset")
                if reset is None:
                    raise  # the server must cut the connection: an answer without an end is an error of the app
                reset()
        else:
            await self._beside(gateway, request, send)

    async def _serve(self, gateway: Gateway, file: client.File, request: Request, send: Send) -> None:
        """Answer with a file that needs no caller: a page's module script comes without credentials."""
        reply = Reply(send)
        try:
            gateway.judge_host(request, reply)
            answer = file.answer(request)
        except Refusal as refusal:
            await reply.refuse(refusal)
            return
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _socket(self, realtime: Realtime, scope: Scope, receive: Receive, send: Send) -> None:
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            send = closing_instead(send)
        own = (scope.get("extensions") or {}).get(EXTENSION, {})
        server = ServerExtension(own.get("socket"), own.get("on_departure"))
        await realtime.handle(read_request(scope), receive, send, server)

    async def _beside(self, gateway: Gateway, request: Request, send: Send) -> None:
        """Answer what lies outside the mount."""
        reply = Reply(send)
        try:
            gateway.judge_host(request, reply)
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
        if self._is_ending:
            reasons, ready = ["the proxy is about to end", *reasons], False
        try:
            await self._lasting.store.ping()
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
    origin = Origin(config, captured() if environ is None else environ, key, identify is not None)
    # Before it is read: what changes after this is another version.
    watch = FileWatch(origin.path, version_of(origin.path)) if settings is None else None
    report = origin.examine(settings)
    if report.errors:
        raise Misconfigured([f"{finding.path}: {finding.message}" for finding in report.errors])
    settings, folder, environ = report.settings, origin.path.parent, origin.environ
    found = FalKeys((FalKey(key),)) if key else fal_keys(environ, [])
    lasting = open_lasting(settings, folder, environ, found, store=store, mailbox=mailbox, identify=identify)
    version = watch.seen if watch else None
    deployments = Deployments(lasting, deploy(lasting, settings), origin, version, report.findings)
    token = admin_token(environ, [])
    admin = Admin(settings.admin.host, token, lasting.telemetry.metrics)
    app = App(lasting, deployments, admin, watch)
    mailbox = lasting.hub.mailbox if lasting.hub else None
    Console(lambda: app._gateway, can_act=token is not None, mailbox=mailbox).open(admin)
    if mailbox is not None:
        letters = DeadLetters(mailbox)
        admin.show(DEAD_LETTERS.raw, letters.view)
        admin.act(*RETRY.around, letters.retry)
    return app
