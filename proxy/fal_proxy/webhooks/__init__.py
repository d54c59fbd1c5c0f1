"""The hub: fal tells the proxy of every job's end, and the proxy its owner's page and the app's own server.

callbacks       puts our address into every submit (below the gateway)
receiving       what fal posts there, judged and filed
events          the owner's page
deliveries      the app's own server; signing how it knows us
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fal_proxy import routes
from fal_proxy.address_guard import AddressGuard
from fal_proxy.callbacks import WEBHOOKS
from fal_proxy.environment import webhook_secrets
from fal_proxy.errors import Refusal
from fal_proxy.gateway import Arrival, Gateway
from fal_proxy.identity.fal_signature import fal_keys_of
from fal_proxy.identity.jwks import PublicKey
from fal_proxy.identity.published import PublishedKeys
from fal_proxy.settings import Settings
from fal_proxy.stores.mailbox import Mailbox
from fal_proxy.stores.opening import open_mailbox
from fal_proxy.telemetry.metrics import Metrics
from fal_proxy.upstream.dial import Dialer, Route
from fal_proxy.webhooks.deliveries import Deliveries
from fal_proxy.webhooks.events import Events
from fal_proxy.webhooks.receiving import Receiving
from fal_proxy.webhooks.signing import Signer

EVENTS = routes.EVENTS.segment


@dataclass(slots=True)
class Hub:
    """What receives and tells, in one app, whichever gateway lets requests in; start and close it."""

    mailbox: Mailbox
    keys: PublishedKeys[tuple[PublicKey, ...]]
    events: Events
    deliveries: Deliveries
    guard: AddressGuard = field(default_factory=AddressGuard)  # against webhooks that are made up
    _delivering: asyncio.Task[None] | None = None

    def open(self, gateway: Gateway) -> None:
        """Let a gateway lead here what is ours."""
        seals = gateway.callbacks.seals
        assert seals is not None, "there are seals with the hub"  # noqa: S101 -- both come of webhooks.mode
        gateway.routes[WEBHOOKS] = Receiving(gateway, seals, self.keys, self.mailbox, guard=self.guard).receive
        gateway.routes[EVENTS] = partial(self.events.serve, gateway)

    def start(self) -> None:
        """Begin to deliver what is due."""
        self._delivering = asyncio.get_running_loop().create_task(self.deliveries.run())

    async def close(self) -> None:
        """End what is under way, and let go of the mailbox."""
        self.events.close()
        if self._delivering is not None:
            self._delivering.cancel()
            await asyncio.wait([self._delivering])
        await self.keys.close()
        await self.mailbox.close()


def open_hub(
    settings: Settings,
    route: Route,
    dialer: Dialer,
    metrics: Metrics,
    environ: Mapping[str, str],
    folder: Path,
    mailbox: Mailbox | None = None,
) -> Hub | None:
    """Return the hub, None without the mode.

    `mailbox` replaces what `state.url` names, relative to `folder`; the hub closes it. Raises JournalError.
    """
    if settings.webhooks.mode == "off":
        return None
    mailbox = mailbox or open_mailbox(settings.state.url, folder)
    signer, hosts = Signer(webhook_secrets(environ, [])), settings.webhooks.allowed_hosts
    deliveries = Deliveries(mailbox, dialer, route, signer, hosts, metrics)
    return Hub(mailbox, fal_keys_of(route), Events(mailbox), deliveries)


def open_without(gateway: Gateway) -> None:
    """Let a gateway tell callers that there is no hub."""
    gateway.routes.update(dict.fromkeys([WEBHOOKS, EVENTS], _refuse))


async def _refuse(_: Arrival) -> None:
    raise Refusal("mode_off", "this proxy receives no webhooks (webhooks.mode)")
