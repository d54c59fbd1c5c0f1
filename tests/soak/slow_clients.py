"""Slow callers by the thousand: `./run env PYTHONPATH=tests python tests/soak/slow_clients.py`; takes four minutes."""

from __future__ import annotations

import asyncio
import resource

from support.raw import request
from support.slow_clients import PROGRAM, idle, never_reading, slowhttptest, target


async def main() -> None:
    """Run every attack and print a line about each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    many = min(5000, hard // 4)
    print("attack | before MiB | peak MiB | others served | not served | slowest ms | connections left")
    async with target() as proxy:
        attacks = {
            f"{many} connections that say nothing": idle(proxy.port, many, 15),
            f"{many} connections idle after an answer": idle(proxy.port, many, 20, request("GET", "/healthz")),
            f"{many} half heads": idle(proxy.port, many, 15, b"GET / HTTP/1.1\r\n"),
            "300 callers that never read": never_reading(proxy.port, 300, 60),
        }
        if PROGRAM is not None:
            attacks["slowhttptest: 3000 dripped heads"] = slowhttptest(proxy.port, "H", 3000, 30)
            attacks["slowhttptest: 3000 dripped bodies"] = slowhttptest(proxy.port, "B", 3000, 40)
        for name, attack in attacks.items():
            toll = await proxy.endure(attack)
            print(
                f"{name} | {toll.before_kib / 1024:.1f} | {toll.peak_kib / 1024:.1f} | {toll.served} | {toll.refused} "
                f"| {toll.slowest_seconds * 1000:.0f} | {toll.left}",
                flush=True,
            )


if __name__ == "__main__":
    asyncio.run(main())
