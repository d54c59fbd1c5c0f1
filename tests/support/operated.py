"""A proxy that counts, with its admin listener, and whoever operates it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fal_proxy.identity.key import add
from fal_proxy.server import Listener, bind, serving
from fal_proxy.settings import Plan, Settings
from fal_proxy.stores import Store
from support.limited import Clock, Fal, Fields, Limited, limited, limits
from support.peers import PATIENCE, Serve, Upstream
from support.raw import RawAnswer, raw_client, request

TOKEN = "a-token-of-the-operator"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@dataclass(frozen=True)
class Operated:
    """A running proxy, its callers, and the port where it is operated."""

    limited: Limited
    admin_port: int
    fal: Fal

    async def ask(self, method: str, path: str, headers: dict[str, str] | None = None) -> RawAnswer:
        """Send one request to the admin listener on a connection of its own."""
        async with raw_client(self.admin_port) as client, asyncio.timeout(PATIENCE):
            await client.send(request(method, path, headers))
            return await client.answer()

    async def see(self, path: str) -> dict[str, Any]:
        """Return a view."""
        answer = await self.ask("GET", path)
        assert answer.status == 200, answer
        return dict(msgspec.json.decode(answer.body))

    async def act(self, path: str) -> dict[str, Any]:
        """Do something, with the token."""
        answer = await self.ask("POST", path, BEARER)
        assert answer.status == 200, answer
        return dict(msgspec.json.decode(answer.body))

    async def shown(self, caller: Fields) -> str:
        """Return what a caller is shown as."""
        return str((await self.limited.me(caller))["id"])

    async def row(self, dimension: str, name: str, span: str = "hour") -> dict[str, Any]:
        """Return what is counted under a name."""
        rows = (await self.see("/usage"))[span][dimension]
        return next((row for row in rows if row["name"] == name), {})


@contextlib.asynccontextmanager
async def operated(
    upstream: Upstream | str,
    folder: Path,
    settings: Settings | None = None,
    *,
    fal: Fal | None = None,
    token: str = TOKEN,
    store: Store | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[Operated]:
    """Run a proxy and its admin listener; several on one folder have the same first caller."""
    key = folder / "ada.key"
    if not key.exists():
        key.write_text(add(folder / "users.toml", "ada", "default"))
    more = {"FAL_PROXY_ADMIN_TOKEN": token} if token else {}
    async with limited(
        upstream, folder, settings, more=more, store=store, clock=clock, user_key=key.read_text()
    ) as running:
        admin = Listener(running.proxy.app.admin, bind("127.0.0.1", 0))
        async with serving(admin) as url:
            yield Operated(running, int(url.rpartition(":")[2]), fal or Fal())


Operate = Callable[..., Awaitable[Operated]]


@pytest.fixture
async def operating(serve: Serve, tmp_path: Path) -> AsyncIterator[Operate]:
    """Return a function that runs an operated proxy in front of a scripted fal until the test ends."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            plan: Plan | None = None, *, token: str = TOKEN, store: Store | None = None, **changes: Any
        ) -> Operated:
            fal = Fal()
            settings = limits(tmp_path, plan, **changes)
            running = operated(serve(fal.script), tmp_path, settings, fal=fal, token=token, store=store)
            return await stack.enter_async_context(running)

        yield start
