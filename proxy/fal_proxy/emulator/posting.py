"""One POST to somebody's server, on a connection of its own: bounded in time and in what is read of the answer.

Follows no redirect, keeps no cookie, reads no environment but OpenSSL's. Knows no fal.
"""

import asyncio
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from urllib.parse import quote, urlsplit

import httptools

_ANSWER_BYTES = 64 * 1024
_PIECE_BYTES = 64 * 1024
_PLAIN = "!$%&'()*+,/:;=?@[]~"  # what stands in a target as it is; % because escapes are kept


class PostError(Exception):
    """No answer came; the text says why."""


@dataclass(frozen=True)
class Destination:
    """Where a URL leads: to connect to, and to write into the head."""

    host: str
    port: int
    tls: bool
    authority: str
    target: str


def read_url(url: str) -> Destination:
    """Read an http or https URL. Raises ValueError for one that nothing can be sent to."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ValueError("not an http or https URL")
    host = parts.hostname if ":" in parts.hostname else parts.hostname.encode("idna").decode()
    shown = f"[{host}]" if ":" in host else host
    authority = shown if parts.port is None else f"{shown}:{parts.port}"
    target = quote(parts.path or "/", _PLAIN) + (f"?{quote(parts.query, _PLAIN)}" if parts.query else "")
    tls = parts.scheme == "https"
    return Destination(host, parts.port or (443 if tls else 80), tls, authority, target)


async def post(
    to: Destination,
    headers: Iterable[tuple[str, str]],
    body: bytes,
    *,
    timeout_seconds: float,
    cut_after_bytes: int | None = None,
) -> int:
    """Send a body and return the status of the answer.

    `cut_after_bytes` closes the connection after so much of the body, so that no answer comes. Raises PostError.
    """
    lines = [f"POST {to.target} HTTP/1.1", f"Host: {to.authority}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    head = "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")
    try:
        async with asyncio.timeout(timeout_seconds):
            reader, writer = await asyncio.open_connection(
                to.host, to.port, ssl=trusted_by_default() if to.tls else None
            )
            try:
                if cut_after_bytes is None:
                    return await _exchange(reader, writer, head + body)
                writer.write(head + body[:cut_after_bytes])
                writer.close()
                await writer.wait_closed()
                raise PostError(f"cut after {cut_after_bytes} of {len(body)} bytes")
            finally:
                writer.transport.abort()
    except TimeoutError as error:
        raise PostError(f"no answer within {timeout_seconds:g} s") from error
    except OSError as error:
        raise PostError(error.strerror or type(error).__name__) from error


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    # Sent while the answer is awaited: a server may refuse a body before it has read all of it.
    sending = asyncio.create_task(_send(writer, request))
    try:
        return await _answer(reader)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _send(writer: asyncio.StreamWriter, request: bytes) -> None:
    for start in range(0, len(request), _PIECE_BYTES):
        writer.write(request[start : start + _PIECE_BYTES])
        await writer.drain()


async def _answer(reader: asyncio.StreamReader) -> int:
    answer = _Answer()
    left = _ANSWER_BYTES
    while not answer.complete and left > 0:
        piece = await reader.read(left)
        if not piece:
            break
        left -= len(piece)
        try:
            answer.parser.feed_data(piece)
        except httptools.HttpParserError as error:
            if answer.status is None:
                raise PostError("the answer is no HTTP") from error
            break  # such as the body of a 204: the status has been said
    if answer.status is None:
        raise PostError("the connection ended without an answer")
    return answer.status


class _Answer:
    """httptools' callbacks; interim answers are passed over."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.status: int | None = None
        self.complete = False

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if status >= 200:
            self.status = status

    def on_message_complete(self) -> None:
        self.complete = self.status is not None


@cache
def trusted_by_default() -> ssl.SSLContext:
    """Return what this machine trusts, read once: OpenSSL takes other roots from SSL_CERT_FILE."""
    return ssl.create_default_context()
