"""The emulator as an ASGI app: finds the host behind the path prefix, lets in, applies faults, keeps the journal.

Every host of fal is a first path segment: /queue.fal.run/owner/app is https://queue.fal.run/owner/app.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence

from . import answers, cors, delivery, inference, platform_api, queue, rest
from .access import refusal
from .addresses import Address, read_queue, read_run
from .answers import Answer
from .cdn import Cdn
from .exchange import BodyTooLargeError, ClientGoneError, Exchange, Receive, Scope, Send
from .faults import Fault, Strike, draw
from .handshake import RUN_HOSTS, WS_HOST, Handshakes
from .journal import Deliveries, Journal, new_journal
from .webhooks import Webhooks
from .wma import Wma
from .world import World, new_world

QUEUE_HOSTS = frozenset({"queue.fal.run", "queue.falrun.com"})
REST_HOSTS = frozenset({"rest.fal.ai", "rest.alpha.fal.ai"})
WMA_HOST = "wma.fal.run"
FILE_HOSTS = frozenset({"v3b.fal.media", "v3.fal.media", "fal.media", "storage.googleapis.com"})

_TOKEN_KINDS = ("run", "stream", "status_stream")
_ANSWERED_BADLY = ("reset", "stall", "truncate")


class Emulator:
    """One emulated fal: `journal` holds the latest requests, `deliveries` its own webhooks; `faults` may change at any time."""

    def __init__(self, world: World, faults: Sequence[Fault], *, gzip: bool, late_refusals: bool) -> None:
        self.journal: Journal = new_journal()
        self._world = world
        self.faults: list[Fault] = list(faults)
        self._gzip = gzip
        self._cdn = Cdn(world)
        self._wma = Wma(world)
        self._webhooks = Webhooks(world, self.faults)
        self._sockets = Handshakes(world, self.faults, late_refusals=late_refusals)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            exchange = Exchange(scope, receive)
            self.journal.append(exchange.entry)
            await self._sockets.serve(exchange, receive, send)
        else:
            await self._exchange(Exchange(scope, receive), send)

    @property
    def deliveries(self) -> Deliveries:
        """The latest attempts to deliver a webhook."""
        return self._webhooks.deliveries

    def rotate_webhook_key(self, *, keep_old: bool = False) -> None:
        """Sign webhooks with a new key; with `keep_old` the JWKS goes on to show the older ones."""
        self._world.signer.rotate(keep_old=keep_old)

    async def close(self) -> None:
        """End what runs without a request."""
        await self._webhooks.close()

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.shutdown":
                await self.close()
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return

    async def _exchange(self, exchange: Exchange, send: Send) -> None:
        self.journal.append(exchange.entry)
        answering = asyncio.create_task(self._answer(exchange, send))
        leaving = asyncio.create_task(exchange.gone())
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                exchange.entry.disconnected = not (exchange.cut or exchange.entry.answer_complete)
        finally:
            leaving.cancel()
            if not answering.done():
                answering.cancel()
            outcomes = await asyncio.gather(answering, leaving, return_exceptions=True)
            exchange.entry.done.set()
        failure = outcomes[0]
        if isinstance(failure, Exception) and not isinstance(failure, ClientGoneError):
            raise failure

    async def _answer(self, exchange: Exchange, send: Send) -> None:
        files = exchange.host in FILE_HOSTS
        if exchange.method == "OPTIONS" and "access-control-request-method" in exchange.headers:
            await exchange.drain()
            await delivery.deliver(exchange, cors.preflight(exchange, files=files), send)
            return
        address = _read(exchange)
        strike = self._draw(exchange, address)
        try:
            answer = self._instead(strike, address) or await self._serve(exchange, address)
        except BodyTooLargeError:
            answer = answers.detail(413, "Request body is too large")
        await exchange.drain()
        if strike.delay_seconds:
            await asyncio.sleep(strike.delay_seconds / self._world.speed)
        answer.headers += cors.headers_for(exchange, files=files)
        if self._gzip or strike.gzip:
            answer = delivery.compressed(answer)
        if strike.fault is not None and strike.fault.kind in _ANSWERED_BADLY:
            send = delivery.Damage(exchange, strike.fault, send).send
        await delivery.deliver(exchange, answer, send)

    def _draw(self, exchange: Exchange, address: Address | None) -> Strike:
        names = [f"{exchange.host}{exchange.path}"]
        if address is not None:
            # The URLs of a queued request lack the endpoint's path; the job still knows it.
            job = self._world.jobs.find(address.request_id)
            names.append(job.endpoint if job else address.endpoint)
        return draw(self.faults, names, self._world.rng)

    def _instead(self, strike: Strike, address: Address | None) -> Answer | None:
        fault = strike.fault
        if fault is None:
            return None
        return answers.of_fault(fault.kind, fault.argument, address.app if address else "", self._world.new_id())

    async def _serve(self, exchange: Exchange, address: Address | None) -> Answer:
        host = exchange.host
        if host in FILE_HOSTS:
            return await self._cdn.serve(exchange)
        if host in REST_HOSTS and exchange.path == rest.KEYS_PATH:
            return rest.keys(self._world, exchange)
        if host in REST_HOSTS or _is_storage(exchange):
            return self._without_key(exchange) or await rest.serve(self._world, exchange)
        if host == platform_api.HOST:
            return platform_api.serve(self._world, exchange)
        if host == WMA_HOST:
            return self._without_key(exchange) or await self._wma.serve(exchange)
        if host in RUN_HOSTS | QUEUE_HOSTS:
            if address is None:
                name = exchange.path.strip("/").partition("/")[0]
                return answers.detail(404, f'Application "{name}" not found')
            return await self._infer(exchange, address)
        if exchange.path == "/" and not host:
            others = {WS_HOST, WMA_HOST, platform_api.HOST}
            hosts = sorted(RUN_HOSTS | QUEUE_HOSTS | REST_HOSTS | FILE_HOSTS | others)
            return answers.json_answer(200, {"emulated_hosts": hosts})
        return answers.detail(404, f'The emulator has no host "{host}"')

    def _without_key(self, exchange: Exchange) -> Answer | None:
        return refusal(self._world.access.key(exchange), "Authorization header is required")

    async def _infer(self, exchange: Exchange, address: Address) -> Answer:
        verdict = self._world.access.key(exchange)
        if verdict == "missing" and address.kind in _TOKEN_KINDS:
            verdict = self._world.access.token(exchange, address)
        known = not address.request_id or self._world.jobs.find(address.request_id) is not None
        if verdict == "missing" and not known:
            return answers.queue_state(404, "NOT_FOUND")  # fal says so even to callers without a key
        refused = refusal(verdict, f'Cannot access application "{address.app}"')
        if refused is not None:
            return refused
        if address.kind == "run":
            return await inference.run(self._world, exchange, address)
        if address.kind == "stream":
            return await inference.stream(self._world, exchange, address)
        return await queue.serve(self._world, self._webhooks, exchange, address)


def create_emulator(
    public_url: str,
    *,
    speed: float = 1.0,
    seed: int | None = None,
    faults: Sequence[Fault] = (),
    gzip: bool = False,
    late_refusals: bool = False,
    api_keys: Collection[str] | None = None,
    admin_keys: Collection[str] | None = None,
    clock: Callable[[], float] = time.time,
) -> Emulator:
    """Make an emulator whose file URLs start with `public_url`; `speed` divides every duration.

    With `seed` the same requests in the same order get the same answers. `api_keys` None accepts any well-formed key,
    `admin_keys` None gives every accepted one admin scope.
    With `late_refusals` a WebSocket without a good credential is opened and told so, instead of refused with 401 or 403.
    Raises ValueError when speed is not positive.
    """
    if not speed > 0:
        raise ValueError(f"speed must be greater than 0, not {speed}")
    world = new_world(public_url, speed, seed, api_keys, clock, admin_keys)
    return Emulator(world, faults, gzip=gzip, late_refusals=late_refusals)


def _read(exchange: Exchange) -> Address | None:
    if exchange.host in RUN_HOSTS:
        return read_run(exchange.path)
    return read_queue(exchange.path) if exchange.host in QUEUE_HOSTS else None


def _is_storage(exchange: Exchange) -> bool:
    # The Vercel AI SDK's helper starts its uploads at fal.run instead of rest.fal.ai.
    return exchange.host in RUN_HOSTS and exchange.path.startswith("/storage/upload/")
