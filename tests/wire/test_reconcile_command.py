"""`fal-proxy reconcile` as operators run it: over the lines of a real proxy and the bills of a real (offline) fal."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from fal_proxy.settings import PriceFeed
from support.commands import clean_environment
from support.emulated import Emulated, emulated
from support.limited import RUN, STREAM, Limited, limited, limits, result, wide
from support.lines import Lines
from support.peers import turns
from support.proxied import FAL_KEY, FAL_KEY_SECRET

ADMIN = "adadadad-0000-4000-8000-00000000feed:" + "ad" * 16
BODY = b'{"prompt": "a pier", "num_images": 3}'
DEARER = {"fal-ai/flux/**": 0.04, "default": 1}  # than fal


class Ended(NamedTuple):
    """What a command came to."""

    code: int | None
    out: str
    err: str


async def reconcile(folder: Path, *arguments: str, given: str = "", **environ: str) -> Ended:
    """Run the command to its end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fal_proxy", "reconcile", *arguments),
        cwd=folder,
        env=clean_environment(**environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(given.encode()), 60)
    ended = Ended(process.returncode, out.decode(), err.decode())
    assert "ad" * 16 not in ended.out + ended.err
    assert FAL_KEY_SECRET not in ended.out + ended.err
    assert "Traceback" not in ended.err
    return ended


async def _busy(proxy: Limited, fal: Emulated) -> None:
    """Run, submit and fetch; leave one job to the settler."""
    for _ in range(2):
        assert (await proxy.ask(RUN, proxy.ada, BODY)).status == 200
    fetched, left = [await proxy.submit(proxy.ada, BODY) for _ in range(2)]
    async with asyncio.timeout(30):
        while (await proxy.ask(result(fetched), proxy.ada)).status != 200:
            await turns(1)
        while left not in {bill.request_id for bill in fal.app._world.bills.between(0, float("inf"))}:
            await turns(1)
    proxy.clock.advance(10)
    await proxy.turn()
    assert (await proxy.money(proxy.ada))[1] == 0, "everything is settled"


@pytest.mark.parametrize("fetched_prices", [True, False], ids=["fal's prices", "the operator's, which are others"])
async def test_lines_of_a_proxy_agree_with_fals_bills_exactly_if_its_prices_do(
    fetched_prices: bool, tmp_path: Path, lines: Lines
) -> None:
    feed = PriceFeed(mode="fetch" if fetched_prices else "off", file="")
    settings = limits(tmp_path, wide(budget="10.00/day"), price_feed=feed, prices={} if fetched_prices else DEARER)
    async with emulated(speed=500, admin_keys=[ADMIN]) as fal, limited(fal.url, tmp_path, settings) as proxy:
        await _busy(proxy, fal)
        spent, _ = await proxy.money(proxy.ada)
        (tmp_path / "access.log").write_text("listening on http://127.0.0.1:1\n" + "\n".join(lines.text) + "\n")
        environ = {"FAL_ADMIN_KEY": ADMIN, "FAL_PROXY_UPSTREAM": fal.url}
        asked = ("--since", "1h", "--lines", "access.log", "--late", "0m")
        text = await reconcile(tmp_path, *asked, **environ)
        machine = await reconcile(tmp_path, "--json", *asked, **environ)
        piped = await reconcile(tmp_path, *asked[:2], *asked[4:], given="\n".join(lines.text), **environ)
    report = json.loads(machine.out)
    charged = "0.30" if fetched_prices else "0.48"
    assert spent == (300_000 if fetched_prices else 480_000)
    assert report["total"] == {"requests": 4, "charged": charged, "billed": "0.30"}
    assert report["agrees"] is fetched_prices
    assert [each["what"] for each in report["differences"]] == ([] if fetched_prices else ["amount"] * 4)
    assert {text.code, machine.code, piped.code} == {0 if fetched_prices else 1}
    assert (text.err, machine.err, piped.err) == ("", "", "")
    assert report["skipped_lines"] == 1
    last = "the books agree" if fetched_prices else "the books differ in 4 requests"
    assert text.out.splitlines()[-1].startswith(last)
    assert piped.out.splitlines()[-1].startswith(last)
    assert f"in all: 4 requests, charged ${charged}, billed $0.30" in text.out


