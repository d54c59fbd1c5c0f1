"""Relayed storage: the bytes of uploads on their way to fal's CDN, and files of the CDN on their way down.

    /uploads/<capability>[/<n> | /complete]     a browser's bare requests: the URL is the right, there is no identity
    /<file host>/files/upload…                  the Python client's: its bearer is a capability, or it is a caller
    /<file host>/<file>                         reads, with `serve_files`

No fal key goes to these hosts, and nothing that the caller identifies itself with. Whatever can be refused is refused
before anything is dialled; the bytes are held nowhere. What an upload has sent is counted once per part, so that a part may
be repeated and a file still has its size; per process, because only numbers of parts would tell others apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote, unquote

from msgspec.structs import replace

from fal_proxy import headers as fields
from fal_proxy.admission.uploaded import Uploaded
from fal_proxy.errors import Refusal, UpstreamError, UpstreamInvalid
from fal_proxy.exchange import Caller, Kind, Target
from fal_proxy.gateway import Arrival, Gateway
from fal_proxy.headers import Headers
from fal_proxy.identity import credential_of
from fal_proxy.identity.capability import Upload
from fal_proxy.judging import ACCEPT_PLAIN, CLIENT_PROXY
from fal_proxy.policy.arrival import address
from fal_proxy.policy.origin import judge_cross_site
from fal_proxy.policy.plans import closed_plan
from fal_proxy.policy.target import resolve_file
from fal_proxy.policy.uploads import SNIFFED_BYTES, UNTYPED, essence, harmless_name, judge_first_bytes
from fal_proxy.relay.answering import Down
from fal_proxy.relay.http import Outgoing, refusal_for, relay
from fal_proxy.relay.inbound import Inbound
from fal_proxy.settings import Storage as StorageSettings
from fal_proxy.uploads import UPLOADS, Rewrite, RewrittenAnswer
from fal_proxy.upstream.cdn_bearers import CdnBearers
from fal_proxy.upstream.keys import Key

MAX_PARTS = 10_000
COMPLETE_BYTES = 1024 * 1024  # a list of MAX_PARTS parts
_COMPLETE = "complete"
_FILE_NAME = b"x-fal-file-name"


class Begun(NamedTuple):
    """An upload whose first bytes were judged; the others are still to come."""

    inbound: Inbound
    first: bytes


@dataclass(slots=True)
class _Watched:
    """Learns what the CDN answers to an upload with our bearer."""

    bearer: bytes = b""
    refused: Callable[[], None] = lambda: None

    async def answered(self, status: int, body: bytes) -> None:
        if status == 401:
            self.refused()
        if self.bearer and self.bearer.partition(b" ")[2] in body:
            raise UpstreamInvalid("upstream's answer held what must not leave the proxy", written=True)

    async def passing(self, data: bytes) -> None:
        """Take a piece of a file: there is nothing to learn from it."""

    async def ended(self) -> None:
        """Take the end of it."""


@dataclass(frozen=True, slots=True)
class Storage:
    """What relaying uploads and files needs beside the gateway; one per app."""

    gateway: Gateway
    bearers: CdnBearers
    relays: bool
    serve_files: bool
    uploaded: Uploaded

    @classmethod
    def of(cls, settings: StorageSettings, gateway: Gateway, bearers: CdnBearers, uploaded: Uploaded) -> Storage:
        """Return what the settings say; `open` it. What is known of uploads and bearers outlives settings."""
        return cls(gateway, bearers, settings.mode == "relay", settings.serve_files, uploaded)

    def open(self) -> None:
        """Let the gateway lead here what is ours."""
        routes = self.gateway.routes
        routes[UPLOADS] = self.upload
        if self.relays or self.serve_files:
            routes.update(dict.fromkeys((host.encode() for host in self.gateway.uploads.hosts), self.on_file_host))

    async def upload(self, arrival: Arrival) -> None:
        """Carry one request whose URL is its right."""
        request, exchange, seals = arrival.request, arrival.reply.exchange, self.gateway.uploads.seals
        exchange.kind = Kind.UPLOAD_PART
        sealed, slash, rest = request.path[len(self.gateway.mount) + len(UPLOADS) + 2 :].partition(b"/")
        step = rest.decode("latin-1")
        if seals is None or (slash and not _is_step(step)):
            raise Refusal("not_found", "there is no such upload")
        upload = seals.open(sealed)
        self._note(arrival, upload.known())
        if request.query is not None or upload.upload_id or upload.multipart is not bool(step):
            raise Refusal("not_found", "this upload has no such part, and no query")
        _judge_method(request.method, "POST" if step == _COMPLETE else "PUT")
        await self.gateway.gate.judge_blocked(upload.known())
        path = upload.path + (f"/{step}" if step else "")
        target = Target(
            upload.host.encode(),
            path.encode(),
            None if upload.query is None else upload.query.encode(),
            Kind.UPLOAD_PART,
        )
        begun = await self._begin(arrival, upload, step)
        passed = fields.only(request.headers, fields.UP_UPLOAD)
        if not step and not fields.values(passed, b"content-type"):
            passed.append((b"content-type", upload.content_type.encode("ascii")))
        await self._send(arrival, begun, target, passed, _Watched())

    async def on_file_host(self, arrival: Arrival) -> None:
        """Carry one request for a file host in the path form."""
        request = arrival.request
        target = resolve_file(address(request, self.gateway.mount).raw, request.method, self.gateway.uploads.hosts)
        arrival.reply.exchange.kind = target.kind
        if target.kind is Kind.FILE:
            await self._read(arrival, target)
        elif not self.relays:
            raise Refusal("mode_off", "uploads are not relayed (storage.mode)")
        elif target.path.startswith(b"/files/upload"):
            await self._create(arrival, target)
        else:
            await self._part(arrival, target)

    async def judge_read(self, arrival: Arrival) -> Target:
        """Return the file that a request may read, judged as for `_read`. Raises Refusal for everything else."""
        request, hosts = arrival.request, self.gateway.uploads.hosts
        target = resolve_file(address(request, self.gateway.mount).raw, request.method, hosts)
        arrival.reply.exchange.kind = target.kind
        if target.kind is not Kind.FILE or not self.serve_files:
            raise Refusal("mode_off", "this is no read of a file, or files are not relayed (storage.serve_files)")
        await self._caller(arrival, reads=True)
        return target

    async def _create(self, arrival: Arrival, target: Target) -> None:
        """Begin a file on the CDN: with its bytes, or with none and a promise of parts."""
        gateway, request = self.gateway, arrival.request
        caller = await self._caller(arrival)
        given = (request.one(b"content-type") or UNTYPED.encode()).decode("latin-1")
        content_type = gateway.uploads.rules.judge_type(given)
        multipart = target.path.endswith(b"/multipart")
        begun = await self._begin(arrival, self._whole_file(caller, content_type, target), "")
        # An upload begins here, as it does elsewhere with an initiation.
        grant = await gateway.gate.admit(
            caller, gateway.gate.demand(caller, caller.plan, replace(target, kind=Kind.UPLOAD_INITIATE))
        )
        arrival.reply.limits = grant.headers
        key = gateway.keys.choose()
        rewrite = None
        if multipart:
            rewrite = gateway.uploads.rewriting_create(target, content_type, key.id, caller, request)
        passed = [*fields.only(request.headers, fields.UP_CDN_UPLOAD), *_file_name(request.one(_FILE_NAME))]
        await self._with_bearer(arrival, begun, target, passed, key, rewrite)

    async def _part(self, arrival: Arrival, target: Target) -> None:
        """Add a part to such a file, or complete it."""
        seals = self.gateway.uploads.seals
        caller = await self._caller(arrival)
        path, _, rest = target.path.decode("ascii").rpartition("/multipart/")
        sealed, _, step = rest.partition("/")
        upload = seals.open(sealed.encode()) if seals else None
        asked = (caller.id, target.host.decode(), path)
        if upload is None or not upload.upload_id or (upload.caller, upload.host, upload.path) != asked:
            raise Refusal("not_found", "there is no such upload")
        if not _is_step(step):
            raise Refusal("not_found", "this upload has no such part")
        there = replace(target, path=f"{path}/multipart/{upload.upload_id}/{step}".encode())
        begun = await self._begin(arrival, upload, step)
        passed = fields.only(arrival.request.headers, fields.UP_UPLOAD)
        await self._with_bearer(arrival, begun, there, passed, self.gateway.keys.of_job(upload.key_id))

    async def _begin(self, arrival: Arrival, upload: Upload, step: str) -> Begun:
        """Judge the bytes as far as they can be known before anything is dialled."""
        if step == _COMPLETE:
            inbound = Inbound(
                arrival.receive, COMPLETE_BYTES, arrival.announced, arrival.server.on_departure, "a list of parts"
            )
            return Begun(inbound, await inbound.read_first(COMPLETE_BYTES))
        request, size = arrival.request, arrival.announced
        _judge_type(request.one(b"content-type"), upload)
        if request.one(b"content-length") is None or size is None:
            raise Refusal("length_required", "an upload needs a Content-Length")
        self.uploaded.count(upload.id, step, size, upload.max_bytes)
        inbound = Inbound(arrival.receive, size, size, arrival.server.on_departure, "storage.max_upload_bytes")
        first = await inbound.read_first(SNIFFED_BYTES)
        judge_first_bytes(upload.content_type, first, begins=step in ("", "1"))
        return Begun(inbound, first)

    async def _with_bearer(
        self, arrival: Arrival, begun: Begun, target: Target, passed: Headers, key: Key, rewrite: Rewrite | None = None
    ) -> None:
        try:
            bearer = await self.bearers.of(key)
        except UpstreamError as error:
            raise refusal_for(error, target.kind.traits) from error
        watched = _Watched(bearer, lambda: self.bearers.forget(key))
        await self._send(arrival, begun, target, [*passed, (b"authorization", bearer)], watched, rewrite)

    async def _send(
        self,
        arrival: Arrival,
        begun: Begun,
        target: Target,
        passed: Headers,
        watched: _Watched,
        rewrite: Rewrite | None = None,
    ) -> None:
        """Carry what was begun, and its answer."""
        gateway, reply = self.gateway, arrival.reply
        origin, path_and_query = gateway.route.to(target.host, target.path_and_query)
        method, headers = arrival.request.method.encode("ascii"), [ACCEPT_PLAIN, CLIENT_PROXY, *passed]
        outgoing = Outgoing(method, origin, path_and_query, headers, target, arrival.announced, begun.first)
        down = Down(reply.head, arrival.send) if rewrite is None else RewrittenAnswer(reply, rewrite).down
        patience, guard = gateway.patience, gateway.key_guard
        await relay(gateway.engine, outgoing, None, begun.inbound, down, patience, reply.exchange, watched, guard)

    async def _read(self, arrival: Arrival, target: Target) -> None:
        """Carry a file down."""
        gateway, request, reply = self.gateway, arrival.request, arrival.reply
        if not self.serve_files:
            await self._point_at(arrival, target)
            return
        await self._caller(arrival, reads=True)
        passed = fields.only(request.headers, fields.UP_FILE)
        if not fields.values(passed, b"accept-encoding"):
            passed.append(ACCEPT_PLAIN)
        origin, path_and_query = gateway.route.to(target.host, target.path_and_query)
        outgoing = Outgoing(request.method.encode("ascii"), origin, path_and_query, [*passed, CLIENT_PROXY], target, 0)
        inbound = Inbound(arrival.receive, 0, arrival.announced, arrival.server.on_departure)
        down, patience, guard = Down(reply.file_head, arrival.send), gateway.patience, gateway.key_guard
        await relay(gateway.engine, outgoing, None, inbound, down, patience, reply.exchange, _Watched(), guard)

    async def _point_at(self, arrival: Arrival, target: Target) -> None:
        """Say where the file is, which Python's client takes the address of its parts for. Browsers do not need that."""
        if any(name.startswith(b"sec-fetch-") or name == b"origin" for name, _ in arrival.request.headers):
            raise Refusal("mode_off", "files are not relayed (storage.serve_files)")
        location = self.gateway.route.address(target.host, target.path_and_query)
        await arrival.reply.empty(307, [(b"location", location), (b"content-length", b"0")])

    async def _caller(self, arrival: Arrival, *, reads: bool = False) -> Caller:
        """Return who calls: whom the bearer was given to, else whoever the sources recognise."""
        gateway, request = self.gateway, arrival.request
        bearers, shown = gateway.uploads.bearers, credential_of(request)
        bearer = bearers.find(shown.encode("latin-1")) if bearers and shown else None
        if bearers and bearer:
            bearers.judge_end(bearer)
            caller = bearer.known()
        else:
            caller = await gateway.identities.identify(request)
            arrival.reply.cookie = caller.set_cookie
        self._note(arrival, caller)
        judge_cross_site(caller, request, origin_accepted=arrival.accepted, header_form=False, navigable=reads)
        plan = gateway.plans.get(caller.plan) or closed_plan(caller.plan)
        if not plan.known:
            raise Refusal("endpoint_denied", f"there is no plan called {plan.name!r}")
        await gateway.gate.judge_blocked(caller)
        return caller

    def _note(self, arrival: Arrival, caller: Caller) -> None:
        exchange = arrival.reply.exchange
        exchange.caller, exchange.plan = caller, caller.plan

    def _whole_file(self, caller: Caller, content_type: str, target: Target) -> Upload:
        """Return what the caller may do in this one request, as a capability would say it."""
        uploads = self.gateway.uploads
        assert uploads.seals is not None, "relaying has seals"  # noqa: S101 -- the check at the start sees to it
        host, path = target.host.decode(), target.path.decode()
        return Upload(
            **uploads.seals.holder(caller),
            host=host,
            path=path,
            query=None,
            content_type=content_type,
            multipart=False,
            max_bytes=uploads.max_bytes,
        )


def _is_step(step: str) -> bool:
    """Say whether this is the number of a part, written in one way, or the end."""
    if step == _COMPLETE:
        return True
    return step.isascii() and step.isdigit() and step[0] != "0" and len(step) <= 5 and int(step) <= MAX_PARTS


def _judge_method(method: str, expected: str) -> None:
    if method != expected:
        allow = ((b"allow", expected.encode()),)
        raise Refusal("method_not_allowed", f"this takes {expected}", headers=allow)


def _judge_type(given: bytes | None, upload: Upload) -> None:
    """Raise Refusal input_denied for another type than the upload was started with."""
    if given is not None and essence(given.decode("latin-1")) != essence(upload.content_type):
        raise Refusal("input_denied", f"this upload was started as {essence(upload.content_type)}")


def _file_name(given: bytes | None) -> Headers:
    """Return the field that names the file, made harmless."""
    if given is None:
        return []
    name = unquote(given.decode("latin-1"))
    harmless = harmless_name(name)
    return [(_FILE_NAME, given if harmless == name else quote(harmless, safe="").encode("ascii"))]
