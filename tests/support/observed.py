"""A proxy in a process of its own that tells, whenever asked, what it holds: tasks, calls, sockets, memory.

`python -m support.observed` is that process; `observed` runs it and `Observed.look` asks it, by a signal, so that the
question costs the proxy no connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fal_proxy.app import App, create_app
from fal_proxy.downstream.websocket import SocketProtocol
from fal_proxy.relay import http as relay_http
from fal_proxy.server import Listener, bind, serve
from support.commands import clean_environment
from support.proxied import FAL_KEY, MOUNT, SIGNING_SECRET

ANSWER_SECONDS = 30.0
RUN_HEAD = "OBSERVED_RUN_HEAD_SECONDS"
CONFIG = """
[server]
hosts = ["127.0.0.1"]
[identity]
sources = ["anonymous"]
[admin]
port = 0
[upstream]
connect_seconds = {connect_seconds}
head_seconds = {head_seconds}
body_idle_seconds = {body_idle_seconds}
[plans.default]
endpoints = ["**"]
submit = "1000000/second"
read = "1000000/second"
upload = "1000000/second"
concurrent = 100000
realtime_sessions = 100000
budget = "1000000.00/total"
[prices]
default = 0.01
[realtime]
usd_per_second = 0.000001
"""


class Sight(msgspec.Struct, frozen=True):
    """What the proxy's process held at one moment."""

    tasks: int
    in_progress: int  # exchanges
    open_calls: int
    idle: int  # connections to upstream
    reservations: int  # of requests that are being answered
    descriptors: int
    sockets: int
    resident_kib: int
    blocks: int  # of memory that Python's objects take


@dataclass(frozen=True)
class Observed:
    """A running proxy process."""

    process: asyncio.subprocess.Process
    port: int

    async def look(self) -> Sight:
        """Ask the proxy what it holds."""
        self.process.send_signal(signal.SIGUSR1)
        assert self.process.stdout is not None
        async with asyncio.timeout(ANSWER_SECONDS):
            return msgspec.json.decode(await self.process.stdout.readline(), type=Sight)

    async def calm(self, before: Sight, seconds: float = ANSWER_SECONDS) -> Sight:
        """Look until all that callers left behind is gone, and return that; after `seconds` whatever there is.

        `before` is what the proxy held before anybody came.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            sight = await self.look()
            busy = sight.in_progress or sight.open_calls or sight.reservations or sight.tasks > before.tasks
            # A loop learns that a connection died one turn before or after its socket is gone.
            busy = busy or sight.sockets - sight.idle != before.sockets - before.idle
            if not busy or asyncio.get_running_loop().time() > deadline:
                return sight
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def observed(
    upstream_port: int,
    folder: Path,
    *,
    connect_seconds: float = 5,
    head_seconds: float = 60,
    run_head_seconds: float = 3600,
    body_idle_seconds: float = 900,
) -> AsyncIterator[Observed]:
    """Run a proxy that reaches every host on a port of loopback, with one anonymous network as its only caller."""
    config = folder / "fal-proxy.toml"
    config.write_text(
        CONFIG.format(connect_seconds=connect_seconds, head_seconds=head_seconds, body_idle_seconds=body_idle_seconds)
    )
    environ = clean_environment(
        PYTHONPATH=os.pathsep.join(sys.path),
        FAL_KEY=FAL_KEY.reveal(),
        FAL_PROXY_SECRET=SIGNING_SECRET,
        FAL_PROXY_UPSTREAM=f"http://127.0.0.1:{upstream_port}",
        FAL_PROXY_CONFIG=str(config),
    )
    environ[RUN_HEAD] = str(run_head_seconds)
    with (folder / "stderr.txt").open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "support.observed", env=environ, stdout=asyncio.subprocess.PIPE, stderr=stderr
        )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert line, (folder / "stderr.txt").read_text()
        yield Observed(process, int(line))
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        # A fault of the proxy that reached nobody but its log is a fault all the same.
        said = (folder / "stderr.txt").read_text()
        assert "fault while" not in said, said[:5000]
        assert "Traceback" not in said, said[:5000]


def target(path: str) -> str:
    """Return the path below the mount for a host and path of fal's."""
    return MOUNT + path


def raise_descriptor_limit() -> int:
    """Allow this process and its children as many descriptors as the system lets it; return how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # more than the hard limit takes a privilege
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard, 65536), max(hard, 65536)))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _see(app: App) -> Sight:
    gc.collect()
    gateway = app._gateway
    links = [_link(entry) for entry in Path("/proc/self/fd").iterdir()]
    resident = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return Sight(
        tasks=len(asyncio.all_tasks()),
        in_progress=len(gateway.telemetry.in_progress),
        open_calls=gateway.engine.open_calls,
        idle=gateway.engine.idle,
        reservations=len(gateway.settler._open),
        descriptors=len(links),
        sockets=sum(link.startswith("socket:") for link in links),
        resident_kib=int(resident.split()[1]),
        blocks=sys.getallocatedblocks(),
    )


def _link(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except OSError:  # the folder's own, which is closed by now
        return ""


def main() -> None:
    """Serve until SIGTERM; the first line of stdout is the port, and each SIGUSR1 is answered with a line of JSON."""
    relay_http.RUN_HEAD_SECONDS = float(os.environ[RUN_HEAD])
    app = create_app()
    sock = bind("127.0.0.1", 0)

    def announce() -> None:
        def tell() -> None:
            sys.stdout.write(json.dumps(msgspec.to_builtins(_see(app))) + "\n")
            sys.stdout.flush()

        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tell)
        sys.stdout.write(f"{sock.getsockname()[1]}\n")
        sys.stdout.flush()

    # All callers come from one address, which is no reason to refuse them.
    serve(Listener(app, sock, websockets=SocketProtocol, trusted_proxies=["127.0.0.1"]), announce)


if __name__ == "__main__":
    main()