async def test_what_went_past_the_proxy_and_what_a_stream_cost_are_seen(tmp_path: Path, lines: Lines) -> None:
    settings = limits(tmp_path, wide(budget="10.00/day"), prices={"default": 0.025})
    async with emulated(speed=500, admin_keys=[ADMIN]) as fal, limited(fal.url, tmp_path, settings) as proxy:
        assert (await proxy.ask(STREAM, proxy.ada, BODY)).status == 200
        async with limited(fal.url, tmp_path, settings, user_key=proxy.proxy.user_key) as other:
            kept = list(lines.text)
            assert (await other.ask(RUN, other.ada, BODY)).status == 200
        (tmp_path / "access.log").write_text("\n".join(kept))
        environ = {"FAL_ADMIN_KEY": ADMIN, "FAL_PROXY_UPSTREAM": fal.url}
        ended = await reconcile(tmp_path, "--json", "--since", "1h", "--lines", "access.log", "--late", "0m", **environ)
    assert ended.code == 1
    told = [(each["what"], each["charged"], each["billed"]) for each in json.loads(ended.out)["differences"]]
    assert told == [("amount", "0.025", "0.075"), ("unknown", "0.00", "0.075")]


USAGE = [
    ((), "Missing option '--since'", "since when?"),
    (("--since", "yesterday"), "ISO 8601", "no date"),
    (("--since", "91d"), "at most 90 days", "more than fal shows"),
    (("--since", "2026-01-02", "--until", "2026-01-01"), "before --until", "backwards"),
    (("--since", "1h", "--until", "x"), "ISO 8601", "no date"),
    (("--since", "1h", "--tolerance", "x"), "must be dollars", "no amount"),
    (("--since", "1h", "--tolerance", "-1"), "must be dollars", "less than nothing"),
    (("--since", "1h", "--tolerance", "NaN"), "must be dollars", "no amount"),
    (("--since", "1h", "--late", "soon"), "such as 30m", "no time"),
]


@pytest.mark.parametrize(("arguments", "says", "why"), USAGE)
async def test_wrong_usage_is_exit_2(arguments: tuple[str, ...], says: str, why: str, tmp_path: Path) -> None:
    ended = await reconcile(tmp_path, *arguments, FAL_ADMIN_KEY=ADMIN)
    assert (ended.code, ended.out) == (2, ""), why
    assert says in " ".join(ended.err.split()), why


async def test_without_a_key_for_bills_nothing_is_asked(tmp_path: Path) -> None:
    async with emulated(api_keys=[FAL_KEY.reveal()], admin_keys=[ADMIN]) as fal:
        cases: list[tuple[dict[str, str], str, str]] = [
            ({}, "FAL_ADMIN_KEY: bills are read with", "no key at all"),
            ({"FAL_KEY": FAL_KEY.reveal()}, "FAL_ADMIN_KEY: bills are read with", "the key of requests is another"),
            ({"FAL_ADMIN_KEY": "nocolon"}, "FAL_ADMIN_KEY: bills are read with", "no key by its form"),
            ({"FAL_ADMIN_KEY_FILE": "gone"}, "FAL_ADMIN_KEY_FILE: cannot be read", "no such file"),
        ]
        for environ, says, why in cases:
            ended = await reconcile(tmp_path, "--since", "1h", FAL_PROXY_UPSTREAM=fal.url, **environ)
            assert (ended.code, ended.out) == (3, ""), why
            assert says in ended.err, why
        assert len(fal.app.journal) == 0
        ended = await reconcile(tmp_path, "--since", "1h", FAL_PROXY_UPSTREAM=fal.url, FAL_ADMIN_KEY=FAL_KEY.reveal())
        assert (ended.code, ended.out) == (3, "")
        assert "may not read bills: it answered 403 authorization_error" in ended.err


async def test_a_key_in_a_file_reads_bills_and_lines_that_are_missing_are_exit_3(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(ADMIN + "\n")
    (tmp_path / "key").chmod(0o600)
    async with emulated(admin_keys=[ADMIN]) as fal:
        environ = {"FAL_ADMIN_KEY_FILE": "key", "FAL_PROXY_UPSTREAM": fal.url}
        ended = await reconcile(tmp_path, "--since", "2026-11-01", "--until", "2026-11-02T00:00:00+01:00", **environ)
        assert (ended.code, ended.err) == (0, "")
        assert (
            ended.out
            == "in all: 0 requests, charged $0.00, billed $0.00, difference $0.00\nthe books agree, to $0.000001 a request\n"
        )
        ended = await reconcile(tmp_path, "--since", "1h", "--lines", "gone.log", **environ)
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == "fal-proxy: gone.log: No such file or directory\n"


async def test_a_fal_that_cannot_be_asked_is_exit_3(tmp_path: Path) -> None:
    async with emulated(admin_keys=[ADMIN], faults="**:status=400") as fal:
        ended = await reconcile(tmp_path, "--since", "1h", FAL_ADMIN_KEY=ADMIN, FAL_PROXY_UPSTREAM=fal.url)
    assert (ended.code, ended.out) == (3, "")
    assert "fal's bills cannot be read: it answered 400" in ended.err
