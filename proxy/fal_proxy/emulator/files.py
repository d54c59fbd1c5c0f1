"""The files of the emulated CDN: uploaded ones as bytes, generated pictures as what to draw when somebody looks.

Bounded by number and by bytes, oldest first out. Knows names and lifetimes, not HTTP.
"""

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from urllib.parse import unquote, urlsplit

from .blobs import Blob
from .pictures import Gallery, Picture

HOST = "v3b.fal.media"
KEPT_FILES = 20_000
KEPT_MEMORY_BYTES = 512 * 1024 * 1024
KEPT_DISK_BYTES = 4 * 1024 * 1024 * 1024

_FILE_HOSTS = (HOST, "v3.fal.media", "fal.media", "storage.googleapis.com")


@dataclass
class File:
    """One file; `content` is None until it is uploaded."""

    name: str
    content_type: str
    content: Blob | Picture | None = None
    expires_at: float | None = None
    access: str = "allow"


class Files:
    """All files of one emulator by path (`/files/b/<8 hex>/<name>`)."""

    def __init__(self, public_url: str, rng: Random, clock: Callable[[], float], gallery: Gallery) -> None:
        self.gallery = gallery
        self._public_url = public_url.rstrip("/")
        self._rng = rng
        self._clock = clock
        self._files: OrderedDict[str, File] = OrderedDict()
        self._memory_bytes = 0
        self._disk_bytes = 0

    def reserve(self, file_name: str, content_type: str, folder: str = "/files/b") -> tuple[str, File]:
        """Make an empty file with a path of its own and return both."""
        name = safe_name(file_name)
        path = f"{folder}/{self._rng.getrandbits(32):08x}/{name}"
        file = File(name, content_type)
        self._files[path] = file
        self._evict()
        return path, file

    def publish(self, file_name: str, content_type: str, content: Blob | Picture) -> str:
        """Make a finished file and return its public URL."""
        path, file = self.reserve(file_name, content_type)
        self.fill(file, content)
        return self.url(path)

    async def load(self, file: File) -> Blob | None:
        """Return the bytes of a file, None when nothing has been uploaded yet."""
        if isinstance(file.content, Picture):
            return Blob.of(await self.gallery.show(file.content))
        return file.content

    def fill(self, file: File, content: Blob | Picture) -> None:
        """Give a reserved file its bytes."""
        self._count(file, -1)
        file.content = content
        self._count(file, 1)
        self._evict()

    def url(self, path: str, host: str = HOST) -> str:
        """Return the public URL of a path on one of the emulated hosts."""
        return f"{self._public_url}/{host}{path}"

    def find(self, path: str) -> File | None:
        """Return the live file at a raw path, None when there is none (any more)."""
        file = self._files.get(unquote(path))
        if file is not None and file.expires_at is not None and file.expires_at <= self._clock():
            return None
        return file

    def is_ours(self, url: str) -> bool:
        """Tell whether a URL in a model's input points at this CDN, by its public or by its real name."""
        return self._path(url) is not None

    def by_url(self, url: str) -> File | None:
        """Return the file behind a URL of ours."""
        path = self._path(url)
        return None if path is None else self.find(path)

    def _path(self, url: str) -> str | None:
        if url.startswith(self._public_url + "/"):
            host, _, path = url.removeprefix(self._public_url + "/").partition("?")[0].partition("/")
        else:
            try:
                parts = urlsplit(url)
            except ValueError:
                return None
            host, path = parts.netloc, parts.path.removeprefix("/")
        return f"/{path}" if host in _FILE_HOSTS else None

    def _count(self, file: File, sign: int) -> None:
        if isinstance(file.content, Picture):
            self._memory_bytes += sign * file.content.held_bytes
        elif file.content is not None and file.content.spool.on_disk:
            self._disk_bytes += sign * file.content.size
        elif file.content is not None:
            self._memory_bytes += sign * file.content.size

    def _evict(self) -> None:
        while (
            len(self._files) > KEPT_FILES
            or self._memory_bytes > KEPT_MEMORY_BYTES
            or self._disk_bytes > KEPT_DISK_BYTES
        ):
            _, file = self._files.popitem(last=False)
            self._count(file, -1)


def safe_name(file_name: str) -> str:
    """Reduce a client's file name to characters that need no escaping in a URL."""
    base = file_name.replace("\\", "/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", base)[-100:].lstrip(".") or "file"
