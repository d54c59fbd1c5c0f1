"""A second reading of what a target may be, made from the written rules alone: split and checked by hand, no regex.

The rules are those of the corpus (1 to 7, quoted at each function) and the contract's table of kinds. It imports
nothing of the proxy, so whoever compares the two compares two readings. What the rules leave open is marked "open".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

INVALID_TARGET = "invalid_target"
METHOD_NOT_ALLOWED = "method_not_allowed"
STATUSES = {INVALID_TARGET: 400, METHOD_NOT_ALLOWED: 405}

FAL_RUN = b"fal.run"
QUEUE = b"queue.fal.run"
REST = (b"rest.fal.ai", b"rest.alpha.fal.ai")
WMA = b"wma.fal.run"  # the contract's fifth; the corpus's rule 2 counts four

DIGITS = b"0123456789"
LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
UNRESERVED = LETTERS + DIGITS + b"-._~"  # RFC 3986 §2.3
PCHAR = UNRESERVED + b"!$&'()*+,;=" + b":@"  # RFC 3986 §3.3, without its escapes
HEX = DIGITS + b"ABCDEFabcdef"
PERCENT = 0x25


class Understood(NamedTuple):
    """A target that the rules allow, in the parts that were understood."""

    host: bytes
    path: bytes
    query: bytes | None
    kind: str
    endpoint_id: str
    request_id: str
    webhook: bytes | None


class Refused(NamedTuple):
    """Why the rules refuse: the error type of the contract, and the rule."""

    error_type: str
    rule: str


class _BrokenRule(Exception):
    """Some rule does not hold."""


class _Shape(NamedTuple):
    """A row of the contract's table: which kind each fitting method makes of this path."""

    kinds: dict[str, str]
    endpoint: list[bytes]
    request_id: bytes = b""


def judge_lines(
    lines: tuple[bytes, ...], method: str, plan_methods: tuple[str, ...] = ("POST",)
) -> Understood | Refused:
    """Return what the rules say about all `x-fal-target-url` lines of one request. Rule 1: exactly one."""
    if len(lines) != 1:
        return Refused(INVALID_TARGET, "rule 1: exactly one header line")
    return judge(lines[0], method, plan_methods)


def judge(raw: bytes, method: str, plan_methods: tuple[str, ...] = ("POST",)) -> Understood | Refused:
    """Return what the rules say about one target. Only what exists can be asked for with the wrong method."""
    try:
        check_bytes(raw)
        host, path, query = split(raw)
        segments, slash = check_path(path)
        shape = shape_of(host, path, segments, slash, plan_methods)
        webhook = check_query(query, host, "submit" in shape.kinds.values())
    except _BrokenRule as broken:
        return Refused(INVALID_TARGET, str(broken))
    if method not in shape.kinds:
        return Refused(METHOD_NOT_ALLOWED, "known shape, wrong method")
    endpoint_id = upper_cased_escapes(b"/".join(shape.endpoint)).decode("ascii")
    return Understood(host, path, query, shape.kinds[method], endpoint_id, shape.request_id.decode("ascii"), webhook)


def check_bytes(raw: bytes) -> None:
    """Rule 1: 1 to 8192 bytes, every byte 0x21 to 0x7E."""
    _hold(1 <= len(raw) <= 8192, "rule 1: 1 to 8192 bytes")
    _hold(all(0x21 <= byte <= 0x7E for byte in raw), "rule 1: bytes 0x21 to 0x7E")


def split(raw: bytes) -> tuple[bytes, bytes, bytes | None]:
    """Rule 2: `https://`, exactly one of the hosts, `/`; no fragment. Contract: an empty `?` is 400."""
    _hold(raw[:8] == b"https://", "rule 2: literal https://")
    _hold(b"#" not in raw, "rule 2: no fragment")
    host, slash, rest = raw[8:].partition(b"/")
    _hold(bool(slash) and host in (FAL_RUN, QUEUE, *REST, WMA), "rule 2: one of the hosts, then /")
    path, mark, query = rest.partition(b"?")
    _hold(not mark or bool(query), "contract: an empty ?")
    return host, b"/" + path, query if mark else None


