"""Answers of upstream as hypothesis composes them: valid ones, and what becomes of them on a bad day."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st

Edits = list[tuple[int, int, bytes]]


class Made(NamedTuple):
    """An answer that was composed, and what a reader must find in it."""

    wire: bytes
    status: int
    fields: list[tuple[bytes, bytes]]
    body: bytes
    closes: bool


TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.!~", min_size=1, max_size=12)
VALUE = st.binary(max_size=20).map(
    lambda raw: bytes(byte for byte in raw if byte >= 0x20 and byte != 0x7F).strip(b" \t")
)


@st.composite
def answers(draw: st.DrawFn) -> Made:
    """Compose a valid answer with a random head, framing and body."""
    status = draw(st.sampled_from([200, 201, 206, 302, 400, 404, 422, 500, 599]))
    fields = [(b"x-" + name.encode(), value) for name, value in draw(st.lists(st.tuples(TOKEN, VALUE), max_size=5))]
    pieces = draw(st.lists(st.binary(min_size=1, max_size=300), max_size=6))
    body = b"".join(pieces)
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    own: list[tuple[bytes, bytes]] = []
    if framing == "length":
        own, content = [(b"Content-Length", b"%d" % len(body))], body
    elif framing == "chunked":
        extension = draw(st.sampled_from([b"", b";a", b";a=b", b';a="b c"']))
        trailer = draw(st.sampled_from([b"", b"x-late: 1\r\n", b"x-a: 1\r\nx-b:\r\n"]))
        own = [(b"Transfer-Encoding", b"chunked")]
        content = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
        content += b"0" + extension + b"\r\n" + trailer + b"\r\n"
    else:
        content = body
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 E\r\nlink: </a>\r\n\r\n"]))
    at = draw(st.integers(0, len(fields)))
    fields = fields[:at] + own + fields[at:]
    head = b"HTTP/1.1 %d X\r\n" % status + b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"
    lowered = [(name.lower(), value) for name, value in fields]
    return Made(interim * draw(st.integers(0, 2)) + head + content, status, lowered, body, framing == "close")


# Where, how many bytes go, what comes in their place.
EDITS = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 2), st.binary(min_size=1, max_size=4)), max_size=6)


def edited(wire: bytes, edits: Edits) -> bytes:
    """Return the bytes with each edit made."""
    changed = bytearray(wire)
    for position, removed, inserted in edits:
        at = position % (len(changed) + 1)
        changed[at : at + removed] = inserted
    return bytes(changed)
