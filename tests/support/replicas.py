"""Two real `fal-proxy serve` on one Redis behind a real front, with the emulator as fal: a deployment in small."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.stage import judge
from fal_proxy.emulator import Fault
from fal_proxy.identity.key import add
from support.commands import clean_environment
from support.emulated import Emulated, emulated
from support.fronts import NOTICE_SECONDS, Front, front
from support.node import Node
from support.ports import free_port
from support.proxied import FAL_KEY, FAL_KEY_ID, FAL_KEY_SECRET, MOUNT, SIGNING_SECRET
from support.raw import RawAnswer, RawClient, raw_client, request
from support.redis import RedisServer, redis_server

SECONDS = 30.0
SPEED = 20.0  # of the emulator
WIDE = 'endpoints = ["**"]\nsubmit = "100000/hour"\nupload = "100000/hour"\nconcurrent = 1000\nrealtime_sessions = 10\n'
# A plan for each limit, all others out of reach; the anonymous network has the plan's own limits.
CONFIG = """
[server]
hosts = ["127.0.0.1"]
public_url = "{url}"
drain_seconds = 10
drain_notice_seconds = {notice}
[identity]
sources = ["key", "anonymous"]
[identity.anonymous]
plan = "strangers"
network_factor = 1
[plans.default]
{wide}budget = "100.00/day"
[plans.methods]
{wide}methods = ["POST", "GET"]
[plans.rated]
{wide_but_rates}submit = "23/hour"
[plans.few]
{wide_but_concurrent}concurrent = 2
[plans.bought]
{wide}budget = "0.20/total"
[plans.strangers]
{wide_but_rates}submit = "2/hour"
[prices]
default = 0.04
[storage]
mode = "relay"
serve_files = true
[realtime]
usd_per_second = 0.0001
[admin]
port = 0
"""
USERS = ("default", "methods", "rated", "few", "bought")


async def until(happened: Callable[[], bool]) -> None:
    """Wait until something can be seen. Raises TimeoutError."""
    ends = asyncio.get_running_loop().time() + SECONDS
    for _ in iter(happened, True):
        if asyncio.get_running_loop().time() > ends:
            raise TimeoutError("it did not happen")
        await asyncio.sleep(0.01)


class Replica:
    """One `fal-proxy serve` on a port that it keeps when it is started again."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.port = free_port()
        self.options: tuple[str, ...] = ()
        self.lines: list[dict[str, Any]] = []  # the access lines so far
        self._folder, self._environ = folder, dict(environ)
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start, and return once it listens."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fal_proxy", "serve", "--port", str(self.port), *self.options),
            cwd=self._folder,
            env=self._environ,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line.startswith(b"listening on "), line
        self._reader = asyncio.ensure_future(self._read(self._process.stdout))

    def terminate(self) -> None:
        """Begin its end."""
        assert self._process is not None
        self._process.terminate()

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)

    async def ended(self) -> int:
        """Return its exit code once it has ended."""
        assert self._process is not None
        assert self._reader is not None
        code = await asyncio.wait_for(self._process.wait(), SECONDS)
        await self._reader
        return code

    async def end(self) -> None:
        """End it, if it still runs, at once."""
        if self._process is not None and self._process.returncode is None:
            self.kill()
            await self.ended()

    async def _read(self, stdout: asyncio.StreamReader) -> None:
        while line := await stdout.readline():
            self.lines.append(json.loads(line))


