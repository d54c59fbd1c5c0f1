"""The two contracts' implementations, each with a clock that only the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from contract.bench import Bench
from contract.post import Post
from fal_proxy.stores import Store
from fal_proxy.stores.journal import Journal
from fal_proxy.stores.link import Link
from fal_proxy.stores.mailbox import Mailbox
from fal_proxy.stores.mailbox_memory import MemoryMailbox
from fal_proxy.stores.mailbox_redis import RedisMailbox
from fal_proxy.stores.memory import MemoryStore
from fal_proxy.stores.redis import RedisStore
from support.redis import RedisServer, redis_server


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    """Run one Redis for the whole suite."""
    with redis_server() as server:
        yield server


def patient(server: RedisServer) -> Link:
    """Return a wire that waits: what a slow Redis does to us is the subject of tests/fault/test_redis_outages.py."""
    return Link(server.url, place_seconds=10.0, call_seconds=10.0)


@pytest.fixture(params=["memory", "redis"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """Bring an empty store of each kind."""
    store: Store
    if request.param == "memory":
        store = MemoryStore(clock=lambda: made.now)
    else:
        server: RedisServer = request.getfixturevalue("redis")
        server.command("FLUSHALL")
        store = RedisStore(server.url, clock=lambda: made.now)
        store._link = patient(server)
    made = Bench(store)
    yield made
    await store.close()


@pytest.fixture(params=["memory", "journal", "redis"])
async def post(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Post]:
    """Bring an empty mailbox of each kind."""
    mailbox: Mailbox
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis")
        server.command("FLUSHALL")
        mailbox = RedisMailbox(server.url, clock=lambda: made.now)
        mailbox._link = patient(server)
    else:
        mailbox = MemoryMailbox(Journal(tmp_path) if request.param == "journal" else None, clock=lambda: made.now)
    made = Post(mailbox)
    yield made
    await made.mailbox.close()
