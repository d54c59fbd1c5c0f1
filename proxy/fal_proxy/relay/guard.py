"""The key guard: no fal key of ours goes down, whatever upstream answers. Knows bytes and nothing of HTTP.

What it promises: of no key do 16 characters in a row of the secret half pass, as they are or escaped, each or some of
them, as %XX or \\u00XX; nor 20 characters in hex, or in base64 at any of its three alignments. (fal's have 32, of 4 bits
each.) An answer that would break this is cut, and the piece that completes it never leaves.

How it stays cheap: so many characters in a row must hold one of a few short pieces ("anchors"), so one search per anchor
clears a whole chunk: two for the secret as it is, one for each way to encode it. A short piece is cleared at once if it has
no 16 characters in a row that could be a key's. Only upon a hit does anything look closer. Escapes are undone only where one stands for a character of a key, which no honest encoder escapes.

A chunk that ends with 4 or more characters of a secret has that tail held back until it is known how it goes on, for at
most HOLD_SECONDS: then a stream of events must not wait. So a key cut by the network goes down not even in part.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from fal_proxy.environment import Secret
from fal_proxy.errors import FalProxyError, UpstreamInvalid
from fal_proxy.headers import Headers
from fal_proxy.upstream.credentials import secret_half

HOLD_SECONDS = 0.05
RUN_CHARS = 16  # so many characters of a secret in a row never pass
ENCODED_RUN_CHARS = 20  # nor so many of them in hex or base64
TAIL_CHARS = 4  # so many at the end of a chunk are held back
_ESCAPE_BYTES = 6  # \u00XX
_OVERLAP_BYTES = ENCODED_RUN_CHARS * 2 * _ESCAPE_BYTES  # hex digits, each escaped: the longest that one run can be
_ANCHOR_BYTES = 8  # at least
_LARGE_BYTES = 4096  # from here on libc searches faster than Python does
_BEGUN = re.compile(rb"(?:%[0-9A-Fa-f]?|\\(?:u(?:0(?:0[0-9A-Fa-f]?)?)?)?)\Z")
_log = logging.getLogger("fal_proxy.guard")


class _Form(NamedTuple):
    """One way to write a secret: the text, and how much of it a run of RUN_CHARS and a tail of TAIL_CHARS take."""

    text: bytes
    run: int
    tail: int

    @property
    def runs(self) -> list[bytes]:
        """Return everything that must not pass."""
        return [self.text[at : at + self.run] for at in range(len(self.text) - self.run + 1)]

    def anchors(self) -> list[bytes]:
        """Return pieces such that each of `runs` holds one of them."""
        runs = len(self.text) - self.run + 1
        one, two = self.run + 1 - runs, self.run + 1 - (runs + 1) // 2  # how long one piece, or two, can be
        size = one if one >= _ANCHOR_BYTES else max(two, _ANCHOR_BYTES)
        first = self.run - size
        return [self.text[at : at + size] for at in range(first, first + runs, self.run + 1 - size)]


def _forms(secret: bytes) -> Iterable[_Form]:
    yield _Form(secret, RUN_CHARS, TAIL_CHARS)
    run = min(ENCODED_RUN_CHARS, len(secret))
    yield _Form(secret.hex().encode(), run * 2, TAIL_CHARS * 2)
    yield _Form(secret.hex().upper().encode(), run * 2, TAIL_CHARS * 2)
    for lead in range(3):
        # Characters that hold bits of the secret alone: what stands beside it cannot change them.
        first, end = -(-lead * 8 // 6), (lead + len(secret)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(bytes(lead) + secret + bytes(3))[first:end]
            yield _Form(text, (run * 8 - 4) // 6, TAIL_CHARS * 8 // 6)


class KeyGuard:
    """Watch for the keys that it was last given; those of fal's own length, or at least with RUN_CHARS of secret."""

    def __init__(self, found: Callable[[], None] = lambda: None) -> None:
        """Take what to call for every answer that is cut."""
        self._found = found
        self._forms: tuple[_Form, ...] = ()
        self._anchors: tuple[bytes, ...] = ()
        self._alphabet, self._shortest = _alphabet_of(())
        self._runs: dict[bytes, list[bytes]] = {}  # by anchor
        self._escapes = _escapes_of(frozenset())
        self._tails: dict[int, frozenset[bytes]] = {}  # every piece of a form that is as long as its tail, by length

    def watch_for(self, keys: Iterable[Secret]) -> None:
        """Watch for these keys from now on, also in answers that are under way."""
        secrets = [secret_half(key).encode("latin-1") for key in keys]
        self._forms = tuple(dict.fromkeys(form for each in secrets if len(each) >= RUN_CHARS for form in _forms(each)))
        self._tails = {size: _pieces(self._forms, size) for size in {form.tail for form in self._forms}}
        self._runs = {}
        for form in self._forms:
            for anchor in form.anchors():
                self._runs[anchor] = [*self._runs.get(anchor, []), *form.runs]
        self._anchors = tuple(self._runs)
        self._alphabet, self._shortest = _alphabet_of(self._forms)
        self._escapes = _escapes_of(frozenset(b"".join(form.text for form in self._forms)))

    def judge(self, piece: bytes) -> None:
        """Judge what goes down whole: a body, a frame. Raises UpstreamInvalid."""
        if self.holds_key(piece):
            raise self.alarm()

    def judge_fields(self, fields: Headers, body: bytes = b"") -> None:
        """Judge header fields, and the body behind them as far as it was read. Raises UpstreamInvalid."""
        parts = [part for field in fields for part in field]
        if len(body) < _LARGE_BYTES and b"\0" not in body:
            parts.append(body)  # at once: no key has a line break, and this body does not hide escapes in the fields
        else:
            self.judge(body)
        self.judge(b"\n".join(parts))

    def watch(self) -> Watch:
        """Return a watch over one body or one direction of a socket."""
        return Watch(self)

    def alarm(self) -> UpstreamInvalid:
        """Tell the operator, and return what ends the answer."""
        self._found()
        _log.warning("upstream's answer held a fal key of this proxy and was cut; find out which app echoes it")
        return UpstreamInvalid("upstream's answer held what must not leave the proxy", written=True)

    def holds_key(self, data: bytes) -> bool:
        """Say whether RUN_CHARS of a secret stand here in a row, in any form."""
        if self._holds_run(data):
            return True
        find = data.find
        if find(b"%") < 0 and find(b"\\") < 0:
            return False
        return self._holds_escapes(data) and self._holds_run(_unescaped(data))

    def _holds_run(self, data: bytes) -> bool:
        if len(data) >= _LARGE_BYTES:
            return any(self._holds_run_of(anchor, data) for anchor in self._anchors if _libc_holds(data, anchor))
        if data.translate(self._alphabet).find(self._shortest) < 0:
            return False
        return any(self._holds_run_of(anchor, data) for anchor in self._anchors if anchor in data)

    def _holds_run_of(self, anchor: bytes, data: bytes) -> bool:
        return any(run in data for run in self._runs[anchor])

    def _holds_escapes(self, data: bytes) -> bool:
        # What has a NUL is no text, and escapes are text's; compressed bytes are full of signs that begin one.
        if b"\0" in data:
            return False
        percent, json = self._escapes
        return (b"%" in data and percent.search(data) is not None) or (b"\\" in data and json.search(data) is not None)

    def tail_bytes(self, end: bytes) -> int:
        """Return how many bytes at the end of `end` may be the beginning of a key: 0, or enough for TAIL_CHARS."""
        plain = not (b"%" in end or b"\\u" in end or b"\\" in end[-_ESCAPE_BYTES:])
        last = end if plain else _unescaped(_without_begun(end))
        for tail, pieces in self._tails.items():
            if last[-tail:] in pieces:
                break
        else:
            return 0
        for size in range(min(len(end), _OVERLAP_BYTES), 0, -1):
            piece = end[-size:] if plain else _unescaped(_without_begun(end[-size:]))
            if any(len(piece) >= tail and piece in text for text, _, tail in self._forms):
                return size
        return 0


