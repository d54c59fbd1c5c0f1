"""What `serve` does to its own process, so that a secret is in fewer places than its memory. Never done to a host of ours.

- No core dumps: `RLIMIT_CORE` 0, and on Linux `PR_SET_DUMPABLE` 0, because a limit of 0 does not stop a `core_pattern`
  that pipes; it also keeps other processes of the same user from attaching and from reading `/proc/<pid>/environ`.
- The secrets leave the environment once they are read: the bytes themselves are overwritten, since the kernel shows in
  `/proc/<pid>/environ` what the process was started with, and `unsetenv` only forgets where it is.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterable, MutableMapping

_PR_SET_DUMPABLE = 4  # <linux/prctl.h>


def forbid_core_dumps() -> None:
    """Leave no memory image behind, however the process ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        except (OSError, AttributeError):
            pass  # a libc without prctl: the limit has to do


def forget_variables(names: Iterable[str], environ: MutableMapping[str, str] = os.environ) -> None:
    """Overwrite and remove these variables of the process."""
    try:
        getenv = ctypes.CDLL(None).getenv
    except (OSError, AttributeError):
        getenv = None
    for name in names:
        if name not in environ:
            continue
        if getenv is not None:
            getenv.restype, getenv.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
            if address := getenv(name.encode()):
                ctypes.memset(address, ord("x"), len(ctypes.string_at(address)))
        del environ[name]
