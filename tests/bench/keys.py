"""What the fal keys cost: microseconds to choose one, and to watch what goes down for them.

`./run env PYTHONPATH=tests python tests/bench/keys.py`: the best of many short rounds, since others share the machine.
"""

from __future__ import annotations

import base64
import json
import os
import random
import time
from collections.abc import Callable
from functools import partial

from fal_proxy.environment import Secret
from fal_proxy.relay.guard import KeyGuard
from fal_proxy.upstream.credentials import FalKey
from fal_proxy.upstream.keys import KeyPool

CHUNK_BYTES = 64 * 1024
ROUNDS = 60
EVENT = b'data: {"status":"IN_PROGRESS","logs":[{"message":"step 3\\n"}]}\n\n'


def best_us(work: Callable[[], object], times: int) -> float:
    """Return the microseconds that one call takes when nobody disturbs it."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(times):
            work()
        best = min(best, time.perf_counter() - began)
    return best / times * 1e6


def chunks(secret: bytes) -> dict[str, bytes]:
    """Return chunks of every kind, some of which upstream would have to send on purpose."""
    noise = random.Random(1).randbytes(CHUNK_BYTES)
    answer = json.dumps(
        {"images": [{"url": "https://v3.fal.media/files/a/b.png", "width": 1024}], "prompt": "a harbour"}
    )
    texts = {
        "random bytes": noise,
        "JSON": answer.encode(),
        "base64": base64.b64encode(noise),
        "hex": noise.hex().encode(),
        "JSON with \\u00e9": json.dumps({"text": 'él dijo "hola"\n'}).encode(),
        "percent-encoded": b"https://x/y%20z%2Fq%3Da&",
        "15 of 16, repeated": secret[:15],
        "an anchor, repeated": secret[8:16],
        "only escaped digits": b"%61",
    }
    return {name: (text * (CHUNK_BYTES // len(text) + 1))[:CHUNK_BYTES] for name, text in texts.items()}


def main() -> None:
    """Print one line per measurement."""
    for count in (1, 2, 5):
        keys = [FalKey(Secret(f"id-{number}:{os.urandom(16).hex()}"), number + 1) for number in range(count)]
        pool = KeyPool(keys)
        choosing, finding = best_us(pool.choose, 1000), best_us(partial(pool.of_job, pool.choose().id), 1000)
        print(f"{count} keys: choose {choosing:.2f} us, of_job {finding:.2f} us")
        guard = KeyGuard()
        guard.watch_for([key.secret for key in keys])
        watch = guard.watch()
        secret = keys[0].secret.reveal().partition(":")[2].encode()
        for name, chunk in chunks(secret).items():
            taken = best_us(partial(watch.feed, chunk), 5)
            print(f"  {name:20} {taken:8.1f} us  {CHUNK_BYTES / taken:6.0f} MB/s")
        print(f"  {'one event':20} {best_us(partial(watch.feed, EVENT), 300):8.1f} us")
        fields = [(b"content-type", b"application/json"), (b"x-fal-request-id", b"f" * 36)] * 3
        print(f"  {'a head':20} {best_us(partial(guard.judge_fields, fields), 300):8.1f} us")


if __name__ == "__main__":
    main()