class Watch:
    """One body on its way down. `feed` returns what may go; `held` is what waits for the next piece or for `release`."""

    def __init__(self, guard: KeyGuard) -> None:
        self.held = b""
        self._guard = guard
        self._end = b""  # of everything fed so far, gone or held

    def feed(self, data: bytes) -> bytes:
        """Take the next piece and return what may go down now. Raises UpstreamInvalid when a key would."""
        guard = self._guard
        seam = self._end + data[:_OVERLAP_BYTES]
        if guard.holds_key(seam) or (len(data) > _OVERLAP_BYTES and guard.holds_key(data)):
            self.held = b""
            raise guard.alarm()
        whole = self.held + data if self.held else data
        self._end = (data if len(data) >= _OVERLAP_BYTES else seam)[-_OVERLAP_BYTES:]
        size = min(guard.tail_bytes(self._end), len(whole))
        if not size:
            self.held = b""
            return whole
        self.held = whole[-size:]
        return whole[:-size]

    def release(self) -> bytes:
        """Return what was held back: it has waited long enough, or nothing comes after it."""
        held, self.held = self.held, b""
        return held


async def watched(
    first: bytes, read: Callable[[], Awaitable[bytes]], watch: Watch, *, until_clear: bool = False
) -> AsyncGenerator[bytes]:
    """Yield what may go down of `first` and of what `read` returns until it returns b"", or until nothing is held back.

    Raises what `read` and the watch raise; what was read before a failure of `read` comes out before the failure does.
    """
    loop = asyncio.get_running_loop()
    data, held_until = first, loop.time() + HOLD_SECONDS
    while True:
        if data:
            if passed := watch.feed(data):
                yield passed
            if until_clear and not watch.held:
                return
            if len(watch.held) <= len(data):  # else some of it waited for this piece already
                held_until = loop.time() + HOLD_SECONDS
        try:
            if not watch.held:
                data = await read()
            else:
                reading = asyncio.ensure_future(read())
                try:
                    await asyncio.wait([reading], timeout=held_until - loop.time())
                    if not reading.done():
                        yield watch.release()
                    data = await reading
                finally:
                    reading.cancel()
        except FalProxyError:
            if rest := watch.release():
                yield rest
            raise
        if not data:
            break
    if rest := watch.release():
        yield rest