def check_path(path: bytes) -> tuple[list[bytes], bool]:
    """Rule 3. Return the segments, and whether one trailing slash follows them."""
    segments = path[1:].split(b"/")
    slash = len(segments) > 1 and segments[-1] == b""
    if slash:
        segments.pop()
    _hold(b"" not in segments, "rule 3: no empty segment")
    _hold(len(segments) <= 32, "rule 3: at most 32 segments")
    for segment in segments:
        _hold(segment not in (b".", b".."), "rule 3: no dot segment")
        for byte in escaped_bytes(segment, without(PCHAR, b";,"), "rule 3"):
            _hold(byte >= 0x20 and byte != 0x7F, "rule 3: no escaped control")
            _hold(byte not in b"/\\%.;?#", "rule 3: no escaped delimiter")
            _hold(byte not in UNRESERVED, "rule 3: no escaped unreserved character")
    return segments, slash


def shape_of(host: bytes, path: bytes, segments: list[bytes], slash: bool, plan_methods: tuple[str, ...]) -> _Shape:
    """Return the row of the contract's table that this path is. Anything else is 400."""
    if host in REST:
        return rest_shape(path)
    if host == WMA:
        _hold(path in (b"/ice", b"/session", b"/session/heartbeat"), "contract: three paths, letter by letter")
        return _Shape({"POST": "wma"}, [])
    if host == QUEUE and b"requests" in segments:
        return request_shape(segments, slash)
    _hold(is_endpoint(segments), "rule 4: at least owner/alias")
    if host == QUEUE:
        return _Shape({"POST": "submit"}, without_suffix(segments))
    kinds = dict.fromkeys({"GET", "PUT", "DELETE", "PATCH"}.intersection(plan_methods), "run")
    # Open: other methods on {endpoint}/stream, any on {endpoint}/realtime without a socket. Both are `{endpoint}` too.
    kinds["POST"] = "stream" if segments[-1] == b"stream" and is_endpoint(segments[:-1]) else "run"
    return _Shape(kinds, without_suffix(segments))


def is_endpoint(segments: list[bytes]) -> bool:
    """Rule 4: at least owner/alias; three segments where the first is `workflows` or `comfy`."""
    return len(segments) >= (3 if segments[:1] in ([b"workflows"], [b"comfy"]) else 2)


def without_suffix(segments: list[bytes]) -> list[bytes]:
    """Contract: endpoint_id has no final `stream` or `realtime`. Open: where that is the alias itself, it stays."""
    suffixed = segments[-1] in (b"stream", b"realtime") and is_endpoint(segments[:-1])
    return segments[:-1] if suffixed else segments


def rest_shape(path: bytes) -> _Shape:
    """Rule 5 and the contract: six paths, letter by letter. An upload token is refused later, as `mode_off`."""
    if path in (b"/tokens/", b"/tokens/realtime"):
        return _Shape({"POST": "token"}, [])
    if path == b"/storage/auth/token":
        return _Shape({"POST": "upload_token"}, [])
    operation = path.removeprefix(b"/storage/upload/")
    known = operation in (b"initiate", b"initiate-multipart", b"complete-multipart")
    _hold(known, "rule 5: only tokens and storage uploads")
    return _Shape({"POST": "upload_initiate"}, [])


def request_shape(segments: list[bytes], slash: bool) -> _Shape:
    """Rule 7 and the contract: `requests` is reserved; what follows it is one of five shapes, slashes as in its table.

    Open: the endpoint is what stands before the first `requests`; the id is a token as fal makes them, of up to 128
    letters, digits, `-` and `_`, and `requests` itself in that place is an id like any other.
    """
    place = segments.index(b"requests")
    app, rest = segments[:place], segments[place + 1 :]
    _hold(is_endpoint(app), "rule 4: at least owner/alias before requests")
    _hold(bool(rest), "rule 7: requests without an id")
    request_id, action = rest[0], b"/".join(rest[1:]) + (b"/" if slash and rest[1:] else b"")
    _hold(len(request_id) <= 128 and not without(request_id, LETTERS + DIGITS + b"-_"), "rule 7: no request id")
    if action in (b"", b"response"):
        kinds = {"GET": "result"}
    elif action in (b"status", b"status/"):
        kinds = {"GET": "status"}
    elif action == b"status/stream":
        kinds = {"GET": "status_stream"}
    elif action == b"cancel":
        kinds = {"PUT": "cancel"}
    else:
        raise _BrokenRule("rule 7: no shape of a queue path")
    return _Shape(kinds, without_suffix(app), request_id)


