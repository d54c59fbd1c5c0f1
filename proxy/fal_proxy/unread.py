"""What our own server refuses before it is a request, or before it is whole: its line, its count, and who may read the answer.

Without a whole head nothing is known of a request, its page neither; the line says why it was refused, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

from fal_proxy.asgi import EXTENSION, Scope, read_request
from fal_proxy.errors import Refusal
from fal_proxy.exchange import Ending
from fal_proxy.gateway import Gateway
from fal_proxy.headers import Headers
from fal_proxy.relay.inbound import Message
from fal_proxy.reply import Reply
from fal_proxy.request import Request


class Unread:
    """Told by the server of each such refusal, once; a connection has at most one, because it ends with it."""

    def __init__(self, gateway: Callable[[], Gateway]) -> None:
        """Take what returns the gateway that is in force."""
        self._gateway = gateway

    def __call__(self, refusal: Refusal, scope: Scope | None, *, begun: bool, answered: bool) -> Headers:
        """Note a refusal and return the CORS fields of its answer.

        `scope` is what the head said, where it was whole. `begun`: the app has the request and will note its end itself, as it
        finds it in the scope. `answered`: not so where an answer could be taken for another request's.
        """
        request = None if scope is None else read_request(scope)
        if begun and scope is not None:
            scope["extensions"][EXTENSION]["refused"] = refusal
        elif request is None or self._is_ours(request.path):
            telemetry = self._gateway().telemetry
            exchange = telemetry.begin()
            exchange.refused(refusal, Ending.REFUSED if answered else Ending.CUT)
            exchange.status = refusal.status if answered else None
            telemetry.finish(exchange)
        return self._cors(request)

    def _is_ours(self, path: bytes) -> bool:
        mount = self._gateway().mount
        return path.startswith(mount) and path[len(mount) : len(mount) + 1] in (b"", b"/")

    def _cors(self, request: Request | None) -> Headers:
        reply = Reply(_nowhere)
        if request is not None:
            try:
                self._gateway().judge_host(request, reply)
            except Refusal:
                pass  # a page that is listed may read even this
        return reply.cors


async def _nowhere(message: Message) -> None:
    raise AssertionError(message)
