"""Chance that can be repeated: generators seeded by what they stand for. Nothing here is secret."""

import hashlib
from random import Random


def chance(*parts: object) -> Random:
    """Return a generator that depends on these values and on nothing else."""
    text = repr(parts).encode("utf-8", "surrogatepass")
    return Random(hashlib.sha256(text).digest())  # noqa: S311 (decides colours and words, guards nothing)
