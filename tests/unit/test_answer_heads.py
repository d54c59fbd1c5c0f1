"""The head of an answer as it is written: nothing in a field can begin another one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from support.memory_socket import MemoryServer

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
Send = Callable[[dict[str, Any]], Awaitable[None]]

FIELDS = [
    (b"x", b"plain", True, "an ordinary field"),
    (b"x", b"a\tb", True, "a tab is white space"),
    (b"x", b"caf\xe9 \x80\xff", True, "obs-text"),
    (b"x", b"", True, "an empty value"),
    (b"x", b"a\r\nset-cookie: b", False, "a field of its own"),
    (b"x", b"a\nset-cookie: b", False, "a field of its own for lenient parsers"),
    (b"x", b"a\rset-cookie: b", False, "a field of its own for others"),
    (b"x\r\nset-cookie", b"b", False, "by its name"),
    (b"x", b"a\r\n\r\n<script>", False, "the end of the head"),
    (b"x", b"\n\r", False, "a pair the wrong way round"),
    (b"x", b"a\x00b", False, "NUL"),
    (b"x", b"a\x0bb", False, "a vertical tab"),
    (b"x", b"a\x1f", False, "the last of C0"),
    (b"x", b"a\x7f", False, "DEL"),
]


@pytest.mark.parametrize(("name", "value", "goes", "reason"), FIELDS, ids=[row[3] for row in FIELDS])
async def test_a_field_with_a_control_character_never_leaves(
    name: bytes, value: bytes, goes: bool, reason: str
) -> None:
    async def app(scope: dict[str, object], receive: object, send: Send) -> None:
        fields = [(name, value), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b""})

    caller = MemoryServer(app).connect()
    await caller.send(REQUEST)
    await caller.settle(lambda: caller.protocol._unanswered is None)
    written = bytes(caller.transport.written)
    head, end, _ = written.partition(b"\r\n\r\n")
    if goes:
        assert head.split(b"\r\n")[0] == b"HTTP/1.1 200 OK", reason
        assert b"%b: %b" % (name, value) in head.split(b"\r\n"), reason
        assert end
    else:
        assert not written, reason
        assert caller.transport.is_closing(), "the app is at fault, and its caller gets no half answer"
    caller.transport.close()
