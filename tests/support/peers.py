"""An upstream owned by the tests, on raw sockets: it sends, stalls, resets and records exactly as a script says.

Nothing is read unless the script reads, so a script decides about back-pressure too. As a plugin, this module brings
its fixtures and puts both event loops under every async test of the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import ssl
import struct
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import NamedTuple

import pytest
import uvloop

from fal_proxy.errors import UpstreamError
from fal_proxy.upstream.answer import Head
from fal_proxy.upstream.call import Call
from fal_proxy.upstream.dial import Dialer, Origin
from fal_proxy.upstream.engine import Engine

PATIENCE = 2.0  # what no passing test ever waits for
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.hookimpl(trylast=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the engine's tests on the loop of production and on the standard one."""
    if item.path.name.startswith(("test_engine_", "test_dial")):
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


async def turns(count: int = 20) -> None:
    """Let the loop go round a few times: what is under way inside this process arrives."""
    for _ in range(count):
        await asyncio.sleep(0)


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = bytearray()
        self.ending: str | None = None  # how the other side ended: "fin" or "reset"
        self.gone = asyncio.Event()
        self._sock = sock
        self._arrival = asyncio.Event()
        self._read = 0
        self._tls: ssl.SSLObject | None = None
        self._cipher_in, self._cipher_out = ssl.MemoryBIO(), ssl.MemoryBIO()

    async def read(self, size: int) -> bytes:
        """Return exactly `size` bytes. Raises EOFError when the other side ends first."""
        while len(self.received) - self._read < size:
            if not await self._more():
                raise EOFError(self.ending)
        return self._taken(self._read + size)

    async def read_to(self, marker: bytes) -> bytes:
        """Return the bytes up to and including `marker`."""
        while (found := self.received.find(marker, self._read)) < 0:
            if not await self._more():
                raise EOFError(self.ending)
        return self._taken(found + len(marker))

    def forget(self) -> None:
        """Drop what was read: a gigabyte need not stay in the test's memory."""
        del self.received[: self._read]
        self._read = 0

    async def read_head(self) -> bytes:
        """Return the next request head with its empty line."""
        return await self.read_to(b"\r\n\r\n")

    async def arrived(self, size: int) -> bytes:
        """Return everything once `size` bytes were read by the script."""
        async with asyncio.timeout(PATIENCE):
            while len(self.received) < size:
                self._arrival.clear()
                await self._arrival.wait()
        return bytes(self.received)

    async def wait_gone(self) -> str | None:
        """Read on until the other side has ended; return how it did."""
        while await self._more():
            pass
        return self.ending

    async def send(self, data: bytes) -> None:
        """Send all of `data`."""
        if self._tls is not None:
            self._tls.write(data)
            data = self._cipher_out.read()
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def drip(self, data: bytes) -> None:
        """Send byte by byte, letting the other side see each."""
        for value in data:
            await self.send(bytes([value]))
            await asyncio.sleep(0)

    async def answer(self, data: bytes = OK) -> None:
        """Read a request without a body and answer it."""
        await self.read_head()
        await self.send(data)

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Shake hands as a TLS server."""
        tls = context.wrap_bio(self._cipher_in, self._cipher_out, server_side=True)
        loop = asyncio.get_running_loop()
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await loop.sock_sendall(self._sock, self._cipher_out.read())
                self._cipher_in.write(await self._receive())
        await loop.sock_sendall(self._sock, self._cipher_out.read())
        self._tls = tls
        self._decrypt(tls)  # the request may have come with the end of the handshake

    async def close_notify(self) -> None:
        """Send TLS's own end of stream; the socket stays open."""
        assert self._tls is not None
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        await asyncio.get_running_loop().sock_sendall(self._sock, self._cipher_out.read())

    def half_close(self) -> None:
        """Send FIN, keep listening."""
        self._sock.shutdown(socket.SHUT_WR)

    async def delivered(self) -> None:
        """Return when the other side has everything: on a busy machine a reset may overtake what was sent before it."""
        async with asyncio.timeout(PATIENCE):
            while True:
                if fcntl.ioctl(self._sock, termios.TIOCOUTQ, bytes(4)) == bytes(4):
                    return
                await asyncio.sleep(0)

    def reset(self) -> None:
        """Send RST."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close the socket: FIN, or RST when unread bytes lie in it."""
        self._sock.close()

    def _taken(self, end: int) -> bytes:
        start, self._read = self._read, end
        return bytes(self.received[start:end])

    async def _receive(self) -> bytes:
        try:
            data = await asyncio.get_running_loop().sock_recv(self._sock, 1 << 18)
        except (ConnectionResetError, BrokenPipeError):
            data, self.ending = b"", "reset"
        if not data:
            self.ending = self.ending or "fin"
            self.gone.set()
            raise EOFError(self.ending)
        return data

    async def _more(self) -> bool:
        try:
            data = await self._receive()
        except EOFError:
            return False
        if self._tls is None:
            self.received += data
        else:
            self._cipher_in.write(data)
            self._decrypt(self._tls)
        self._arrival.set()
        return True

    def _decrypt(self, tls: ssl.SSLObject) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            while plain := tls.read(1 << 18):
                self.received += plain


