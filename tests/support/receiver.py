"""The server that fal's webhooks go to, owned by the tests: keeps what came, byte for byte, and answers as it is told.

Also how a test asks an emulator for webhooks and for its keys.

Signatures are judged here from the JWKS alone, by joserfc's reading of the keys; no code of the emulator's takes part.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from joserfc.jwk import OKPKey

from support.emulated import Emulated

KEY = {"authorization": "Key id:secret"}
WAIT_SECONDS = 20.0
_FIELDS = ("request-id", "user-id", "timestamp", "signature")


@dataclass(frozen=True)
class Received:
    """One POST; `complete` is false when the connection ended before its content-length."""

    head: str  # the request line and the fields, as sent
    headers: dict[str, str]
    body: bytes
    complete: bool

    @property
    def told(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)

    @property
    def request_id(self) -> str:
        """Return the id that the body names."""
        return str(self.told["request_id"])

    @property
    def timestamp(self) -> int:
        """Return when it was signed."""
        return int(self.headers["x-fal-webhook-timestamp"])

    @property
    def message(self) -> bytes:
        """Return what the signature covers."""
        request_id, user_id, timestamp, _ = (self.headers[f"x-fal-webhook-{field}"] for field in _FIELDS)
        return "\n".join([request_id, user_id, timestamp, hashlib.sha256(self.body).hexdigest()]).encode()

    def signed(self, jwks: dict[str, Any]) -> bool:
        """Tell whether one of the keys has signed this."""
        signature = bytes.fromhex(self.headers["x-fal-webhook-signature"])
        return any(_verifies(OKPKey.import_key(key), signature, self.message) for key in jwks["keys"])


Answer = Callable[[Received], Awaitable[bytes]]


class Receiver:
    """A running server; `answers` are statuses for the first requests, the last one is for all that follow."""

    def __init__(self, url: str, answer: Answer) -> None:
        self.url = url
        self.received: list[Received] = []
        self._answer = answer
        self._arrival = asyncio.Event()

    async def arrived(self, count: int) -> list[Received]:
        """Wait until so many requests have come, whole or cut, and return all."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.received) < count:
                self._arrival.clear()
                await self._arrival.wait()
        return self.received

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, one request."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            fields = (line.partition(":") for line in head.split("\r\n")[1:] if line)
            headers = {name.lower(): value.strip() for name, _, value in fields}
            length = int(headers["content-length"])
            try:
                request = Received(head, headers, await reader.readexactly(length), complete=True)
            except asyncio.IncompleteReadError as error:
                request = Received(head, headers, error.partial, complete=False)
            self.received.append(request)
            self._arrival.set()
            writer.write(await self._answer(request))
            await writer.drain()
        except OSError:
            pass  # who has left gets no answer
        finally:
            writer.close()


@asynccontextmanager
async def receiving(
    *statuses: int, answer: Answer | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Receiver]:
    """Run a receiver until the block ends; it answers with these statuses in order, the last forever, or by `answer`."""
    left = list(statuses or (200,))

    async def in_order(_: Received) -> bytes:
        return status_answer(left.pop(0) if len(left) > 1 else left[0])

    server = await asyncio.start_server(lambda r, w: receiver.serve(r, w), "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    receiver = Receiver(f"{'https' if tls else 'http'}://127.0.0.1:{port}", answer or in_order)
    try:
        yield receiver
    finally:
        server.close()  # not waited for: a test may leave a caller without an answer


def status_answer(status: int) -> bytes:
    """Return an answer with that status and a body of two bytes."""
    return f"HTTP/1.1 {status} X\r\nlocation: /elsewhere\r\ncontent-length: 2\r\n\r\nok".encode()


async def submit(
    client: httpx2.AsyncClient, fal: Emulated, webhook: str, endpoint: str = "/a/b", given: Any = None, **headers: str
) -> str:
    """Submit a job whose end is to be told to `webhook` and return its id."""
    url = fal.at("queue.fal.run", f"{endpoint}?fal_webhook={quote(webhook, safe='')}")
    body = given if isinstance(given, bytes) else json.dumps(given or {}).encode()
    answer = await client.post(url, content=body, headers=headers)
    assert answer.status_code == 200
    request_id: str = answer.json()["request_id"]
    assert answer.json()["gateway_request_id"] == request_id
    return request_id


async def shown_keys(client: httpx2.AsyncClient, fal: Emulated, host: str = "rest.fal.ai") -> Any:
    """Return the JWKS."""
    answer = await client.get(fal.at(host, "/.well-known/jwks.json"))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    return answer.json()


def _verifies(key: OKPKey, signature: bytes, message: bytes) -> bool:
    public = key.public_key
    assert isinstance(public, Ed25519PublicKey)
    try:
        public.verify(signature, message)
    except InvalidSignature:
        return False
    return True
