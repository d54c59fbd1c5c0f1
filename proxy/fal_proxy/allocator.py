"""The C library's allocator, told once what a process that lives for months wants. Never told to a host of ours.

glibc hands large blocks back to the system when they are freed, but each freed one raises the size from which blocks count
as large, up to 32 MiB. From then on they are cut from the heap, between small ones that stay, and leave holes: a process
with thousands of streams grew by a megabyte or two with every such block. A threshold that is set does not move.
"""

from __future__ import annotations

import ctypes

LARGE_BYTES = 1024 * 1024  # above the 256 KiB that one read of a socket takes, so that no stream pays for a mapping
_M_MMAP_THRESHOLD = -3  # <malloc.h>


def keep_large_blocks_apart() -> None:
    """Let blocks of LARGE_BYTES and more always be mappings of their own. Does nothing where the C library is no glibc."""
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
    except (OSError, AttributeError):
        pass  # musl and macOS have no mallopt, and other ways
