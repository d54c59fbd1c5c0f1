"""What a submit's `fal_webhook` may say, and what it becomes.

With the hub it becomes an address of ours, a capability that only fal is shown: what the client had chosen is inside it,
and so is who may hear of the job. What comes there is `webhooks`' to judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from fal_proxy import routes
from fal_proxy.environment import Secret
from fal_proxy.exchange import Caller, Kind, Target
from fal_proxy.identity.capability import Callback, Seals
from fal_proxy.policy import webhooks
from fal_proxy.policy.origin import Site
from fal_proxy.settings import Settings

WEBHOOKS = routes.WEBHOOKS.segment
CALLBACK_SECONDS = 25 * 3600.0  # an hour longer than the ownership of what it tells of


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What every submit is asked; without seals there is no hub."""

    hosts: frozenset[str]
    base: str = ""  # what our own addresses begin with
    seals: Seals[Callback] | None = None

    @classmethod
    def of(cls, settings: Settings, site: Site, signing: Sequence[Secret]) -> Callbacks:
        """Return what the settings say."""
        hosts = frozenset(settings.webhooks.allowed_hosts)
        if settings.webhooks.mode == "off":
            return cls(hosts)
        base = f"{site.origin}{settings.mount}/{WEBHOOKS.decode()}/"
        return cls(hosts, base, Seals(Callback, b"fal-proxy webhook", signing))

    def judge(self, target: Target, caller: Caller) -> Target:
        """Return the target as it is to be sent. Raises Refusal: webhook_denied, invalid_target."""
        if target.kind is not Kind.SUBMIT:
            return target
        forward = webhooks.judge(target, self.hosts)
        if self.seals is None:
            return target
        callback = Callback(
            owners=caller.owners,
            endpoint_id=target.endpoint_id,
            forward_url=forward,
            ends=int(self.seals.until(CALLBACK_SECONDS)),  # whole: so its length does not vary
        )
        return replace(target, query=webhooks.with_webhook(target, self.base + self.seals.seal(callback)))
