"""What an app is made of: parts that live as long as it does, and a deployment, which the settings make of them.

A deployment judges requests and remembers nothing, so that it can be replaced as a whole. Whatever counts, remembers or
holds connections is in `Lasting`. Knows no ASGI; `deployments` knows which one is in force.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from fal_proxy.address_guard import AddressGuard
from fal_proxy.admission.gate import Gate
from fal_proxy.admission.limits import compile_limits, parse_budget
from fal_proxy.admission.rates import parse_rates
from fal_proxy.admission.settler import Settler
from fal_proxy.admission.uploaded import Uploaded
from fal_proxy.authorize import Authorize
from fal_proxy.callbacks import Callbacks
from fal_proxy.direct import Direct
from fal_proxy.environment import Secret, header_secret, signing_secrets
from fal_proxy.errors import Misconfigured, StoreUnavailable
from fal_proxy.gateway import Gateway
from fal_proxy.identity.app import Identify
from fal_proxy.identity.network import TrustedProxies
from fal_proxy.identity.opening import Opened, identities_of, open_sources
from fal_proxy.identity.ticket import Tickets
from fal_proxy.judging import ACCEPT_PLAIN, CLIENT_PROXY, Judging
from fal_proxy.lifecycle import Lifecycle
from fal_proxy.platform_api.price_list import open_price_list
from fal_proxy.policy.inputs import InputRules
from fal_proxy.policy.origin import Site
from fal_proxy.policy.plans import compile_plan
from fal_proxy.policy.pricing import Prices, charge_for
from fal_proxy.realtime import Realtime
from fal_proxy.relay.guard import KeyGuard
from fal_proxy.relay.http import Patience
from fal_proxy.relay.websocket import Terms
from fal_proxy.settings import ENV_UPSTREAM, Settings
from fal_proxy.settings import Realtime as RealtimeSettings
from fal_proxy.storage import Storage
from fal_proxy.stores import Store
from fal_proxy.stores.mailbox import Mailbox
from fal_proxy.stores.opening import JournalError, open_store
from fal_proxy.telemetry import Telemetry
from fal_proxy.telemetry.tracing import open_tracing
from fal_proxy.uploads import Uploads
from fal_proxy.upstream.cdn_bearers import CdnBearers
from fal_proxy.upstream.credentials import FalKeys
from fal_proxy.upstream.dial import Dialer, Route
from fal_proxy.upstream.engine import Engine
from fal_proxy.upstream.keys import KeyPool
from fal_proxy.webhooks import Hub, open_hub, open_without


class Closable(Protocol):
    """What holds something open."""

    async def close(self) -> None:
        """Let go of it."""


@dataclass(frozen=True, slots=True, repr=False)
class Lasting:
    """The parts that no settings replace; the environment's secrets are read here, once."""

    folder: Path  # that paths in settings are relative to
    identify: Identify | None
    signing: tuple[Secret, ...]
    header_secret: Secret | None
    store: Store
    dialer: Dialer
    engine: Engine
    route: Route
    keys: KeyPool
    key_guard: KeyGuard
    telemetry: Telemetry
    settler: Settler
    guard: AddressGuard
    lifecycle: Lifecycle
    bearers: CdnBearers
    uploaded: Uploaded
    hub: Hub | None

    async def close(self) -> None:
        """Close connections and the store, and let every access line reach its reader; the settler has ended."""
        self.engine.close()
        if self.hub is not None:
            await self.hub.close()
        with contextlib.suppress(StoreUnavailable):
            await self.settler.tell()
        await self.store.close()
        await self.telemetry.close()


@dataclass(slots=True, eq=False, repr=False)
class Deployment:
    """What judges requests under one version of the settings."""

    settings: Settings
    gateway: Gateway
    realtime: Realtime
    sources: Mapping[str, Opened]
    users: int = 0  # what began under it and goes on

    @property
    def asks_with(self) -> list[Closable]:
        """What holds connections of its own, and is to be closed when no deployment has it any more."""
        feed = self.gateway.price_list.feed
        return [*(each.source for each in self.sources.values()), *([] if feed is None else [feed])]


