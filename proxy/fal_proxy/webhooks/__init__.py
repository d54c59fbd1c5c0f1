"""The hub: fal tells the proxy of every job's end, and the proxy its owner's page and the app's own server.

callbacks       puts our address into every submit (below the gateway)
receiving       what fal posts there, judged and filed
events          the owner's page
"""

from __future__ import annotations

from dataclasses import dataclass

from fal_proxy.callbacks import WEBHOOKS
from fal_proxy.errors import Refusal
from fal_proxy.gateway import Arrival, Gateway
from fal_proxy.identity.fal_signature import fal_keys_of
from fal_proxy.identity.jwks import PublicKey
from fal_proxy.identity.published import PublishedKeys
from fal_proxy.stores.mailbox import Mailbox
from fal_proxy.webhooks.events import Events
from fal_proxy.webhooks.receiving import Receiving

EVENTS = b"events"


@dataclass(frozen=True, slots=True)
class Hub:
    """What receives and tells, in one app; close it."""

    mailbox: Mailbox
    keys: PublishedKeys[tuple[PublicKey, ...]]
    events: Events

    async def close(self) -> None:
        """End what is under way, and let go of the mailbox."""
        self.events.close()
        await self.keys.close()
        await self.mailbox.close()


def open_hub(gateway: Gateway, mailbox: Mailbox | None) -> Hub | None:
    """Let the gateway lead here what is ours; without a mailbox there is no hub, and callers are told so."""
    seals = gateway.callbacks.seals
    if seals is None or mailbox is None:
        gateway.routes.update(dict.fromkeys([WEBHOOKS, EVENTS], _refuse))
        return None
    keys = fal_keys_of(gateway.route)
    events = Events(gateway, mailbox)
    gateway.routes[WEBHOOKS] = Receiving(gateway, seals, keys, mailbox).receive
    gateway.routes[EVENTS] = events.serve
    return Hub(mailbox, keys, events)


async def _refuse(_: Arrival) -> None:
    raise Refusal("mode_off", "this proxy receives no webhooks (webhooks.mode)")
