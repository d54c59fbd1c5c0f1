"""Large blocks of a long-lived process, in a process of its own: what it is told cannot be taken back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys
from fal_proxy.allocator import keep_large_blocks_apart

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
if "told" in sys.argv:
    keep_large_blocks_apart()
for _ in range(3):
    block = bytes(4 << 20)
    del block
before = libc.mallinfo2().hblks
block = bytes(2 << 20)
print(libc.mallinfo2().hblks - before)
"""


def mappings(*arguments: str) -> int:
    """Return how many mappings of its own a block of 2 MiB takes, after larger ones were freed."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc moves its threshold")
def test_large_block_is_a_mapping_of_its_own_even_after_larger_ones_were_freed() -> None:
    assert mappings("told") == 1
    assert mappings() == 0, "glibc no longer moves its threshold by itself: the setting is not needed"
