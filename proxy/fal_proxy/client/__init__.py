"""What a page loads from us: the realtime shim and its types. The same bytes for everybody.

Knows no caller, no setting and no ASGI.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from fal_proxy.errors import Refusal
from fal_proxy.headers import Headers, http_date, values
from fal_proxy.request import Request
from fal_proxy.routes import CLIENT, CLIENT_TYPES


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: what a 200, a 304 or an answer to HEAD says."""

    status: int
    headers: Headers
    body: bytes


# A page of any origin may load it.
OPEN = ((b"access-control-allow-origin", b"*"), (b"cross-origin-resource-policy", b"cross-origin"))


@dataclass(frozen=True, slots=True)
class File:
    """One file, and who may load it."""

    content: bytes
    content_type: bytes
    etag: bytes
    access: tuple[tuple[bytes, bytes], ...] = OPEN

    @classmethod
    def of(cls, path: Path, content_type: bytes, access: tuple[tuple[bytes, bytes], ...] = OPEN) -> File:
        """Read a file. Raises OSError."""
        content = path.read_bytes()
        return cls(content, content_type, b'"%s"' % hashlib.sha256(content).hexdigest()[:32].encode("ascii"), access)

    def answer(self, request: Request) -> Answer:
        """Answer a GET or HEAD. Raises Refusal: method_not_allowed, and bad_request for a query."""
        if request.method not in ("GET", "HEAD"):
            raise Refusal("method_not_allowed", "this route takes GET", headers=((b"allow", b"GET, HEAD"),))
        if request.query is not None:
            # Each query would be a module of its own to a browser, and a page would hold several.
            raise Refusal("bad_request", "this file takes no query")
        headers: Headers = [
            (b"etag", self.etag),
            (b"cache-control", b"no-cache"),  # kept, and asked about each time: it belongs to the proxy's version
            *self.access,
            (b"x-content-type-options", b"nosniff"),
            (b"date", http_date()),
        ]
        if self._is_known(request):
            return Answer(304, headers, b"")
        headers += [(b"content-type", self.content_type), (b"content-length", b"%d" % len(self.content))]
        return Answer(200, headers, self.content if request.method == "GET" else b"")

    def _is_known(self, request: Request) -> bool:
        """Say whether the caller has it already (RFC 9110 §13.1.2: any of a list, compared weakly)."""
        tags = [tag.strip() for line in values(request.headers, b"if-none-match") for tag in line.split(b",")]
        return any(tag == b"*" or tag.removeprefix(b"W/") == self.etag for tag in tags)


def integrity(content: bytes) -> str:
    """Return the hash that a page may pin a file to (Subresource Integrity)."""
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode("ascii")


# By their paths below the mount. TypeScript has no registered type; as text, a browser shows it.
FILES = {
    CLIENT.raw: File.of(Path(__file__).with_name("client.js"), b"text/javascript; charset=utf-8"),
    CLIENT_TYPES.raw: File.of(Path(__file__).with_name("client.d.ts"), b"text/plain; charset=utf-8"),
}
