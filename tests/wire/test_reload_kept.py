"""What goes on in the deployment after a change, and when what does not is closed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fal_proxy.identity.forward import ForwardAuth
from fal_proxy.platform_api.feed import Feed
from fal_proxy.settings import ForwardSource, Identity, JwtSource, KeySource, PriceFeed, Upstream
from support.limited import RUN, Limit, limiting, wide
from support.peers import PATIENCE, turns
from support.reloaded import change, metric
from support.services import Asked, Reply, Service, served

limit = limiting


async def test_a_source_goes_on_while_the_settings_say_the_same_of_it(limit: Limit, tmp_path: Path) -> None:
    jwt = JwtSource(issuer="https://issuer.example", audience="app")
    forward = ForwardSource(url="http://127.0.0.1:9/who")
    key = KeySource(str(tmp_path / "users.toml"))
    identity = Identity(("key", "jwt", "forward"), key=key, jwt=jwt, forward=forward)
    limited, _ = await limit(wide(), identity=identity)
    app = limited.proxy.app

    def sources() -> dict[str, object]:
        return {name: each.source for name, each in app._deployments.current.sources.items()}

    before = sources()
    await change(limited, wide(submit="5/hour"))
    assert sources() == before, "its keys, its cache, its connections"
    longer = msgspec.structs.replace(forward, cache_seconds=60)
    await change(limited, identity=msgspec.structs.replace(identity, forward=longer))
    after = sources()
    assert {name for name in before if before[name] is not after[name]} == {"forward"}


async def test_a_source_is_closed_when_the_last_request_that_uses_it_is_over(
    limit: Limit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()
    closed: list[ForwardAuth] = []
    close = ForwardAuth.close

    async def noted(self: ForwardAuth) -> None:
        closed.append(self)
        await close(self)

    class Slow(Service):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                asked.set()
                await answer.wait()
            await super().__call__(scope, receive, send)

    def yes(_: Asked) -> Reply:
        return Reply(200, b'{"id":"ada"}')

    monkeypatch.setattr(ForwardAuth, "close", noted)
    key = KeySource(str(tmp_path / "users.toml"))
    async with served(Slow(yes)) as url:
        forward = Identity(("key", "forward"), key=key, forward=ForwardSource(url=url + "/who"))
        limited, _ = await limit(wide(), identity=forward)
        app = limited.proxy.app
        source = app._deployments.current.sources["forward"].source
        page = [("Sec-Fetch-Site", "same-origin"), ("Cookie", "session=1")]
        asking = asyncio.create_task(limited.ask(RUN, page))
        async with asyncio.timeout(PATIENCE):
            await asked.wait()
        await change(limited, wide(submit="7/hour"))  # the next one has it too
        await change(limited, identity=Identity(("key",), key=key))
        await turns()
        assert closed == []
        answer.set()
        assert (await asking).status == 200, "it was asked about when the service still counted"
        async with asyncio.timeout(PATIENCE):
            while not closed:
                await turns(1)
        assert closed == [source]
        assert (await limited.ask(RUN, page)).status == 401


async def test_fetched_prices_go_on_and_their_counters_never_fall(limit: Limit) -> None:
    limited, _ = await limit(wide(), price_feed=PriceFeed(mode="fetch", file=""))
    app = limited.proxy.app

    def feed_of() -> Feed | None:
        return app._gateway.price_list.feed

    feed = feed_of()
    assert feed is not None
    feed.lookups = 5
    await change(limited, price_feed=PriceFeed(mode="fetch", file="", refresh_seconds=7), upstream=Upstream(3))
    assert feed_of() is feed
    assert (feed._settings.refresh_seconds, app._gateway.engine._dialer.connect_seconds) == (7, 3)
    await change(limited, price_feed=PriceFeed())
    assert feed_of() is None
    assert metric(app, "fal_proxy_price_lookups_total") == 5
    await change(limited, price_feed=PriceFeed(mode="fetch", file=""))
    later = feed_of()
    assert later is not None
    later.lookups = 2
    assert metric(app, "fal_proxy_price_lookups_total") == 7