@dataclass(frozen=True)
class Deployment:
    """Everything that runs, and who may call; `keys` are user keys by plan."""

    front: Front
    replicas: tuple[Replica, Replica]
    fal: Emulated
    redis: RedisServer
    keys: dict[str, str]
    secure: ssl.SSLContext = field(repr=False)

    def open(self, local: str = "127.0.0.1") -> contextlib.AbstractAsyncContextManager[RawClient]:
        """Connect to the front, from an address of loopback."""
        return raw_client(self.front.port, local, self.secure)

    def request(self, method: str, path: str, plan: str | None = "default", **fields: str) -> bytes:
        """Build a request of the holder of that plan's key (None: anonymous); `fields` with _ for -. A POST asks `{}`."""
        headers = {"Host": f"127.0.0.1:{self.front.port}", "Content-Type": "application/json"}
        if plan is not None:
            headers["Authorization"] = f"Bearer {self.keys[plan]}"
        body = fields.pop("body", "{}" if method == "POST" else None)
        headers |= {name.replace("_", "-"): value for name, value in fields.items()}
        return request(method, MOUNT + path, headers, None if body is None else body.encode())

    async def ask(self, method: str, path: str, plan: str | None = "default", **fields: str) -> RawAnswer:
        """Ask on a connection of its own."""
        async with self.open(fields.pop("local", "127.0.0.1")) as client, asyncio.timeout(SECONDS):
            await client.send(self.request(method, path, plan, **fields))
            return await client.answer()

    async def me(self, plan: str = "default") -> dict[str, Any]:
        """Return where a plan's caller stands."""
        answer = await self.ask("GET", "/me", plan)
        assert answer.status == 200, answer
        return dict(json.loads(answer.body))

    async def play(self, node: Node, file: str, scenario: str, **params: Any) -> Any:
        """Run a scenario of the official client's to its end and return its result, in which no key may be."""
        given = {"url": self.front.url + MOUNT, "sockets": self.front.url.replace("https:", "wss:") + MOUNT, **params}
        environ = {"SCENARIO": json.dumps(given), "NODE_EXTRA_CA_CERTS": str(self.front.certificate)}
        async with node.started("harness.mjs", file, scenario, environ=environ) as run:
            result = await run.result()
        text = json.dumps(result)
        assert FAL_KEY_ID not in text
        assert FAL_KEY_SECRET not in text
        return result

    def has_seen(self, count: int) -> bool:
        """Say whether so many requests have reached fal."""
        return len(self.fal.app.journal) >= count

    def sent(self, method: str, prefix: str) -> int:
        """Return how many such requests fal has seen."""
        return sum(
            entry.method == method and f"{entry.host}{entry.target.decode()}".startswith(prefix)
            for entry in self.fal.app.journal
        )


@contextlib.asynccontextmanager
async def deployed(
    name: str, folder: Path, *, faults: Sequence[Fault] = (), offload: bool = False, one_port: bool = False
) -> AsyncIterator[Deployment]:
    """Run it until the block ends; in the end judge everything that reached fal.

    With `one_port` the replicas share it, as the instances of the systemd unit do.
    """
    port = free_port()
    lines = WIDE.splitlines(keepends=True)
    config = CONFIG.format(
        url=f"https://127.0.0.1:{port}",
        notice=NOTICE_SECONDS[name],
        wide=WIDE,
        wide_but_rates="".join(line for line in lines if not line.startswith("submit")),
        wide_but_concurrent="".join(line for line in lines if not line.startswith("concurrent")),
    )
    (folder / "fal-proxy.toml").write_text(config)
    keys = {plan: add(folder / "users.toml", plan, plan) for plan in USERS}
    with redis_server() as redis:
        async with emulated(speed=SPEED, faults=faults) as fal, contextlib.AsyncExitStack() as stack:
            environ = clean_environment(
                FAL_KEY=FAL_KEY.reveal(),
                FAL_PROXY_SECRET=SIGNING_SECRET,
                FAL_PROXY_UPSTREAM=fal.url,
                FAL_PROXY_STATE=redis.url,
                FAL_PROXY_SERVER__TRUSTED_PROXIES='["127.0.0.1"]',
            )
            replicas = Replica(folder, environ), Replica(folder, environ)
            if one_port:
                replicas[1].port = replicas[0].port
            for replica in replicas:
                stack.push_async_callback(replica.end)
                replica.options = ("--reuse-port",) if one_port else ()
            await asyncio.gather(*(replica.start() for replica in replicas))
            ports = [replica.port for replica in replicas]
            running = await asyncio.to_thread(
                stack.enter_context, front(name, folder / name, port, ports, offload=offload)
            )
            yield Deployment(running, replicas, fal, redis, keys, running.trusting())
            judge(fal.app.journal, keys["default"])
