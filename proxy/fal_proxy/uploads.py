"""Where uploads begin: what a caller may start, and what it is handed to send the bytes with.

In relay mode fal's own upload URL never goes down: the caller gets a capability on the proxy in its place, and the CDN's
bearer stays here altogether. What comes with a capability is `storage`'s to judge.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from fal_proxy import routes
from fal_proxy.environment import Secret
from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller, Kind, Target
from fal_proxy.headers import Headers
from fal_proxy.identity.capability import Bearer, Seals, Upload
from fal_proxy.policy.origin import Site
from fal_proxy.policy.uploads import MAX_INITIATE_BYTES, UNTYPED, UploadRules
from fal_proxy.relay.answering import Down
from fal_proxy.relay.http import Outgoing
from fal_proxy.relay.inbound import Inbound, Message
from fal_proxy.reply import Reply
from fal_proxy.request import Request
from fal_proxy.settings import Settings
from fal_proxy.upstream.dial import Route

UPLOADS = routes.UPLOADS.segment
_PASSED = b"/storage/upload/complete-multipart"  # no known client calls it; it names no type and no file
# Where fal's initiate sends uploads beside the hosts of its own.
_STORES = frozenset([b"storage.googleapis.com"])
_PATH_AND_QUERY = re.compile(rb"/[!\"$-~]*")
Rewrite = Callable[[int, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Uploads:
    """What the start of an upload needs; the seals are missing unless uploads are relayed."""

    mode: str
    mount: str
    site: Site
    rules: UploadRules
    route: Route
    hosts: tuple[str, ...]
    max_bytes: int
    seals: Seals[Upload] | None = None
    bearers: Seals[Bearer] | None = None

    @classmethod
    def of(cls, settings: Settings, site: Site, route: Route, signing: Sequence[Secret]) -> Uploads:
        """Return what the settings say; without signing secrets nothing is relayed."""
        storage = settings.storage
        relays = storage.mode == "relay" and bool(signing)
        return cls(
            storage.mode,
            settings.mount,
            site,
            UploadRules(storage.content_types),
            route,
            storage.hosts,
            storage.max_upload_bytes,
            Seals(Upload, b"fal-proxy upload", signing) if relays else None,
            Seals(Bearer, b"fal-proxy storage bearer", signing) if relays else None,
        )

    async def judge(self, target: Target, inbound: Inbound, outgoing: Outgoing) -> Outgoing:
        """Return the request that starts an upload as it is to be sent. Raises Refusal: input_denied, body_too_large."""
        if target.path == _PASSED:
            return outgoing
        body = await inbound.read_first(MAX_INITIATE_BYTES)
        if not inbound.complete or len(body) > MAX_INITIATE_BYTES:
            raise Refusal("body_too_large", f"the start of an upload has at most {MAX_INITIATE_BYTES} bytes")
        return outgoing.rebuilt(self.rules.judge_initiate(body))

    def rewriting(self, outgoing: Outgoing, caller: Caller, request: Request) -> Rewrite | None:
        """Return what puts a capability in the place of fal's upload URL, None where the answer goes down as it is."""
        target, seals = outgoing.target, self.seals
        if seals is None or target.kind is not Kind.UPLOAD_INITIATE or target.path == _PASSED:
            return None
        content_type = msgspec.json.decode(outgoing.judged or b"").get("content_type", UNTYPED)
        base = f"{self.site.base(request)}{self.mount}/{UPLOADS.decode()}/"

        def rewrite(status: int, body: bytes) -> bytes:
            if not 200 <= status < 300:
                return body
            answer = _answer_in(body)
            host, path, query = self._address(answer.get("upload_url"))
            upload = Upload(
                **seals.holder(caller),
                host=host,
                path=path,
                query=query,
                content_type=content_type,
                multipart=target.path.endswith(b"-multipart"),
                max_bytes=self.max_bytes,
            )
            return msgspec.json.encode(answer | {"upload_url": base + seals.seal(upload)})

        return rewrite

    def rewriting_create(
        self, target: Target, content_type: str, key_id: str, caller: Caller, request: Request
    ) -> Rewrite:
        """Return what leads the parts of an upload in the CDN's own way through the proxy.

        The CDN's id of the upload becomes a capability, because with the bearer that we send it is open to every caller.
        """
        seals = self.seals
        if seals is None:
            raise Refusal("mode_off", "uploads are not relayed (storage.mode)")

        def rewrite(status: int, body: bytes) -> bytes:
            if not 200 <= status < 300:
                return body
            answer = _answer_in(body)
            host, path, query = self._address(answer.get("access_url"))
            upload_id = answer.get("uploadId")
            if query is not None or not isinstance(upload_id, str) or not re.fullmatch(r"[A-Za-z0-9._~=-]+", upload_id):
                raise _invalid("its upload has an id or an address that cannot be a path")
            upload = Upload(
                **seals.holder(caller),
                host=host,
                path=path,
                query=None,
                content_type=content_type,
                multipart=True,
                max_bytes=self.max_bytes,
                upload_id=upload_id,
                key_id=key_id,
            )
            here = f"{self.site.base(request)}{self.mount}/{host}{path}"
            return msgspec.json.encode(answer | {"access_url": here, "uploadId": seals.seal(upload)})

        return rewrite

    async def answer_token(self, request: Request, caller: Caller, inbound: Inbound, reply: Reply) -> None:
        """Answer the question for the CDN's bearer ourselves, with a capability that only we understand."""
        if self.bearers is None:
            raise Refusal("mode_off", "this proxy hands out no storage tokens (FAL_PROXY_SECRET seals them)")
        await inbound.read_first(MAX_INITIATE_BYTES)
        bearer = Bearer(**self.bearers.holder(caller))
        host = next(iter(self.hosts), "")
        answer = {
            "token": self.bearers.seal(bearer),
            "token_type": "Bearer",
            "base_url": f"{self.site.base(request)}{self.mount}/{host}",
            # Whole seconds and an offset: fromisoformat of Python before 3.11 reads nothing else.
            "expires_at": datetime.fromtimestamp(int(bearer.ends), UTC).isoformat(),
        }
        await reply.own(200, msgspec.json.encode(answer))

    def _address(self, url: object) -> tuple[str, str, str | None]:
        """Return host, path and query of an address of fal's. Raises Refusal upstream_invalid for one that is not listed."""
        found = self.route.back(url.encode("utf-8", "replace")) if isinstance(url, str) else None
        if found is None or not _PATH_AND_QUERY.fullmatch(found[1]):
            raise _invalid("it names no address to upload to")
        host, path_and_query = found
        if host.decode() not in self.hosts and host not in _STORES:
            raise _invalid(f"it uploads to {host.decode()}, which storage.hosts does not list")
        path, mark, query = path_and_query.decode("ascii").partition("?")
        return host.decode(), path, query if mark else None


class RewrittenAnswer:
    """The way down of an answer that is read whole and goes down changed."""

    def __init__(self, reply: Reply, rewrite: Rewrite) -> None:
        self.down = Down(self.head, self.send)
        self._reply = reply
        self._rewrite = rewrite
        self._status = 0
        self._headers: Headers = []

    async def head(self, status: int, upstream: Headers) -> None:
        """Keep the head until its body is known."""
        self._status = status
        self._headers = [pair for pair in upstream if pair[0] != b"content-length"]

    async def send(self, message: Message) -> None:
        """Send head and body. Raises Refusal, before anything was sent, for an answer that must not go down."""
        given = message.get("body", b"")
        body = self._rewrite(self._status, given)
        await self._reply.head(self._status, [*self._headers, (b"content-length", b"%d" % len(body))])
        self._reply.exchange.bytes_down += len(body) - len(given)
        await self._reply.send({**message, "body": body})


def _answer_in(body: bytes) -> dict[str, object]:
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, ValueError):
        answer = None
    if not isinstance(answer, dict):
        raise _invalid("it is no JSON object")
    return answer


def _invalid(why: str) -> Refusal:
    return Refusal("upstream_invalid", f"fal's answer to the start of an upload cannot be relayed: {why}")
