"""Pools of fal keys that hold canaries, and what fal says of a key that it refuses."""

from __future__ import annotations

from dataclasses import dataclass

from fal_proxy.environment import Secret
from fal_proxy.upstream.credentials import FalKey
from fal_proxy.upstream.keys import Key, KeyPool

INVALID = (401, b'{"detail":"invalid key credentials"}')
LOCKED = (403, b'{"detail":"User is locked. Reason: Exhausted balance. Top up your balance"}')


@dataclass
class Clock:
    """A clock that stands still until a test moves it."""

    now: float = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def key(name: str, weight: int = 1) -> FalKey:
    """Return a fal key whose halves tell which it is."""
    return FalKey(Secret(f"{name}-the-public-half:secret-canary-of-{name}"), weight)


def pool(*keys: FalKey, clock: Clock | None = None) -> KeyPool:
    """Return a pool of them."""
    return KeyPool(keys, clock=clock or Clock())


def refuse(key: Key, said: tuple[int, bytes] = INVALID) -> None:
    """Let fal refuse a key, in its own words."""
    key.answered(*said, from_job=False, paid=True)
