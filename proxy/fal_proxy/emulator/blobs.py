"""Bytes that may be large: kept in memory while small, in an unnamed temporary file beyond that.

A blob is a list of extents in one spool, so the parts of a multipart upload, which arrive in any order and side by
side, become one file without being copied. Knows nothing of names, URLs or lifetimes.
"""

import hashlib
import tempfile
import weakref
from collections.abc import Iterator, Sequence

IN_MEMORY_BYTES = 8 * 1024 * 1024
_PIECE_BYTES = 256 * 1024


class Spool:
    """An append-only store of bytes; parts are better written straight to disk (`in_memory_bytes` small)."""

    def __init__(self, in_memory_bytes: int = IN_MEMORY_BYTES) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=in_memory_bytes)  # noqa: SIM115 (lives as long as its blobs)
        weakref.finalize(self, self._file.close)
        self._limit = in_memory_bytes
        self.size = 0

    @property
    def on_disk(self) -> bool:
        """Whether the content has moved to a file."""
        return self.size > self._limit

    def append(self, chunk: bytes) -> int:
        """Write at the end and return where."""
        offset = self.size
        self._file.seek(offset)
        self._file.write(chunk)
        self.size += len(chunk)
        return offset

    def read(self, offset: int, length: int) -> bytes:
        """Read within what has been written."""
        self._file.seek(offset)
        return self._file.read(length)


class Blob:
    """One sequence of bytes inside a spool, with its MD5 as the entity tag that object stores use."""

    def __init__(self, spool: Spool | None = None) -> None:
        self.spool = spool if spool is not None else Spool()
        self.size = 0
        self._extents: list[tuple[int, int]] = []
        self._digest = hashlib.md5(usedforsecurity=False)
        self._joined_parts = 0

    @classmethod
    def of(cls, content: bytes) -> "Blob":
        """Make a blob that holds those bytes."""
        blob = cls()
        blob.write(content)
        return blob

    @classmethod
    def joined(cls, parts: Sequence["Blob"]) -> "Blob":
        """Make one blob of parts that share a spool; their bytes stay where they are."""
        blob = cls(parts[0].spool)
        for part in parts:
            blob._extents += part._extents
            blob.size += part.size
            blob._digest.update(part._digest.digest())
        blob._joined_parts = len(parts)
        return blob

    @property
    def etag(self) -> str:
        """The quoted entity tag; of joined parts it ends in their number, as in object stores."""
        suffix = f"-{self._joined_parts}" if self._joined_parts else ""
        return f'"{self._digest.hexdigest()}{suffix}"'

    def write(self, chunk: bytes) -> None:
        """Append bytes."""
        offset = self.spool.append(chunk)
        if self._extents and sum(self._extents[-1]) == offset:
            start, length = self._extents[-1]
            self._extents[-1] = (start, length + len(chunk))
        else:
            self._extents.append((offset, len(chunk)))
        self._digest.update(chunk)
        self.size += len(chunk)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from start to before stop in pieces of bounded size."""
        left_out, wanted = start, (self.size if stop is None else stop) - start
        for offset, length in self._extents:
            if left_out >= length:
                left_out -= length
                continue
            at, end = offset + left_out, offset + length
            left_out = 0
            while at < end and wanted > 0:
                piece = self.spool.read(at, min(_PIECE_BYTES, end - at, wanted))
                at += len(piece)
                wanted -= len(piece)
                yield piece

    def bytes(self) -> bytes:
        """Return everything at once; for small blobs."""
        return b"".join(self.read())