def _alphabet_of(forms: Iterable[_Form]) -> tuple[bytes, bytes]:
    """Return what makes 1 of every character of these, and what their shortest run comes to: so many of it in a row."""
    found = list(forms)
    characters = frozenset(b"".join(form.text for form in found))
    table = bytes(value in characters for value in range(256))
    return table, b"\1" * min((form.run for form in found), default=RUN_CHARS)


def _escapes_of(alphabet: frozenset[int]) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """Return what finds %XX and \\u00XX where XX is one of these characters: in two, because `re` is fast from a literal."""
    codes = []
    for high in sorted({value >> 4 for value in alphabet}):
        low = "".join(f"{value & 15:x}{value & 15:X}" for value in sorted(alphabet) if value >> 4 == high)
        codes.append(f"[{high:x}{high:X}][{low}]")
    chosen = "|".join(codes) or "(?!)"
    return re.compile(f"%(?:{chosen})".encode()), re.compile(rf"\\u00(?:{chosen})".encode())


def _pieces(forms: Iterable[_Form], size: int) -> frozenset[bytes]:
    texts = [form.text for form in forms if form.tail == size]
    return frozenset(text[at : at + size] for text in texts for at in range(len(text) - size + 1))


def _without_begun(data: bytes) -> bytes:
    """Leave out an escape at the end that is not whole yet."""
    begun = _BEGUN.search(data, max(0, len(data) - _ESCAPE_BYTES + 1))
    return data[: begun.start()] if begun else data


def _unescaped(data: bytes) -> bytes:
    return unquote_to_bytes(data.replace(b"\\u00", b"%"))


def _libc_search() -> Callable[[bytes, bytes], bool]:
    """Return libc's memmem, which is three times as fast as Python's own search in large data; without one, the latter."""
    try:
        memmem = ctypes.PyDLL(None).memmem
    except (OSError, AttributeError):
        return lambda data, piece: piece in data
    memmem.restype = ctypes.c_void_p
    memmem.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
    return lambda data, piece: memmem(data, len(data), piece, len(piece)) is not None


_libc_holds = _libc_search()
