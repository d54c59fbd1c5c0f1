"""Bytes in, Target out, or a refusal. The one place that decides what may be reached.

Both spellings of a target (the `x-fal-target-url` header and the path below the mount) become the same bytes and are
matched whole against one grammar. Nothing is decoded, folded or repaired: a value that another parser could read in
a second way is refused, and what is accepted is sent byte for byte. Three questions, in this order:

1. Is it `https://`, one of five hosts, and a path and query of plain, canonical URI characters? (`_TARGET`, `_segments`,
   `_parameters`.) Canonical means: no dot or empty segments, no escapes of characters that need none or that a server
   might decode into structure.
2. Which shape does this host know for the path? (`_resolve_*`: run, queue, rest and wma.)
3. Does the method fit the shape? A known shape with a wrong method is 405, everything else 400.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from fal_proxy.errors import Refusal
from fal_proxy.exchange import Kind, Target

MAX_TARGET_BYTES = 8192
_REMEMBERED_BYTES = 512
MAX_SEGMENTS = 32
MAX_PARAMETERS = 100

# RFC 3986 pchar without `;` and `,` (path parameters), and `%` only as part of a well-formed escape.
_SEGMENT = rb"(?:[A-Za-z0-9\-._~!$&'()*+=:@]|%[0-9A-Fa-f]{2})+"
_QUERY = rb"(?:[A-Za-z0-9\-._~!$&'()*+,=:@/?]|%[0-9A-Fa-f]{2})+"
_PATH_AND_QUERY = rb"(?P<path>(?:/" + _SEGMENT + rb")+/?)(?:\?(?P<query>" + _QUERY + rb"))?"
_TARGET = re.compile(
    rb"https://(?P<host>fal\.run|queue\.fal\.run|rest\.fal\.ai|rest\.alpha\.fal\.ai|wma\.fal\.run)" + _PATH_AND_QUERY
)
_FILE_TARGET = re.compile(rb"https://(?P<host>[a-z0-9.\-]+)" + _PATH_AND_QUERY)
_ESCAPE = re.compile(rb"%[0-9A-Fa-f]{2}")
# An escape of one of these is structure in disguise, or a second spelling of the same segment.
_NEVER_ESCAPED = frozenset(
    bytes(range(0x20)) + b"\x7f/\\%.;?#-_~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)
_HEX = frozenset(b"0123456789abcdefABCDEF")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_-]{1,128}")
_NAMESPACES = (b"workflows", b"comfy")
_SUFFIXES = (b"stream", b"realtime")
_CREDENTIAL_PARAMETERS = frozenset([b"fal_jwt_token", b"fal_key"])
_QUEUE_PARAMETERS = frozenset([b"logs", b"fal_webhook", b"fal_max_queue_length"])
_RUN_METHODS = frozenset(["GET", "PUT", "DELETE", "PATCH"])

_QUEUE_TAILS: dict[tuple[bytes, ...], tuple[Kind, str]] = {
    (): (Kind.RESULT, "GET"),
    (b"response",): (Kind.RESULT, "GET"),
    (b"status",): (Kind.STATUS, "GET"),
    (b"status", b"stream"): (Kind.STATUS_STREAM, "GET"),
    (b"cancel",): (Kind.CANCEL, "PUT"),
}
_SLASH_FORMS = ((), (b"status",))  # fal's own SDK asks for `…/{id}/` and `…/status/`
_REST_PATHS = {
    b"/tokens/": Kind.TOKEN,
    b"/tokens/realtime": Kind.TOKEN,
    b"/storage/upload/initiate": Kind.UPLOAD_INITIATE,
    b"/storage/upload/initiate-multipart": Kind.UPLOAD_INITIATE,
    b"/storage/upload/complete-multipart": Kind.UPLOAD_INITIATE,
    b"/storage/auth/token": Kind.UPLOAD_TOKEN,
}
_WMA_PATHS = dict.fromkeys([b"/ice", b"/session", b"/session/heartbeat"], Kind.WMA)


def resolve(raw: bytes, method: str, methods: Collection[str] = ("POST",)) -> Target:
    """Return the target that `raw` (an absolute URL, exactly as received) and `method` name.

    `methods` are those that the caller's plan opens on fal.run beside POST. Raises Refusal `invalid_target` or
    `method_not_allowed`.
    """
    find = _resolve if len(raw) <= _REMEMBERED_BYTES else _resolve.__wrapped__
    return find(raw, method, frozenset(methods))


@lru_cache(maxsize=1024)  # pages ask for the same few endpoints, and for each job's status many times
def _resolve(raw: bytes, method: str, methods: frozenset[str]) -> Target:
    match = _TARGET.fullmatch(raw) if len(raw) <= MAX_TARGET_BYTES else None
    if match is None:
        raise _invalid(
            "the target must be https:// on fal.run, queue.fal.run, rest.fal.ai or wma.fal.run, in canonical form"
        )
    host, path, query = match.group("host", "path", "query")
    segments = _segments(path)
    names = _parameters(query)
    if host == b"fal.run":
        return _resolve_run(path, query, segments, names, method, methods)
    if host == b"queue.fal.run":
        return _resolve_queue(path, query, segments, names, method)
    return _resolve_rest(host, path, query, names, method)


def resolve_socket(raw: bytes) -> Target:
    """Return the realtime target that `raw`, an absolute https URL, names. Raises Refusal `invalid_target`."""
    match = _TARGET.fullmatch(raw) if len(raw) <= MAX_TARGET_BYTES else None
    if match is None or match["host"] != b"fal.run":
        raise _invalid("a WebSocket's target must be on fal.run, in canonical form")
    path, query = match.group("path", "query")
    segments = _segments(path)
    if b"fal_webhook" in _parameters(query):
        raise _invalid("fal_webhook belongs to a submit")
    length = _app_length(segments)
    return Target(b"fal.run", path, query, Kind.REALTIME, _endpoint_id(segments, length))


def resolve_file(raw: bytes, method: str, hosts: Collection[str]) -> Target:
    """Return the upload or the file on one of `hosts` that `raw`, from the path form, names.

    Raises Refusal `invalid_target` or `method_not_allowed`.
    """
    match = _FILE_TARGET.fullmatch(raw) if len(raw) <= MAX_TARGET_BYTES else None
    if match is None or match["host"].decode() not in hosts:
        raise _invalid("the target must be a file host of storage.hosts, in canonical form")
    host, path, query = match.group("host", "path", "query")
    segments = _segments(path)
    _parameters(query)
    if path in (b"/files/upload", b"/files/upload/multipart") or (len(segments) > 3 and segments[-3] == b"multipart"):
        if query is not None or path.endswith(b"/"):
            raise _invalid("an upload has no query and no trailing slash")
        expected = "PUT" if segments[-1].isdigit() else "POST"
        if not (segments[-1].isdigit() or segments[-1] == b"complete" or segments[1:2] == [b"upload"]):
            raise _invalid("a part of an upload has a number")
        if method != expected:
            raise _wrong_method(expected)
        return Target(host, path, query, Kind.UPLOAD_PART)
    if method not in ("GET", "HEAD"):
        raise _wrong_method("GET, HEAD")
    return Target(host, path, query, Kind.FILE)


def endpoint_of(app_id: str) -> str:
    """Return the endpoint id of an app that a body names in plain characters. Raises Refusal `invalid_target`."""
    segments = app_id.encode().split(b"/")
    return _endpoint_id(segments, _app_length(segments))


def _segments(path: bytes) -> list[bytes]:
    segments = path.strip(b"/").split(b"/")
    if len(segments) > MAX_SEGMENTS:
        raise _invalid(f"the target's path has more than {MAX_SEGMENTS} segments")
    for segment in segments:
        if segment in (b".", b".."):
            raise _invalid("the target's path has a dot segment")
        for escape in _ESCAPE.findall(segment):
            if int(escape[1:], 16) in _NEVER_ESCAPED:
                raise _invalid("the target's path escapes a character that must not be escaped")
    return segments


def _parameters(query: bytes | None) -> list[bytes]:
    """Return the parameter names as written; refuse those that carry credentials under any spelling."""
    if query is None:
        return []
    parts = query.split(b"&")
    if len(parts) > MAX_PARAMETERS:
        raise _invalid(f"the target's query has more than {MAX_PARAMETERS} parameters")
    names = [part.partition(b"=")[0] for part in parts]
    for name in names:
        plain = _plain(name)
        if plain in _CREDENTIAL_PARAMETERS:
            raise _invalid("the target's query must not carry credentials")
        if plain == b"fal_webhook" and name != plain:
            raise _invalid("fal_webhook must be written plainly")
    if names.count(b"fal_webhook") > 1:
        raise _invalid("the target's query has more than one fal_webhook")
    return names


def _plain(name: bytes) -> bytes:
    """Undo every layer of escaping, so that no spelling of a reserved name goes unseen."""
    name = unquote_to_bytes(name)
    if b"%" in name:
        name = _unescaped_throughout(name)
    return name.replace(b"+", b" ").strip().lower()


def _unescaped_throughout(name: bytes) -> bytes:
    """Undo escapes of escapes in one pass: layer by layer, 8 KiB of them would hold the loop for a second."""
    plain = bytearray()
    for byte in name:
        plain.append(byte)
        # What an undone escape completes can only be another one, at the end of what is plain so far.
        while plain[-3:-2] == b"%" and _HEX.issuperset(plain[-2:]):
            plain[-3:] = bytes.fromhex(plain[-2:].decode("ascii"))
    return bytes(plain)


def _app_length(segments: list[bytes]) -> int:
    """Return how many leading segments name the app: owner/alias, or namespace/owner/alias."""
    length = 3 if segments[0] in _NAMESPACES else 2
    if len(segments) < length:
        raise _invalid("the target's path must start with owner/alias")
    return length


def _endpoint_id(segments: list[bytes], app_length: int) -> str:
    if segments[-1] in _SUFFIXES and len(segments) > app_length:
        segments = segments[:-1]
    return _ESCAPE.sub(lambda match: match.group().upper(), b"/".join(segments)).decode("ascii")


def _resolve_run(
    path: bytes, query: bytes | None, segments: list[bytes], names: list[bytes], method: str, methods: Collection[str]
) -> Target:
    length = _app_length(segments)
    if b"fal_webhook" in names:
        raise _invalid("fal_webhook belongs to queue.fal.run")
    endpoint_id = _endpoint_id(segments, length)
    if method == "POST":
        streams = segments[-1] == b"stream" and len(segments) > length
        return Target(b"fal.run", path, query, Kind.STREAM if streams else Kind.RUN, endpoint_id)
    if method in _RUN_METHODS and method in methods:
        return Target(b"fal.run", path, query, Kind.RUN, endpoint_id)
    raise _wrong_method("POST")


def _resolve_queue(path: bytes, query: bytes | None, segments: list[bytes], names: list[bytes], method: str) -> Target:
    length = _app_length(segments)
    if not _QUEUE_PARAMETERS.issuperset(names) or len(set(names)) != len(names):
        raise _invalid("queue.fal.run knows only the parameters logs, fal_webhook and fal_max_queue_length")
    endpoint, request_id, tail = segments, b"", None
    if b"requests" in segments:
        at = segments.index(b"requests")
        endpoint, rest = segments[:at], segments[at + 1 :]
        tail = tuple(rest[1:])
        slash_fits = tail in _SLASH_FORMS or not path.endswith(b"/")
        if at < length or not rest or tail not in _QUEUE_TAILS or not slash_fits or not _REQUEST_ID.fullmatch(rest[0]):
            raise _invalid(
                "this is no queue path: {app}/requests/{id} with nothing, status, status/stream, response or cancel"
            )
        request_id = rest[0]
    endpoint_id = _endpoint_id(endpoint, length)
    if tail is None:
        if method != "POST":
            raise _wrong_method("POST")
        return Target(b"queue.fal.run", path, query, Kind.SUBMIT, endpoint_id, webhook=_webhook(query))
    if b"fal_webhook" in names:
        raise _invalid("fal_webhook belongs to a submit")
    kind, expected = _QUEUE_TAILS[tail]
    if method != expected:
        raise _wrong_method(expected)
    return Target(b"queue.fal.run", path, query, kind, endpoint_id, request_id.decode("ascii"))


def _webhook(query: bytes | None) -> bytes | None:
    for part in (query or b"").split(b"&"):
        name, _, value = part.partition(b"=")
        if name == b"fal_webhook":
            return unquote_to_bytes(value)
    return None


def _resolve_rest(host: bytes, path: bytes, query: bytes | None, names: list[bytes], method: str) -> Target:
    kind = (_WMA_PATHS if host == b"wma.fal.run" else _REST_PATHS).get(path)
    if kind is None or b"fal_webhook" in names:
        raise _invalid("rest.fal.ai is open for tokens and storage uploads only, wma.fal.run for sessions")
    if method != "POST":
        raise _wrong_method("POST")
    return Target(host, path, query, kind)


def _invalid(detail: str) -> Refusal:
    return Refusal("invalid_target", detail)


def _wrong_method(allowed: str) -> Refusal:
    return Refusal("method_not_allowed", f"this target takes {allowed}", headers=((b"allow", allowed.encode()),))
