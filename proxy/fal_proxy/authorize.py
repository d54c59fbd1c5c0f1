"""`GET <mount>/authorize`: may nginx fetch this file of fal's CDN by itself? (its `auth_request`)

The caller's own request is judged as the relay would judge it, and the answer names the file and nothing else: no key of
fal's goes to file hosts, so there is none to hand out. What needs a key is refused here whatever the caller may do.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from fal_proxy.errors import Refusal
from fal_proxy.gateway import Arrival
from fal_proxy.request import Request
from fal_proxy.routes import AUTHORIZE
from fal_proxy.storage import Storage

FILE = b"x-fal-proxy-file"
_URI, _METHOD = b"x-original-uri", b"x-original-method"


@dataclass(frozen=True, slots=True)
class Authorize:
    """What the route needs; one per app."""

    storage: Storage

    def open(self) -> None:
        """Let the gateway lead here what is ours."""
        self.storage.gateway.routes[AUTHORIZE.segment] = self.answer

    async def answer(self, arrival: Arrival) -> None:
        """Answer 204 and where the file is, or refuse as the file itself would be refused."""
        gateway, request = self.storage.gateway, arrival.request
        if not gateway.trusted_proxies.trusts(request.peer):
            raise Refusal("not_found", "this route is for the proxies of server.trusted_proxies")
        if request.method != "GET" or request.query is not None:
            raise Refusal("method_not_allowed", "this route takes GET, without a query", headers=((b"allow", b"GET"),))
        target = await self.storage.judge_read(replace(arrival, request=_original(request, gateway.mount)))
        location = gateway.route.address(target.host, target.path_and_query)
        await arrival.reply.empty(204, [(FILE, location)])


def _original(request: Request, mount: bytes) -> Request:
    """Return the request that nginx has before it, of which it shows us all but the body."""
    uri, method = request.one(_URI), request.one(_METHOD)
    path, mark, query = (uri or b"").partition(b"?")
    if method not in (b"GET", b"HEAD") or not path.startswith(mount + b"/"):
        raise Refusal("bad_request", "X-Original-Method and X-Original-URI must be those of a read below the mount")
    headers = [pair for pair in request.headers if pair[0] not in (_URI, _METHOD)]
    query_or_none = query if mark else None
    return replace(request, method=method.decode(), path=path, query=query_or_none, headers=headers, notes={})
