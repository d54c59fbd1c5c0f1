"""What is decided before a body is read: by the head, the caller's plan and the settings, and by nothing else.

So it is decided once for every head and kept in its notes, for as long as the server remembers the head. Who calls is
asked each time, and so is everything that time or other requests may change: keys, limits, blocks.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from fal_proxy import headers as fields
from fal_proxy._version import __version__
from fal_proxy.callbacks import Callbacks
from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller, Exchange, Kind, Target
from fal_proxy.policy.arrival import address
from fal_proxy.policy.origin import Site, judge_cross_site
from fal_proxy.policy.plans import CompiledPlan, permit
from fal_proxy.policy.target import resolve
from fal_proxy.relay.http import Outgoing
from fal_proxy.request import Addressed, Request
from fal_proxy.upstream.dial import Route

CLIENT_PROXY = (b"x-fal-client-proxy", f"fal-proxy/{__version__}".encode())
ACCEPT_PLAIN = (b"accept-encoding", b"identity")
_NAMES_URLS = frozenset([Kind.SUBMIT, Kind.STATUS, Kind.STATUS_STREAM])  # whose answers hold URLs that clients follow


@dataclass(frozen=True, slots=True)
class Judging:
    """The rules of one deployment for heads."""

    mount: bytes
    site: Site
    route: Route
    callbacks: Callbacks
    storage_mode: str
    realtime_mode: str
    wma: bool
    max_body_bytes: int
    number: int = field(default_factory=itertools.count().__next__)  # in the notes, where several deployments write

    def decide(
        self,
        request: Request,
        caller: Caller,
        plan: CompiledPlan,
        announced: int | None,
        accepted: bool | None,
        exchange: Exchange,
    ) -> Outgoing:
        """Return the request that this may become, without body and key; note in `exchange` what it is.

        `announced` are the bytes of the body, `accepted` says what the page's origin is (None: no page). Raises Refusal:
        invalid_target, method_not_allowed, origin_denied, endpoint_denied, mode_off, webhook_denied, body_too_large.
        """
        name = (self.number, caller.plan, caller.ambient, caller.by_network, request.scheme)
        known: Outgoing | None = request.notes.get(name)
        if known is not None:
            exchange.about(known.target)
            return known
        addressed = address(request, self.mount)
        asked = resolve(addressed.raw, request.method, plan.methods)
        exchange.about(asked)
        judge_cross_site(caller, request, origin_accepted=accepted, header_form=addressed.header_form)
        permit(asked, plan, storage_mode=self.storage_mode, realtime_mode=self.realtime_mode, wma=self.wma)
        target = self.callbacks.judge(asked, caller)
        outgoing = self._prepare(request, target, plan, announced, addressed)
        if target is asked:  # else it is for this request alone
            request.note(name, outgoing)
        return outgoing

    def _prepare(
        self, request: Request, target: Target, plan: CompiledPlan, announced: int | None, addressed: Addressed
    ) -> Outgoing:
        """Build the upstream request: the caller's fields by allow-list, ours after them."""
        if announced is not None and announced > self.max_body_bytes and target.kind.traits.json_body:
            raise Refusal("body_too_large", f"the body exceeds {self.max_body_bytes} bytes (server.max_body_bytes)")
        request.one(b"content-type")
        origin, path_and_query = self.route.to(target.host, target.path_and_query)
        passed = fields.to_upstream(request.headers, optional=plan.allow_headers)
        passed += [ACCEPT_PLAIN, CLIENT_PROXY]
        method, base = request.method.encode("ascii"), None
        if target.kind in _NAMES_URLS and not addressed.header_form:
            base = self.site.base(request).encode("latin-1") + self.mount + b"/queue.fal.run/"
        return Outgoing(method, origin, path_and_query, passed, target, announced, queue_base=base)
