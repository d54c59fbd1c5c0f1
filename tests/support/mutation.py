"""Raw HTTP that is almost right: rows of the corpus, bent at random. Knows nothing of what should come of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

TOKENS = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b"\0",
        b"\t",
        b" ",
        b":",
        b",",
        b";",
        b'"',
        b"\x0b",
        b"\x7f",
        b"\x80",
        b"\xa0",
    ),
    *(b"0\r\n\r\n", b"2\r\n{}\r\n", b"0", b"-", b"+", b"0x", b"ffffffffffffffff", b"1e1", b"100000000000000000000"),
    b"Content-Length: 0\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive, upgrade\r\nUpgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
    b"Host: proxy.test\r\n",
    b"X-Fal-Target-Url: https://queue.fal.run/fal-ai/smuggled/echo\r\n",
    b"X: y\r\n",
    b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: proxy.test\r\n\r\n",
    b"POST /api/fal/proxy/queue.fal.run/fal-ai/smuggled/echo HTTP/1.1\r\nHost: proxy.test\r\nContent-Length: 2\r\n\r\n{}",
]

Mutation = Callable[[random.Random, bytearray, Sequence[bytes]], None]


def mutate(chance: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return a seed after one to six mutations."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 6))):
        chance.choice(MUTATIONS)(chance, data, seeds)
    return bytes(data)


def packets(chance: random.Random, data: bytes) -> list[bytes]:
    """Return `data` in one to five pieces."""
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice((0, 0, 1, 2, 4))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if end > start]


def _place(chance: random.Random, data: bytearray) -> int:
    return chance.randrange(len(data) + 1)


def _insert(chance: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    place = _place(chance, data)
    data[place:place] = chance.choice(TOKENS)


def _insert_field(chance: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    ends = [place + 2 for place in range(len(data)) if data[place : place + 2] == b"\r\n"]
    if ends:
        place = chance.choice(ends)
        data[place:place] = chance.choice(TOKENS)


def _flip(chance: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    if data:
        data[chance.randrange(len(data))] = chance.randrange(256)


def _delete(chance: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    start = _place(chance, data)
    del data[start : start + chance.choice((1, 1, 2, 4, 30))]


def _delete_line(chance: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    lines = bytes(data).split(b"\r\n")
    del lines[chance.randrange(len(lines))]
    data[:] = b"\r\n".join(lines)


def _repeat(chance: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    start = _place(chance, data)
    piece = data[start : start + chance.choice((1, 2, 10, 60))]
    data[start:start] = piece * chance.choice((1, 1, 2, 20))


def _swap_case(chance: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    start = _place(chance, data)
    data[start : start + 12] = bytes(data[start : start + 12]).swapcase()


def _append_seed(chance: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    data += chance.choice(seeds)


def _splice(chance: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    other = chance.choice(seeds)
    data[_place(chance, data) :] = other[chance.randrange(len(other) + 1) :]


MUTATIONS: list[Mutation] = [
    _insert,
    _insert_field,
    _insert_field,
    _flip,
    _delete,
    _delete_line,
    _repeat,
    _swap_case,
    _append_seed,
    _splice,
]
