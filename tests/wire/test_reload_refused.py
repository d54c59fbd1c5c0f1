"""Settings that are not put in force: what is wrong with them or their file; and several at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fal_proxy.app import App, create_app
from fal_proxy.check import examine
from fal_proxy.deployments import Origin
from fal_proxy.errors import Misconfigured
from fal_proxy.settings import Cors, Identity, Plan, Server, Webhooks
from support.limited import RUN, Limit, limiting, limits, wide
from support.proxied import FAL_KEY, MOUNT, SIGNING_SECRET
from support.reloaded import change, metric

limit = limiting
HOSTS = ("127.0.0.1",)
PAGE = ("Origin", "https://page.example")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"plans": {}}, "plans: no plan opens an endpoint"),
    ({"plans": {"default": Plan(endpoints=("**",), submit="1/fortnight")}}, "plans.default.submit: '1/fortnight'"),
    ({"identity": Identity()}, "identity.sources: nobody may call"),
    ({"server": Server(public_url="nonsense")}, "server.public_url: "),
]


@pytest.mark.parametrize(("changes", "says"), WRONG, ids=[row[1] for row in WRONG])
async def test_what_check_refuses_changes_nothing(changes: dict[str, Any], says: str, limit: Limit) -> None:
    limited, _ = await limit(wide())
    app = limited.proxy.app
    before = app._deployments.current
    with pytest.raises(Misconfigured) as caught:
        await change(limited, total_budget="9.00/day", **changes)
    assert any(finding.startswith(says) for finding in caught.value.findings)
    assert app._deployments.current is before
    assert (await limited.ask(RUN, limited.ada)).status == 200
    assert metric(app, "fal_proxy_settings_current") == 0
    assert metric(app, 'fal_proxy_reloads_total{outcome="refused"}') == 1
    await change(limited)
    assert metric(app, "fal_proxy_settings_current") == 1


async def test_what_needs_a_restart_waits_and_the_rest_is_in_force(limit: Limit) -> None:
    limited, _ = await limit(wide())
    server = Server(hosts=HOSTS, port=1, trusted_proxies=("127.0.0.1",))
    changed, waiting = await change(limited, wide(submit="1/hour"), server=server, mount="/elsewhere")
    assert (changed, waiting) == (("plans.default.submit",), ("mount", "server.port"))
    assert metric(limited.proxy.app, "fal_proxy_settings_waiting") == 2
    assert [(await limited.ask(RUN, limited.ada)).status for _ in range(2)] == [200, 429], "where it always was"
    assert limited.proxy.app.settings.mount == MOUNT
    await change(limited)
    assert metric(limited.proxy.app, "fal_proxy_settings_waiting") == 0


async def test_two_halves_that_are_right_by_themselves_and_wrong_together_are_refused(limit: Limit) -> None:
    hub = Server(public_url="http://127.0.0.1", hosts=HOSTS)
    limited, _ = await limit(wide(), server=hub, webhooks=Webhooks(mode="hub"))
    with pytest.raises(Misconfigured) as caught:
        await change(limited, server=Server(hosts=HOSTS), webhooks=Webhooks())
    [finding] = caught.value.findings
    assert "public_url" in finding
    assert finding.endswith("(with webhooks.mode as before, until a restart)")
    assert limited.proxy.app.settings.server == hub


# Files, and several at once

CONFIG = """
[server]
hosts = ["127.0.0.1"]
[identity]
sources = ["anonymous"]
[plans.default]
endpoints = ["**"]
submit = "{rate}"
"""


@pytest.fixture
async def of_file(tmp_path: Path) -> AsyncIterator[tuple[App, Path]]:
    """Yield an app that was made of a file, as an app of one's own would, and the file."""
    path = tmp_path / "fal-proxy.toml"
    path.write_text(CONFIG.format(rate="1/hour"))
    app = create_app(config=path, environ={"FAL_PROXY_SECRET": SIGNING_SECRET}, key=FAL_KEY)
    yield app, path
    await app.close()


async def test_a_host_may_ask_for_the_file_to_be_read_anew(of_file: tuple[App, Path]) -> None:
    app, path = of_file
    assert await app.reload() == ((), (), ())
    path.write_text(CONFIG.format(rate="2/hour"))
    assert (await app.reload()).changed == ("plans.default.submit",)
    assert app.settings.plans["default"].submit == "2/hour"
    other = msgspec.structs.replace(app.settings, cors=Cors((PAGE[1],)))
    assert (await app.reload(other)).changed == ("cors.origins",)
    assert (await app.reload()).changed == ("cors.origins",), "the file has none"


def gone(path: Path) -> None:
    path.unlink()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (gone, "no such file"),
    (pipe, "is no file that can be read again"),
    (lambda path: path.write_text("[plans"), "cannot be read: "),
    (lambda path: path.write_text(CONFIG.format(rate="1/hour") + "colour = 1\n"), "plans.default.colour: no such setting"),
    (lambda path: path.write_bytes(b"\xff"), "cannot be read: "),
]  # fmt: skip


@pytest.mark.parametrize(("broken", "says"), BROKEN)
async def test_a_file_that_is_no_good_changes_nothing(
    broken: Callable[[Path], object], says: str, of_file: tuple[App, Path]
) -> None:
    app, path = of_file
    before = app._deployments.current
    broken(path)
    with pytest.raises(Misconfigured, match=says) as caught:
        await app.reload()
    assert app._deployments.current is before
    assert metric(app, "fal_proxy_settings_current") == 0
    if not path.is_fifo():
        report = examine(None, path, app._deployments.origin.environ, key=FAL_KEY)
        assert caught.value.findings == [str(error).removeprefix("error: ") for error in report.errors]


async def test_a_file_that_is_written_to_while_it_is_read_is_read_again(
    of_file: tuple[App, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, path = of_file
    whole = Origin.examine
    seen = []

    def meanwhile(self: Origin, *given: Any, **named: Any) -> Any:
        report = whole(self, *given, **named)
        seen.append(report.settings.plans["default"].submit)
        if len(seen) == 1:
            path.write_text(CONFIG.format(rate="3/hour"))
        return report

    path.write_text(CONFIG.format(rate="2/hour"))
    monkeypatch.setattr(Origin, "examine", meanwhile)
    monkeypatch.setattr("fal_proxy.app.SETTLED_SECONDS", 0)
    assert (await app.reload()).changed == ("plans.default.submit",)
    assert (seen, app.settings.plans["default"].submit) == (["2/hour", "3/hour"], "3/hour")


async def test_several_at_once_come_one_after_the_other(of_file: tuple[App, Path]) -> None:
    app, _ = of_file
    rates = [f"{count}/minute" for count in range(1, 9)]
    plans = [{"default": msgspec.structs.replace(app.settings.plans["default"], submit=rate)} for rate in rates]
    each = [msgspec.structs.replace(app.settings, plans=plan) for plan in plans]
    reloaded = await asyncio.gather(*map(app.reload, each))
    assert [one.changed for one in reloaded] == [("plans.default.submit",)] * len(rates)
    assert app.settings.plans["default"].submit == rates[-1]


async def test_an_app_made_of_settings_takes_settings_only_and_a_closed_one_takes_none(tmp_path: Path) -> None:
    app = create_app(limits(tmp_path), environ={"FAL_PROXY_SECRET": SIGNING_SECRET}, key=FAL_KEY)
    with pytest.raises(ValueError, match="made from settings"):
        await app.reload()
    await app.close()
    with pytest.raises(RuntimeError, match="closed"):
        await app.reload(app.settings)