def open_lasting(
    settings: Settings,
    folder: Path,
    environ: Mapping[str, str],
    found: FalKeys,
    *,
    store: Store | None = None,
    mailbox: Mailbox | None = None,
    identify: Identify | None = None,
) -> Lasting:
    """Return the parts that last, with the fal keys that were found; close them. Raises Misconfigured.

    `store` and `mailbox` replace what `state.url` names.
    """
    mark, route = [ACCEPT_PLAIN, CLIENT_PROXY], Route(environ.get(ENV_UPSTREAM))
    dialer = Dialer(settings.upstream.connect_seconds)
    engine, keys = Engine(dialer), KeyPool(found.keys, found.file)
    telemetry = Telemetry(settings.plans, engine, keys, open_tracing(settings, environ))
    key_guard = KeyGuard(telemetry.metrics.cut_for_key)
    keys.listen(key_guard.watch_for)
    try:
        store = store or open_store(settings.state.url, folder, local_on_failure=settings.state.on_failure == "local")
        hub = open_hub(settings, route, dialer, telemetry.metrics, environ, folder, mailbox)
    except JournalError as error:
        raise Misconfigured([f"state.url: {error}"]) from error
    return Lasting(
        folder=folder,
        identify=identify,
        signing=signing_secrets(environ, []),
        header_secret=header_secret(environ, []),
        store=store,
        dialer=dialer,
        engine=engine,
        route=route,
        keys=keys,
        key_guard=key_guard,
        telemetry=telemetry,
        settler=Settler(store, engine, route, keys, charge_for, mark, telemetry),
        guard=AddressGuard(),
        lifecycle=Lifecycle(),
        bearers=CdnBearers(engine, route, mark),
        uploaded=Uploaded(),
        hub=hub,
    )


def deploy(lasting: Lasting, settings: Settings, before: Deployment | None = None) -> Deployment:
    """Return what the settings make of the parts that last, of which nothing changes; close what it asks with.

    What `before` asks with goes on in it where the settings say the same of it. Raises OSError, ValueError for files
    that have changed since the settings were examined.
    """
    site = Site(settings.server.public_url, settings.server.hosts, settings.cors.origins)
    inputs, prices, route, signing = (
        InputRules(settings.inputs),
        Prices(settings.prices),
        lasting.route,
        lasting.signing,
    )
    gate = Gate(
        lasting.store,
        {name: compile_limits(plan) for name, plan in settings.plans.items()},
        parse_budget(settings.total_budget),
        network_factor=settings.identity.anonymous.network_factor,
        ownership=settings.state.ownership == "strict",
    )
    sources = open_sources(
        settings,
        lasting.folder,
        signing,
        lasting.header_secret,
        is_https=site.is_https,
        kept={} if before is None else before.sources,
    )
    feed = None if before is None else before.gateway.price_list.feed
    second, realtime = _usd_per_second(settings.realtime), settings.realtime
    uploads, callbacks = Uploads.of(settings, site, route, signing), Callbacks.of(settings, site, signing)
    mount, most, wma = settings.mount.encode(), settings.server.max_body_bytes, realtime.wma
    gateway = Gateway(
        mount=mount,
        site=site,
        identities=identities_of(settings, sources, lasting.identify),
        plans={name: compile_plan(name, plan) for name, plan in settings.plans.items()},
        inputs=inputs,
        realtime_mode=realtime.mode,
        tickets=Tickets(signing, realtime.token_seconds) if signing else None,
        direct=Direct(gate, inputs, prices, second, realtime.token_seconds, wma),
        engine=lasting.engine,
        route=route,
        keys=lasting.keys,
        key_guard=lasting.key_guard,
        patience=Patience(settings.upstream.head_seconds, settings.upstream.body_idle_seconds),
        max_body_bytes=most,
        telemetry=lasting.telemetry,
        prices=prices,
        price_list=open_price_list(settings, prices, lasting.folder, route, lasting.keys, feed),
        gate=gate,
        settler=lasting.settler,
        guard=lasting.guard,
        trusted_proxies=TrustedProxies(settings.server.trusted_proxies),
        lifecycle=lasting.lifecycle,
        uploads=uploads,
        callbacks=callbacks,
        judging=Judging(mount, site, route, callbacks, uploads.mode, realtime.mode, wma, most),
    )
    storage = Storage.of(settings.storage, gateway, lasting.bearers, lasting.uploaded)
    storage.open()
    Authorize(storage).open()
    if lasting.hub is not None:
        lasting.hub.open(gateway)
    else:
        open_without(gateway)
    return Deployment(settings, gateway, _realtime(realtime, gateway, lasting.dialer), sources)


def put_in_force(lasting: Lasting, deployment: Deployment) -> None:
    """Let the lasting parts follow the settings of a deployment, as far as they do."""
    settings, metrics = deployment.settings, lasting.telemetry.metrics
    lasting.dialer.connect_seconds = settings.upstream.connect_seconds
    metrics.know_plans(settings.plans)
    metrics.watch_prices(deployment.gateway.price_list.feed)
    deployment.gateway.price_list.follow(settings, lasting.folder, lasting.route)
    if lasting.hub is not None:
        lasting.hub.deliveries.allow(settings.webhooks.allowed_hosts)


def _realtime(settings: RealtimeSettings, gateway: Gateway, dialer: Dialer) -> Realtime:
    rates = tuple((rate.limit, rate.window_seconds) for rate in parse_rates(settings.messages))
    terms = Terms(rates, settings.max_message_bytes, settings.session_seconds, settings.idle_seconds)
    return Realtime(gateway, dialer, terms, _usd_per_second(settings))


def _usd_per_second(settings: RealtimeSettings) -> Fraction | None:
    return None if settings.usd_per_second is None else Fraction(repr(settings.usd_per_second))
