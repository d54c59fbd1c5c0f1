"""One traced exchange from both ends: a caller in one line, and a fal that keeps what it was asked."""

from __future__ import annotations

from support.peers import Peer
from support.proxied import MOUNT
from support.raw import raw_client, request
from support.scripts import ok, read_request

RUN = MOUNT + "/fal.run/fal-ai/flux/dev"
JSON = {"Content-Type": "application/json"}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


class Heads:
    """An upstream that answers everything alike and keeps what it was asked."""

    def __init__(self, answer: bytes = ok(b'{"images": []}', b"x-fal-billable-units: 1.50")) -> None:
        self.seen: list[bytes] = []
        self._answer = answer

    async def script(self, peer: Peer) -> None:
        """Answer until the connection ends."""
        while True:
            head, _ = await read_request(peer)
            self.seen.append(head)
            await peer.send(self._answer)

    def field(self, name: str) -> str | None:
        """Return a field of the last request, None without it."""
        found = [
            line.partition(b":")[2].strip()
            for line in self.seen[-1].split(b"\r\n")
            if line.startswith(name.encode() + b":")
        ]
        assert len(found) < 2
        return found[0].decode() if found else None


async def ask(port: int, *fields: dict[str, str], method: str = "POST", path: str = RUN, body: bytes = b"{}") -> int:
    """Send one request and return the answer's status."""
    async with raw_client(port) as client:
        await client.send(request(method, path, {name: value for each in fields for name, value in each.items()}, body))
        return (await client.answer()).status
