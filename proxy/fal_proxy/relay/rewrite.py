"""Queue URLs point back at us: in path form, `status_url`, `response_url` and `cancel_url` name the proxy, not fal.

Clients follow these three verbatim, Python's with the user key. Only the beginning `https://queue.fal.run/` of such a
value is replaced, in the bytes that fal sent: nothing is decoded and encoded anew, so no other byte can change. What
counts is a member of the answer's own object, its name and value in any of JSON's spellings; the same name further
inside, other hosts, and whatever has not the outline of one JSON object pass untouched. Knows nothing of HTTP.
"""

from __future__ import annotations

import json
import re

from fal_proxy.relay.events import WholeCharacters

EVENT_BYTES = 1024 * 1024  # of one event that are held; a longer one passes untouched

_NAMES = ("status_url", "response_url", "cancel_url")


def _spelled(text: str) -> bytes:
    """Return a pattern for every way in which JSON can spell a part of a URL, in which case does not count."""
    codes = (f"{ord(char.lower()):02x}|{ord(char.upper()):02x}" for char in text)
    plain = (r"\\?/" if char == "/" else re.escape(char) for char in text)
    return "".join(rf"(?:{char}|\\u00(?:{code}))" for char, code in zip(plain, codes, strict=True)).encode()


# JSON by its outline (RFC 8259).
_STRING = rb'"(?:[^"\\\x00-\x1f]++|\\[^\x00-\x1f])*+"'
_BLANK = rb"[ \t\r\n]*+"
_OPENING = re.compile(_BLANK + rb"\{")
_MEMBER = re.compile(_BLANK + b"(" + _STRING + b")" + _BLANK + b":" + _BLANK)
_SCALAR = re.compile(_STRING + rb'|[^"{}\[\],:\s]++')
_BRACKET = re.compile(rb'(?:[^"{}\[\]]++|' + _STRING + rb")*+([{}\[\]])")
_NEXT = re.compile(_BLANK + b"([,}])")
_END = re.compile(_BLANK + rb"\Z")
_ON_QUEUE = re.compile(
    b'"(%b(?:%b)?%b)' % (_spelled("https://queue.fal.run"), _spelled(":443"), _spelled("/")), re.IGNORECASE
)

# Server-sent events (WHATWG HTML §9.2): a line ends with LF, CRLF or CR, an event with an empty line.
_EVENT_END = re.compile(rb"(?>\r\n|\r|\n)(?>\r\n|\r|\n)")
_NOT_DATA = re.compile(rb"(?:\A|(?<=[\r\n]))(?:data:|[^\r\n]++)")


def point_back(body: bytes, base: bytes) -> bytes:
    """Return an answer whose queue URLs begin with `base` (which ends with a slash and needs no escape in JSON)."""
    return _replaced(body, _places(body), base)


class PointedBack:
    """Do the same to a stream of events. An event is held until it is whole: nobody acts on a part of one."""

    def __init__(self, base: bytes) -> None:
        self._base = base
        self._characters = WholeCharacters()  # for what is too long to be held
        self._held = bytearray()
        self._too_long = False  # the event under way is, and its beginning has gone
        self._ended_with_cr = False  # whose LF may be about to come

    def feed(self, data: bytes) -> bytes:
        """Return what can be passed on now."""
        data = self._characters.feed(data)
        passed: list[bytes] = []
        if data and self._ended_with_cr:
            self._ended_with_cr = False
            if data.startswith(b"\n"):
                passed, data = [b"\n"], data[1:]
        looked = max(0, len(self._held) - 1)  # the last byte may be the first half of an event's end
        self._held += data
        begin = 0
        for end in _EVENT_END.finditer(self._held, looked):
            passed.append(self._rewritten(bytes(self._held[begin : end.end()])))
            begin = end.end()
        del self._held[:begin]
        if begin and not self._held:
            self._ended_with_cr = passed[-1].endswith(b"\r")
        if self._too_long or len(self._held) > EVENT_BYTES:
            self._too_long = True
            kept = 1 if self._held.endswith((b"\r", b"\n")) else 0
            passed.append(bytes(self._held[: len(self._held) - kept]))
            del self._held[: len(self._held) - kept]
        return b"".join(passed)

    def rest(self) -> bytes:
        """Return what is left when the stream has ended, however it ended."""
        last = bytes(self._held) + self._characters.rest()
        self._held.clear()
        return self._rewritten(last)

    def _rewritten(self, event: bytes) -> bytes:
        if self._too_long or len(event) > EVENT_BYTES:
            self._too_long = False
            return event
        # Everything but the data becomes blank, so that JSON stands where it stood, whatever the lines.
        data = _NOT_DATA.sub(lambda part: b" " * len(part[0]), event)
        return _replaced(event, _places(data), self._base)


def _replaced(text: bytes, places: list[tuple[int, int]], base: bytes) -> bytes:
    parts, at = [], 0
    for begin, end in places:
        parts += [text[at:begin], base]
        at = end
    return b"".join([*parts, text[at:]]) if places else text


def _places(text: bytes) -> list[tuple[int, int]]:
    """Return where the beginnings to replace stand; none, if this is not one object to its end."""
    places: list[tuple[int, int]] = []
    start = _OPENING.match(text)
    at = start.end() if start else len(text)
    while member := _MEMBER.match(text, at):
        begin = member.end()
        at = _value_end(text, begin)
        if _named(member[1]) and (url := _ON_QUEUE.match(text, begin, at)):
            places.append(url.span(1))
        following = _NEXT.match(text, at)
        if following is None:
            break
        at = following.end()
        if following[1] == b"}":
            return places if _END.match(text, at) else []
    return []


def _named(name: bytes) -> bool:
    """Say whether a member's name, in quotes, is one of the three."""
    try:
        return (json.loads(name) if b"\\" in name else name[1:-1].decode("latin-1")) in _NAMES
    except ValueError:
        return False


def _value_end(text: bytes, begin: int) -> int:
    """Return where the value ends that begins here; where it begins, if it does not."""
    scalar = _SCALAR.match(text, begin)
    if scalar is not None:
        return scalar.end()
    depth, at = 0, begin
    while (depth or text[begin : begin + 1] in (b"{", b"[")) and (bracket := _BRACKET.match(text, at)):
        depth += 1 if bracket[1] in b"{[" else -1
        at = bracket.end()
        if not depth:
            return at
    return begin
