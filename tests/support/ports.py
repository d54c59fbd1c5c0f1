"""Ports for those who can only be told one in advance: servers in processes of their own."""

from __future__ import annotations

import itertools
import os
import random
import socket

_FIRST = 20_000  # to 32,000: below what the kernel gives to whoever asks for any (net.ipv4.ip_local_port_range)
_OF_ONE = 3_000  # of each process of the suite, of which there are no more than four
_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw3").removeprefix("gw")) % 4
_next = itertools.count(random.randrange(_OF_ONE))


def free_port() -> int:
    """Return a port of loopback that nobody listens on, nor will until it is asked for: it is named once only."""
    for number in itertools.islice(_next, _OF_ONE):
        port = _FIRST + _PROCESS * _OF_ONE + number % _OF_ONE
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("every port is taken")
