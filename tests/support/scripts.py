"""Scripts for the upstream that tests own: read a request, give an answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from support.peers import Peer


def answering(*answers: bytes) -> Callable[[Peer], Awaitable[None]]:
    """Return a script that reads a request and gives the next answer, the last one for ever."""

    async def script(peer: Peer) -> None:
        given = 0
        while True:
            await read_request(peer)
            await peer.send(answers[min(given, len(answers) - 1)])
            given += 1

    return script


async def read_request(peer: Peer) -> tuple[bytes, bytes]:
    """Read one request, framed by content-length or chunked; return its head and its body."""
    head = await peer.read_head()
    return head, await read_body(peer, head)


async def read_body(peer: Peer, head: bytes) -> bytes:
    """Read the body that `head` announces."""
    fields = {line.partition(b":")[0]: line.partition(b":")[2].strip() for line in head.split(b"\r\n")[1:]}
    if fields.get(b"transfer-encoding") == b"chunked":
        body = b""
        while size := int(await peer.read_to(b"\r\n"), 16):
            body += await peer.read(size)
            await peer.read(2)
        await peer.read(2)
        return body
    return await peer.read(int(fields.get(b"content-length", b"0")))


def ok(body: bytes = b"{}", *fields: bytes) -> bytes:
    """Return a JSON answer with a content-length."""
    lines = [b"HTTP/1.1 200 OK", b"content-type: application/json", b"content-length: %d" % len(body), *fields]
    return b"\r\n".join([*lines, b"", body])
