"""A journal's segment as bytes: frames of puts, a title before them, and what of a damaged one is to be believed.

A frame is a length, a CRC-32 of the payload, a CRC-32 of these two, and the payload, a MessagePack list of puts. With its
own checksum a damaged length is no short frame. What the puts mean is for whoever the journal is kept for.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec

from fal_proxy.stores.holdings import Put

_HEAD = struct.Struct("<III")
_CHECKED = struct.Struct("<II")  # the part of the head that its own checksum covers
_LIST = struct.Struct(">BI")  # MessagePack's head of a list, so that puts encoded one by one make one payload
TITLE: Put = ("fal-proxy journal", 2)  # the first put of each segment, with the format's version
_READ: tuple[Put, ...] = (("fal-proxy journal", 1), TITLE)  # 1: entries did not name their payers
COMPLETE: Put = ("complete",)  # the last of a snapshot
REMEDY = (
    "restore the folder from a backup, or move it away and lose what was spent and who owns which request"
    " (in events: what fal told and is still to be delivered)"
)
_SLICE = 250
_SLICE_BYTES = 1024 * 1024
_log = logging.getLogger(__name__)
encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[Any, ...]]).decode


class Journalled(Protocol):
    """What a journal is kept for: state that tells its changes as puts, and can be told them again."""

    def take_puts(self) -> list[Put]:
        """Return what changed since the last time."""

    def snapshot(self) -> Iterator[Put]:
        """Yield a put of everything; between two of them the state may go on changing."""

    def apply(self, put: Put) -> None:
        """Repeat a put. Raises ValueError for what this version does not know."""

    def arrange(self) -> None:
        """Bring into order what was repeated, once after the last put."""


def slices(puts: Iterator[Put]) -> Iterator[list[bytes]]:
    """Yield puts encoded, a frame's worth at a time; none is asked for before its slice is."""
    part: list[bytes] = []
    size = 0
    for put in puts:
        part.append(encode(put))
        size += len(part[-1])
        if len(part) == _SLICE or size >= _SLICE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def frame(puts: list[bytes]) -> bytes:
    """Return encoded puts as one frame."""
    payload = _LIST.pack(0xDD, len(puts)) + b"".join(puts)
    checked = _CHECKED.pack(len(payload), zlib.crc32(payload))
    return checked + zlib.crc32(checked).to_bytes(4, "little") + payload


def frames(file: BinaryIO) -> Iterator[tuple[list[Put], int]]:
    """Yield the puts of each whole frame from here on, and where it ends. Raises ValueError for damage.

    A last frame that is not whole is not yielded: it ends early, or, after a power cut, was partly never written.
    """
    start = file.tell()
    size = os.fstat(file.fileno()).st_size
    while size - start >= _HEAD.size:
        head = file.read(_HEAD.size)
        length, checksum, head_checksum = _HEAD.unpack(head)
        if zlib.crc32(head[: _CHECKED.size]) != head_checksum:
            if any(head) or any(file.read()):
                raise ValueError(f"is damaged at byte {start}: {REMEDY}")
            return
        end = start + _HEAD.size + length
        if end > size:
            return
        payload = file.read(length)
        if zlib.crc32(payload) != checksum:
            if end < size:
                raise ValueError(f"is damaged at byte {start}: {REMEDY}")
            return
        yield _decode(payload), end
        start = end


def repeat(state: Journalled, path: Path, *, last: bool) -> bool:
    """Apply one segment; return whether its snapshot is complete. Of the last one, a torn end is cut off.

    Raises ValueError, with what can be done, for what does not read back.
    """
    complete = False
    with path.open("rb") as file:
        puts, whole = next(frames(file), ([("",)], 0))
        if puts[0][0] != TITLE[0]:
            raise ValueError(f"is not a segment of a journal: {REMEDY}")
        if puts[0] not in _READ:
            raise ValueError("was written by a newer version of fal-proxy: start that one")
        for puts, end in frames(file):
            for put in puts:
                if put == COMPLETE:
                    complete = True
                else:
                    state.apply(put)
            whole = end
        size = file.seek(0, os.SEEK_END)
    if whole < size:
        if not last:
            raise ValueError(f"is damaged at byte {whole}: {REMEDY}")
        _log.warning("%s: cut off %d bytes that were being written when the last process ended", path, size - whole)
        os.truncate(path, whole)
    return complete
