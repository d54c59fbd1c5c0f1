"""What the kernel holds for us and we have not seen: handshakes under way, connections not accepted, bytes not read."""

from __future__ import annotations

import contextlib
import ctypes
import select
import socket
import struct
import sys

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; Python has no name for it
_SYN, _ACK, _FLAGS_AT = 0x02, 0x10, 13  # of a TCP header (RFC 9293 §3.1)
_ALL = 0xFFFFFFFF
# Classic BPF, as a TCP socket sees a segment: from its TCP header on. (code, jump if true, jump if false, operand)
_DROP_FIRST_SYN = [
    (0x30, 0, 0, _FLAGS_AT),  # load the byte of flags
    (0x54, 0, 0, _SYN | _ACK),
    (0x15, 0, 1, _SYN),  # a SYN alone, else skip one
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, _ALL),  # pass
]


def turn_away(listening: socket.socket) -> None:
    """Let no handshake begin any more; those under way may end, and connections may still be accepted.

    Who knocks hears nothing, knocks again after a second, as TCP does by itself, and is then refused, or meets another process
    on the same port. A backlog of zero would do the same to handshakes under way. Without such filters (Linux has them)
    nothing changes.
    """
    if sys.platform != "linux":
        return
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_FIRST_SYN)
    held = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HP", len(_DROP_FIRST_SYN), ctypes.addressof(held))
    with contextlib.suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


def is_waiting(sock: socket.socket | None) -> bool:
    """Say whether there is something to accept, or to read; None, a connection without a socket: no."""
    if sock is None or (file := sock.fileno()) < 0:
        return False
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(0))
