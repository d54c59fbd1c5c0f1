"""A proxy whose limits count, in front of a fal that opens sockets; and the way of a page to one of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fal_proxy.settings import Plan
from support.limited import Fields, Limited, limited, limits, wide
from support.peers import Script, Serve, Upstream
from support.proxied import Proxy
from support.raw import RawAnswer
from support.websocket import APP, FalSockets, answered

TOKENS = ("POST", "/rest.fal.ai/tokens/")
TOKENS_REALTIME = ("POST", "/rest.fal.ai/tokens/realtime")
ALIAS = b'{"allowed_apps":["fast-lcm"],"token_expiration":120}'
SESSIONS = 1000
PATIENCE = 20.0


@dataclass(frozen=True)
class Stage:
    """A running proxy, and the end of its sockets at fal."""

    limited: Limited
    fal: FalSockets
    upstream: Upstream

    @property
    def proxy(self) -> Proxy:
        """The proxy."""
        return self.limited.proxy

    @property
    def ada(self) -> Fields:
        """The caller who is always there."""
        return self.limited.ada

    async def ticket(self, caller: Fields, body: bytes = ALIAS) -> str:
        """Return a ticket, asked for as the JavaScript client does."""
        answer = await self.limited.ask(TOKENS, caller, body)
        assert answer.status == 201, answer
        return str(msgspec.json.decode(answer.body))

    async def refused(self, caller: Fields, path: str = APP) -> RawAnswer:
        """Return the answer to a handshake that must not succeed."""
        return await answered(self.proxy, caller, path)

    async def sessions(self, caller: Fields | None = None) -> int:
        """Return how many sockets a caller holds."""
        return int((await self.limited.me(caller or self.ada))["realtime"]["in_use"])

    async def left(self, sessions: int = 0) -> None:
        """Wait until ada holds no more sockets than this."""
        async with asyncio.timeout(PATIENCE):
            while await self.sessions() > sessions:  # noqa: ASYNC110 -- the store tells nobody
                await asyncio.sleep(0.02)  # `/me` itself has a rate


def with_ticket(ticket: str, path: str = APP) -> str:
    """Return the path with a ticket in its query, where the client puts it."""
    return f"{path}?fal_jwt_token={ticket}"


StartStage = Callable[..., Awaitable[Stage]]


@pytest.fixture
async def stage(serve: Serve, tmp_path: Path) -> AsyncIterator[StartStage]:
    """Return a function that runs a proxy with a plan in front of a fal that opens sockets, or of a script."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(plan: Plan | None = None, script: Script | None = None, **changes: Any) -> Stage:
            fal = FalSockets()
            upstream = serve(script or fal.script)
            changes.setdefault("prices", {"default": 0.05})
            settings = limits(tmp_path, plan or wide(realtime_sessions=SESSIONS), **changes)
            return Stage(await stack.enter_async_context(limited(upstream, tmp_path, settings)), fal, upstream)

        yield start