def check_query(query: bytes | None, host: bytes, submits: bool) -> bytes | None:
    """Rules 6 and 7. Return the decoded value of `fal_webhook`, whose host is judged later, by `webhook_fits`.

    Open: empty parameters count as parameters; a queue key appears once and is written plainly; `fal_webhook` belongs
    to a submit, has no other spelling anywhere, and keeps a `+`; rest hosts take any other key.
    """
    if query is None:
        return None
    escaped_bytes(query, without(PCHAR, b";") + b"/?", "rule 6")
    parameters = [parameter.partition(b"=")[::2] for parameter in query.split(b"&")]
    _hold(len(parameters) <= 100, "rule 6: at most 100 parameters")
    names = [name for name, _ in parameters]
    for name in names:
        meant = plainest(name)
        _hold(meant not in (b"fal_key", b"fal_jwt_token"), "rule 6: no credential")
        _hold(meant != b"fal_webhook" or name == meant, "rule 6: fal_webhook in another spelling")
    if host == QUEUE:
        _hold(not set(names) - {b"logs", b"fal_webhook", b"fal_max_queue_length"}, "rule 7: only three query keys")
        _hold(len(set(names)) == len(names), "rule 7: a query key twice")
    webhooks = [value for name, value in parameters if name == b"fal_webhook"]
    _hold(len(webhooks) <= 1, "rule 6: at most one fal_webhook")
    _hold(not webhooks or submits, "rule 6: fal_webhook without a submit")
    return unescaped(webhooks[0]) if webhooks else None


def webhook_fits(value: bytes, listed: Iterable[bytes]) -> bool:
    """Rule 6: https, no port or userinfo, host on the configured list."""
    if not value.startswith(b"https://"):
        return False
    authority = value.removeprefix(b"https://")
    for end in (b"/", b"?", b"#"):
        authority = authority.partition(end)[0]
    return b"@" not in authority and b":" not in authority and authority in listed


def plainest(name: bytes) -> bytes:
    """Rule 6, "in any case or encoding": escapes of escapes undone, `+` a space as in forms, white space around it gone.

    One pass: whatever an undone escape completes is an escape in its turn, so it can only be at the end of what is done.
    """
    done = bytearray()
    for byte in name:
        done.append(byte)
        while len(done) >= 3 and done[-3] == PERCENT and done[-2] in HEX and done[-1] in HEX:
            done[-3:] = bytes([int(done[-2:], 16)])
    return bytes(done).replace(b"+", b" ").strip().lower()


def escaped_bytes(text: bytes, plain: bytes, rule: str) -> list[int]:
    """Return the bytes that stand escaped in a text whose other bytes must be `plain`."""
    found, place = [], 0
    while place < len(text):
        if text[place] == PERCENT:
            digits = text[place + 1 : place + 3]
            _hold(len(digits) == 2 and not without(digits, HEX), f"{rule}: well-formed escapes")
            found.append(int(digits, 16))
            place += 3
        else:
            _hold(text[place] in plain, f"{rule}: characters")
            place += 1
    return found


def unescaped(text: bytes) -> bytes:
    """Return a text of well-formed escapes with each undone, once."""
    first, *others = text.split(b"%")
    return first + b"".join(bytes([int(other[:2], 16)]) + other[2:] for other in others)


def upper_cased_escapes(text: bytes) -> bytes:
    """Contract: percent escapes are upper-cased for matching only."""
    first, *others = text.split(b"%")
    return first + b"".join(b"%" + other[:2].upper() + other[2:] for other in others)


def without(text: bytes, unwanted: bytes) -> bytes:
    """Return the bytes of a text that are not among the unwanted ones."""
    return bytes(byte for byte in text if byte not in unwanted)


def _hold(holds: bool, rule: str) -> None:
    if not holds:
        raise _BrokenRule(rule)
