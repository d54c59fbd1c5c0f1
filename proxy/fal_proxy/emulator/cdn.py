"""The file hosts: uploads by signed URL or with the CDN's bearer, whole or in parts, and public downloads.

No fal key belongs here. One that arrives is refused and noted, because a real file host would now know it.
"""

import re
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote

from . import answers, rest
from .answers import Answer, Headers
from .blobs import Blob, Spool
from .exchange import Exchange, Json
from .files import File
from .world import World

KEPT_UPLOADS = 200
_PARTS_IN_MEMORY_BYTES = 1024 * 1024
_CACHE_CONTROL = "public, max-age=5184000, immutable"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_TRAILERS = (
    re.compile(r"(?P<path>/.+)/multipart/(?P<upload>[^/]+)/(?P<part>\d+|complete)"),
    re.compile(r"(?P<path>/.+/[0-9a-f]{8}/[^/]+)/(?P<part>\d+|complete)"),
)


@dataclass
class Upload:
    """The parts of one file so far; they share a spool, so that joining them copies nothing."""

    file: File
    spool: Spool = field(default_factory=lambda: Spool(_PARTS_IN_MEMORY_BYTES))
    parts: dict[int, Blob] = field(default_factory=dict)


class Cdn:
    """The file hosts of one emulator."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._uploads: OrderedDict[str, Upload] = OrderedDict()

    async def serve(self, exchange: Exchange) -> Answer:
        """Serve one request on any of the file hosts."""
        if self._world.access.leaked_key(exchange):
            exchange.entry.notes.append("leak: a fal key reached a file host")
            return answers.detail(400, "A fal key must never be sent to a file host")
        if exchange.method in ("GET", "HEAD"):
            return await self._read(exchange)
        path = unquote(exchange.path)
        if path in ("/files/upload", "/files/upload/multipart"):
            return await self._create(exchange, multipart=path.endswith("/multipart"))
        for pattern in _TRAILERS:
            if match := pattern.fullmatch(path):
                key = match.groupdict().get("upload") or match["path"]
                return await self._part(exchange, match["path"], key, match["part"])
        if exchange.method != "PUT":
            return answers.detail(405, "Method Not Allowed")
        return await self._put(exchange, path)

    async def _create(self, exchange: Exchange, *, multipart: bool) -> Answer:
        if exchange.method != "POST":
            return answers.detail(405, "Method Not Allowed")
        if not self._world.access.cdn_bearer(exchange):
            return answers.detail(401, "Invalid or missing CDN token")
        content_type = exchange.headers.get("content-type", "application/octet-stream")
        name = exchange.headers.get("x-fal-file-name", "file")
        blob = Blob()
        if not multipart:
            await _fill(blob, exchange)
        path, file = self._world.files.reserve(unquote(name), content_type)
        rest.read_lifecycle(self._world, exchange, file)
        url = self._world.files.url(path)
        if not multipart:
            self._world.files.fill(file, blob)
            return answers.json_answer(200, {"access_url": url})
        upload_id = f"{self._world.rng.getrandbits(128):032x}"
        self._remember(upload_id, Upload(file))
        return answers.json_answer(200, {"access_url": url, "uploadId": upload_id})

    async def _put(self, exchange: Exchange, path: str) -> Answer:
        file = self._world.files.find(path)
        if file is None or not self._world.access.signed(exchange, path):
            return answers.detail(403, "The upload URL is not signed, or has expired")
        blob = Blob()
        await _fill(blob, exchange)
        file.content_type = exchange.headers.get("content-type", file.content_type)
        self._world.files.fill(file, blob)
        return Answer(200, [("etag", blob.etag)])

    async def _part(self, exchange: Exchange, path: str, key: str, part: str) -> Answer:
        """Serve one step of a multipart upload; the signed query stays the same behind every inserted segment."""
        file = self._world.files.find(path)
        allowed = self._world.access.cdn_bearer(exchange) if key != path else self._world.access.signed(exchange, path)
        if file is None or not allowed:
            return answers.detail(403, "The upload URL is not signed, or has expired")
        upload = self._uploads.get(key)
        if upload is None:
            if key != path:
                return answers.detail(404, "Upload not found")
            upload = self._remember(key, Upload(file))
        if part == "complete":
            return await self._complete(exchange, key, upload)
        number = int(part)
        if exchange.method == "POST":
            # fal's own toolkit asks Google's storage for each part's URL like this.
            url = self._world.files.url(f"{path}/{number}", exchange.host)
            return answers.json_answer(200, {"upload_url": f"{url}?{self._world.access.sign(path)}"})
        if exchange.method != "PUT":
            return answers.detail(405, "Method Not Allowed")
        blob = Blob(upload.spool)
        await _fill(blob, exchange)
        upload.parts[number] = blob
        # The JS client reads the body, fal's toolkit and the Python client read the header.
        return answers.json_answer(200, {"partNumber": number, "etag": blob.etag}, [("etag", blob.etag)])

    async def _complete(self, exchange: Exchange, key: str, upload: Upload) -> Answer:
        if exchange.method != "POST":
            return answers.detail(405, "Method Not Allowed")
        try:
            parts = _named_parts(upload, await exchange.json())
        except (ValueError, TypeError, KeyError):
            return answers.detail(400, "One or more of the specified parts could not be found")
        blob = Blob.joined(parts)
        self._world.files.fill(upload.file, blob)
        self._uploads.pop(key, None)
        return answers.json_answer(200, {"etag": blob.etag}, [("etag", blob.etag)])

    async def _read(self, exchange: Exchange) -> Answer:
        file = self._world.files.find(exchange.path)
        content = await self._world.files.load(file) if file and file.access != "hide" else None
        if file is None or content is None:
            return answers.detail(404, "Not Found")
        if file.access == "forbid":
            return answers.detail(403, "Forbidden")
        headers: Headers = [("etag", content.etag), ("cache-control", _CACHE_CONTROL), ("accept-ranges", "bytes")]
        known = [tag.strip().removeprefix("W/") for tag in exchange.headers.get("if-none-match", "").split(",")]
        if content.etag in known or "*" in known:
            return Answer(304, headers)
        headers.append(("content-type", file.content_type))
        span = _range(exchange, content)
        if span == "unsatisfiable":
            return Answer(416, [("content-range", f"bytes */{content.size}")])
        if span == "whole":
            return Answer(200, headers, _pieces(content, 0, content.size), content.size)
        start, stop = span
        headers.append(("content-range", f"bytes {start}-{stop - 1}/{content.size}"))
        return Answer(206, headers, _pieces(content, start, stop), stop - start)

    def _remember(self, key: str, upload: Upload) -> Upload:
        self._uploads[key] = upload
        while len(self._uploads) > KEPT_UPLOADS:
            self._uploads.popitem(last=False)
        return upload


async def _fill(blob: Blob, exchange: Exchange) -> None:
    async for chunk in exchange.chunks():
        blob.write(chunk)


async def _pieces(content: Blob, start: int, stop: int) -> AsyncGenerator[bytes, None]:
    for piece in content.read(start, stop):
        yield piece


def _named_parts(upload: Upload, body: Json) -> list[Blob]:
    """Return the parts a client lists, in order of number; clients may list them in order of arrival."""
    named: dict[int, str] = {}
    for part in body["parts"]:
        named[int(part["partNumber"] if "partNumber" in part else part["part_number"])] = part["etag"]
    if not named:
        raise ValueError("no parts")
    for number, etag in named.items():
        if upload.parts[number].etag.strip('"') != etag.strip('"'):
            raise ValueError("another part")
    return [upload.parts[number] for number in sorted(named)]


def _range(exchange: Exchange, content: Blob) -> tuple[int, int] | Literal["whole", "unsatisfiable"]:
    """Read a Range of one span (RFC 9110, 14.2); several spans, or a stale If-Range, get the whole."""
    match = _RANGE.fullmatch(exchange.headers.get("range", "").strip())
    if match is None or match.groups() == ("", "") or exchange.headers.get("if-range", content.etag) != content.etag:
        return "whole"
    first, last = match.groups()
    if not first:
        start, stop = max(0, content.size - int(last)), content.size
    else:
        start, stop = int(first), min(int(last) + 1 if last else content.size, content.size)
    if last and first and int(last) < int(first):
        return "whole"
    return (start, stop) if start < stop else "unsatisfiable"
