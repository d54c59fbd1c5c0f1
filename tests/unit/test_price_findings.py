"""What `check` says about prices: which endpoints of a plan have none, and what is wrong with the feed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fal_proxy.check import examine
from fal_proxy.platform_api.price_file import Fetched, PriceFile
from fal_proxy.platform_api.prices import offer_of
from support.proxied import FAL_KEY
from support.services import Clock

ENVIRON = {"FAL_KEY": FAL_KEY.reveal(), "FAL_PROXY_STATE": "memory://state"}
UPSTREAM = {**ENVIRON, "FAL_PROXY_UPSTREAM": "http://127.0.0.1:9"}
NOW = 1_700_000_000.0


def _config(endpoints: list[str], *, budget: str = 'budget = "1.00/day"', prices: str = "", feed: str = "") -> str:
    listed = json.dumps(endpoints)
    return (
        f'[identity]\nsources = ["key"]\n[plans.default]\nendpoints = {listed}\n{budget}\n'
        f"[prices]\n{prices}\n[price_feed]\n{feed}\n"
    )


def _found(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> list[tuple[str, str, str]]:
    (tmp_path / "fal-proxy.toml").write_text(text)
    report = examine(None, tmp_path / "fal-proxy.toml", environ or ENVIRON)
    told = ("prices", "price_feed", "plans.default.endpoints")
    found = [each for each in report.findings if each.path.startswith(told)]
    return [(each.level, each.path, each.message) for each in found]


FETCH = 'mode = "fetch"'
EVERY = [
    (["a/b"], 'default = 1', "", [], "the default"),
    (["a/b"], '"a/b" = 1', "", [], "itself"),
    (["a/b"], '"A/B" = 1', "", [], "in another spelling"),
    (["a/b"], '"a/*" = 1', "", [], "a glob"),
    (["a/b"], '"a/c" = 1', "", ["a/b"], "another's"),
    (["a/**"], '"a/**" = 1', "", [], "the same glob"),
    (["a/**"], '"**" = 1', "", [], "a wider glob"),
    (["a/b/**"], '"a/**" = 1', "", [], "as above"),
    (["a/**"], '"a/*" = 1', "", ["a/**"], "a narrower glob"),
    (["a/**"], '"a/b" = 1', "", ["a/**"], "only one of them"),
    (["a/*"], '"a/**" = 1', "", [], "one segment of any"),
    (["a/b", "c/d", "a/**"], '"c/d" = 1', "", ["a/b", "a/**"], "each by itself"),
    (["a/b", "a/**"], "", FETCH, ["a/b"], "fal prices globs; of an id nobody knows yet"),
    (["a/b"], "default = 1", FETCH, [], "fal is asked, and there is a default"),
]  # fmt: skip


@pytest.mark.parametrize(("endpoints", "prices", "feed", "unpriced", "why"), EVERY)
def test_check_names_the_endpoints_of_a_plan_that_have_no_price(
    endpoints: list[str], prices: str, feed: str, unpriced: list[str], why: str, tmp_path: Path
) -> None:
    found = _found(tmp_path, _config(endpoints, prices=prices, feed=feed))
    assert [(level, path) for level, path, _ in found] == [("warning", "plans.default.endpoints")] * len(unpriced), why
    assert [message.partition(" ")[0] for *_, message in found] == unpriced, why


def test_a_plan_without_a_budget_needs_no_prices(tmp_path: Path) -> None:
    assert _found(tmp_path, _config(["a/b"], budget="")) == []


def test_a_budget_without_any_price_is_an_error_unless_they_are_fetched(tmp_path: Path) -> None:
    assert [(level, path) for level, path, _ in _found(tmp_path, _config(["a/**"]))] == [("error", "prices")]
    assert _found(tmp_path, _config(["a/**"], feed=FETCH)) == []


def _cached(folder: Path, source: str, name: str = "fal-prices.json") -> Path:
    offer = offer_of("0.025", "images")
    assert offer is not None
    file = PriceFile(folder / name, source, Clock(NOW))
    file.write({"a/b": Fetched(offer, NOW)})
    return file.path


def test_a_price_in_the_file_is_a_price(tmp_path: Path) -> None:
    _cached(tmp_path, "http://127.0.0.1:9/api.fal.ai")
    assert _found(tmp_path, _config(["a/b"], feed=FETCH), UPSTREAM) == []


BAD = [
    ('mode = "on"', "error", "price_feed.mode", "Invalid enum value", "no mode"),
    (FETCH + "\nrefresh_seconds = 0", "error", "price_feed.refresh_seconds", "positive", "for ever"),
    (FETCH + "\nmax_age_seconds = -1", "error", "price_feed.max_age_seconds", "positive", "never"),
    (FETCH + "\nmax_age_seconds = inf", "error", "price_feed.max_age_seconds", "positive", "for ever"),
    (FETCH + "\nrefresh_seconds = 60\nmax_age_seconds = 59", "error", "price_feed.max_age_seconds", "less than", "upside down"),
    (FETCH + '\nfile = "nowhere/prices.json"', "error", "price_feed.file", "folder", "no such folder"),
    (FETCH + '\nfile = "fal-proxy.toml"', "warning", "price_feed.file", "no price list of ours", "a file of something else"),
    (FETCH + '\nfile = "torn.json"', "warning", "price_feed.file", "is torn", "half a file"),
    (FETCH + '\nfile = "other.json"', "warning", "price_feed.file", "of another fal", "an emulator's"),
    (FETCH + '\nfile = "open.json"', "warning", "price_feed.file", "can be written by others", "anybody's"),
]  # fmt: skip


@pytest.mark.parametrize(("feed", "level", "path", "says", "why"), BAD)
def test_a_feed_that_cannot_be_right_is_a_finding(
    feed: str, level: str, path: str, says: str, why: str, tmp_path: Path
) -> None:
    (tmp_path / "torn.json").write_text('{"what":"fal-proxy price feed 1","sou')
    (tmp_path / "torn.json").chmod(0o600)
    _cached(tmp_path, "http://127.0.0.1:8090/api.fal.ai", "other.json")
    _cached(tmp_path, "https://api.fal.ai", "open.json").chmod(0o622)
    found = _found(tmp_path, _config(["a/**"], feed=feed, prices="default = 1"))
    assert (level, path) in [(have, where) for have, where, _ in found], why
    assert says in " ".join(message for _, where, message in found if where == path), why


def test_a_feed_that_no_budget_needs_is_worth_a_word(tmp_path: Path) -> None:
    [(level, path, _)] = _found(tmp_path, _config(["a/b"], budget="", feed=FETCH))
    assert (level, path) == ("warning", "price_feed.mode")


ADMIN = "adadadad-0000-4000-8000-00000000feed:" + "ad" * 16
KEYS_FOR_BILLS = [
    ({"FAL_ADMIN_KEY": ADMIN}, [], "a key of its own"),
    ({"FAL_ADMIN_KEY": "nocolon"}, ["error"], "no key by its form"),
    ({"FAL_ADMIN_KEY": FAL_KEY.reveal()}, ["warning"], "the key that requests are sent with"),
    ({"FAL_ADMIN_KEY": ADMIN, "FAL_ADMIN_KEY_FILE": "/nonexistent"}, ["error"], "which of the two"),
    ({"FAL_ADMIN_KEY_FILE": "/nonexistent/x"}, ["error"], "no such file"),
]


@pytest.mark.parametrize(("environ", "levels", "why"), KEYS_FOR_BILLS)
def test_a_key_for_bills_is_judged_like_the_others(
    environ: dict[str, str], levels: list[str], why: str, tmp_path: Path
) -> None:
    (tmp_path / "fal-proxy.toml").write_text(_config(["a/b"], budget=""))
    report = examine(None, tmp_path / "fal-proxy.toml", ENVIRON | environ)
    found = [each for each in report.findings if each.path.startswith("FAL_ADMIN_KEY")]
    assert [each.level for each in found] == levels, why
    assert not any(ADMIN in str(each) or FAL_KEY.reveal() in str(each) for each in found)