Script = Callable[[Peer], Awaitable[object]]


class Upstream:
    """A listening socket; its nth connection is led by the nth script, later ones by the last."""

    def __init__(self, scripts: tuple[Script, ...], tls: ssl.SSLContext | None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self._scripts = scripts
        self._tls = tls
        self.peers: list[Peer] = []
        self._accepted = asyncio.Event()
        self.port: int = self._listener.getsockname()[1]
        self.origin = Origin("https" if tls else "http", "127.0.0.1", self.port, trusted=True)
        self._tasks = [asyncio.ensure_future(self._accept())]

    async def peer(self, index: int = 0) -> Peer:
        """Return the nth connection as soon as it is accepted."""
        async with asyncio.timeout(PATIENCE):
            while len(self.peers) <= index:
                self._accepted.clear()
                await self._accepted.wait()
        return self.peers[index]

    async def left(self, index: int = 0) -> Peer:
        """Return the nth connection once the other side has ended it and a script has read that."""
        peer = await self.peer(index)
        async with asyncio.timeout(PATIENCE):
            await peer.gone.wait()
        return peer

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            peer = Peer(sock)
            script = self._scripts[min(len(self.peers), len(self._scripts) - 1)]
            self.peers.append(peer)
            self._accepted.set()
            self._tasks.append(asyncio.ensure_future(self._lead(peer, script)))

    async def _lead(self, peer: Peer, script: Script) -> None:
        # The engine may leave in the middle of a script: the test judges that by what it sees itself.
        with contextlib.suppress(EOFError, ConnectionError, ssl.SSLError):
            if self._tls is not None:
                await peer.start_tls(self._tls)
            await script(peer)

    async def close(self) -> None:
        """End every script; raise what went wrong in one."""
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()
        for peer in self.peers:
            peer.close()
        for result in results:
            if isinstance(result, Exception):
                raise result


Serve = Callable[..., Upstream]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Return a function that starts an upstream from scripts; `tls` wraps its connections."""
    started: list[Upstream] = []

    def start(*scripts: Script, tls: ssl.SSLContext | None = None) -> Upstream:
        started.append(Upstream(scripts, tls))
        return started[-1]

    yield start
    for upstream in started:
        await upstream.close()


@pytest.fixture
async def make_engine() -> AsyncIterator[Callable[..., Engine]]:
    """Return a function that makes engines, which are closed when the test is over."""
    made: list[Engine] = []

    def make(dialer: Dialer | None = None) -> Engine:
        made.append(Engine(dialer or Dialer(PATIENCE)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
    await turns()  # transports close in the loop's next rounds


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    """Return an engine with plain sockets and a short connect budget."""
    return make_engine()


class Outcome(NamedTuple):
    """What one call came to."""

    call: Call
    head: Head | None
    body: bytes
    error: UpstreamError | None


async def exchange(engine: Engine, origin: Origin, method: bytes = b"GET", *, seconds: float = PATIENCE) -> Outcome:
    """Carry out one call without a request body and release it; never raises what the engine reports."""
    call = await engine.open(origin)
    head, body = None, b""
    try:
        call.start(method, b"/path", [], length=0)
        head = await call.head(seconds)
        while data := await call.read(seconds):
            body += data
        return Outcome(call, head, body, None)
    except UpstreamError as error:
        return Outcome(call, head, body, error)
    finally:
        call.release()
