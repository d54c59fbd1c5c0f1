"""The official client in Node, our proxy, the emulator behind it, and what must hold for every request between them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from fal_proxy.emulator import Entry, Fault
from fal_proxy.settings import Settings
from support.emulated import Emulated, emulated
from support.node import Node, Run
from support.proxied import FAL_KEY, FAL_KEY_ID, FAL_KEY_SECRET, Proxy, proxied

FILE_HOST = "v3b.fal.media"
OLD_FILE_HOST = "storage.googleapis.com"  # where fal lets those upload who name no storage type
# What a caller says to us, and what a proxy might add by habit.
_NEVER_UP = ("cookie", "x-fal-target-url", "origin", "x-forwarded-for", "forwarded", "via")
_HANDSHAKE = {"host", "upgrade", "connection", "sec-websocket-key", "sec-websocket-version"}
_TICKET = b"fal_jwt_token"


@dataclass(frozen=True)
class Once(Fault):
    """A fault that strikes the first request only, and tells when it has."""

    struck: asyncio.Event = field(default_factory=asyncio.Event, compare=False)

    def matches(self, names: Iterable[str]) -> bool:
        """Match the first request that the glob matches."""
        if self.struck.is_set() or not super().matches(names):
            return False
        self.struck.set()
        return True


@dataclass(frozen=True)
class Stage:
    """One running emulator and proxy, and the caller who uses the client; `credentials` None is anonymous."""

    node: Node
    emulated: Emulated
    proxy: Proxy
    credentials: str | None

    def for_caller(self, *, anonymous: bool) -> Stage:
        """Return the same stage with another caller."""
        return replace(self, credentials=None if anonymous else self.proxy.user_key)

    async def play(self, file: str, scenario: str, **params: Any) -> Any:
        """Run a scenario to its end and return its result."""
        async with self.started(file, scenario, **params) as run:
            return self.clean(await run.result())

    def started(self, file: str, scenario: str, **params: Any) -> AbstractAsyncContextManager[Run]:
        """Start a scenario whose test has something to do meanwhile."""
        sockets = self.proxy.url.replace("http://", "ws://")
        given = {"url": self.proxy.url, "sockets": sockets, "credentials": self.credentials, **params}
        return self.node.started("harness.mjs", file, scenario, environ={"SCENARIO": json.dumps(given)})

    @property
    def handshakes(self) -> list[Entry]:
        """What reached fal of WebSockets, in order; a token is never asked of fal."""
        entries = list(self.emulated.app.journal)
        assert all(entry.header("upgrade") == "websocket" for entry in entries), entries
        return entries

    def clean(self, result: Any) -> Any:
        """Return a scenario's result after making sure that the key is not in it."""
        text = json.dumps(result)
        assert FAL_KEY_ID not in text
        assert FAL_KEY_SECRET not in text
        return result

    def entries(self, host: str) -> list[Entry]:
        """Return what reached one of fal's hosts, in order."""
        return [entry for entry in self.emulated.app.journal if entry.host == host]

    def targets(self, host: str) -> list[str]:
        """Return method, path and query of what reached one of fal's hosts."""
        return [f"{entry.method} {entry.target.decode()}" for entry in self.entries(host)]


class SetStage(Protocol):
    """Starts an emulator and a proxy of the test's choice."""

    def __call__(
        self, *, faults: Sequence[Fault] = (), settings: Settings | None = None, **emulator: Any
    ) -> AbstractAsyncContextManager[Stage]:
        """Return the stage as a context."""


@asynccontextmanager
async def staged(
    node: Node,
    folder: Path,
    *,
    anonymous: bool,
    faults: Sequence[Fault] = (),
    settings: Settings | None = None,
    **emulator: Any,
) -> AsyncIterator[Stage]:
    """Run emulator and proxy; in the end judge everything that reached fal."""
    async with (
        emulated(faults=faults, **emulator) as upstream,
        proxied(upstream.url, folder, settings) as proxy,
    ):
        yield Stage(node, upstream, proxy, None).for_caller(anonymous=anonymous)
        judge(upstream.app.journal, proxy.user_key)


def judge(journal: Iterable[Entry], user_key: str) -> None:
    """Assert what holds for every request: fal sees our key and nothing of the caller, file hosts see no key."""
    for entry in journal:
        keys = [value.decode() for name, value in entry.headers if name == b"authorization"]
        if entry.host in (FILE_HOST, OLD_FILE_HOST):
            assert keys == [], f"{entry}: a key reached the file host"
            continue
        assert keys == [f"Key {FAL_KEY.reveal()}"], f"{entry}: not exactly our key"
        for name in _NEVER_UP:
            assert entry.header(name) is None, f"{entry}: {name} reached fal"
        assert not any(user_key.encode() in value for _, value in entry.headers), f"{entry}: the user key reached fal"
        assert (entry.header("x-fal-client-proxy") or "").startswith("fal-proxy/")
        if entry.header("upgrade") is None:
            assert entry.header("accept-encoding") == "identity"
            continue
        own = {*_HANDSHAKE, "user-agent", "x-fal-client-proxy", "authorization"}
        assert {name.decode() for name, _ in entry.headers} - own == set(), f"{entry}: more than a handshake needs"
        assert len(entry.headers) == len({name for name, _ in entry.headers})
        assert _TICKET not in entry.target, f"{entry}: our ticket reached fal"
