"""The file of fetched prices: ours and whole, or ignored with a word; somebody else's is never written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fal_proxy.platform_api.price_file import MAX_BYTES, MAX_PRICES, Fetched, PriceFile, PriceFileError
from fal_proxy.platform_api.prices import Offer, offer_of
from fal_proxy.policy.pricing import Price
from support.services import Clock

SOURCE = "https://api.fal.ai"
NOW = 1_800_000_000.0


def _fetched(usd: str, at: float = NOW, unit: str = "images") -> Fetched:
    offer = offer_of(usd, unit)
    assert offer is not None
    return Fetched(offer, at)


@pytest.fixture
def file(tmp_path: Path) -> PriceFile:
    return PriceFile(tmp_path / "prices.json", SOURCE, Clock(NOW))


@given(st.decimals(min_value="1e-20", max_value=10_000, allow_nan=False, allow_infinity=False, places=12))
def test_a_price_comes_back_as_exactly_as_it_went(tmp_path_factory: pytest.TempPathFactory, usd: Any) -> None:
    file = PriceFile(tmp_path_factory.getbasetemp() / "prices.json", SOURCE, Clock(NOW))
    offer = offer_of(str(usd), "images")
    if offer is None:
        assert usd == 0 or len(usd.as_tuple().digits) > 40
        return
    file.path.unlink(missing_ok=True)
    file.write({"a/b": Fetched(offer, NOW)})
    assert file.read() == {"a/b": Fetched(Offer(Price(Fraction(usd)), "images"), NOW)}


def test_the_file_is_for_nobody_else_and_leaves_nothing_beside_it(file: PriceFile) -> None:
    file.write({"a/b": _fetched("0.025")})
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.path.parent.iterdir()] == ["prices.json"]


def test_no_file_is_no_prices(file: PriceFile) -> None:
    assert file.read() == {}


def test_what_another_process_fetched_later_is_kept(file: PriceFile) -> None:
    file.write({"a/b": _fetched("1", NOW - 10), "a/c": _fetched("2", NOW), "a/d": _fetched("3")})
    file.write({"a/b": _fetched("4", NOW), "a/c": _fetched("5", NOW - 10), "a/e": _fetched("6")})
    found = {name: str(fetched.offer.price.usd) for name, fetched in file.read().items()}
    assert found == {"a/b": "4", "a/c": "2", "a/d": "3", "a/e": "6"}


def test_the_file_is_bounded_and_keeps_the_newest(file: PriceFile) -> None:
    file.write({f"a/{number}": _fetched("1", NOW - number) for number in range(MAX_PRICES + 10)})
    found = file.read()
    assert len(found) == MAX_PRICES
    assert "a/0" in found
    assert f"a/{MAX_PRICES}" not in found
    assert file.path.stat().st_size < MAX_BYTES


def test_a_price_from_the_future_is_no_price(file: PriceFile) -> None:
    file.write({"a/b": _fetched("1", NOW + 301), "a/c": _fetched("1", NOW + 299)})
    assert list(file.read()) == ["a/c"]


def _book(**changes: Any) -> str:
    rows = {"a/b": {"usd": "0.025", "unit": "images", "at": NOW}}
    return json.dumps(
        {"what": "fal-proxy price feed 1", "source": SOURCE, "prices": rows} | changes, separators=(",", ":")
    )


TORN: list[tuple[str, str, str]] = [
    (_book()[:-20], "is torn", "half of it"),
    ('{"what":"fal-proxy price feed', "is torn", "nearly nothing of it"),
    (_book(what="fal-proxy price feed 2"), "of another version", "from the future"),
    (_book(source="http://127.0.0.1:8090/api.fal.ai"), "of another fal", "an emulator's prices"),
    (_book(source="\x1b[2Jx"), "of another fal, ?[2Jx", "that steers a terminal"),
    (_book(prices={"a/b": {"usd": "0", "unit": "", "at": NOW}}), "is no price", "for nothing"),
    (_book(prices={"a/b": {"usd": "1e999999999", "unit": "", "at": NOW}}), "is no price", "that fills the memory"),
    (_book(prices={"a/b": {"usd": "x", "unit": "", "at": NOW}}), "is no price", "no number"),
    (_book(prices={"a b": {"usd": "1", "unit": "", "at": NOW}}), "is no price", "of no endpoint"),
    (_book(prices={"a/b": {"usd": 0.025, "unit": "", "at": NOW}}), "is torn", "a float"),
    (_book(more=1), "is torn", "more than we write"),
    (_book()[:-1] + " " * MAX_BYTES + "}", "more than", "too large"),
    (_book(prices=0).replace("0}", "[" * 100_000), "is torn", "a bomb"),
]


@pytest.mark.parametrize(("text", "says", "why"), TORN)
def test_a_file_of_ours_that_does_not_read_back_is_ignored_and_written_anew(
    text: str, says: str, why: str, file: PriceFile
) -> None:
    file.path.write_text(text)
    file.path.chmod(0o600)
    with pytest.raises(PriceFileError, match=says.replace("[", r"\[").replace("?", r"\?")) as error:
        file.read()
    assert not error.value.foreign, why
    file.write({"a/c": _fetched("1")})
    assert list(file.read()) == ["a/c"], why


def test_a_file_that_others_can_write_is_not_believed(file: PriceFile) -> None:
    file.write({"a/b": _fetched("1")})
    file.path.chmod(0o620)
    with pytest.raises(PriceFileError, match="can be written by others"):
        file.read()


FOREIGN: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.write_text('[keys.ada]\nhash = "sha256:00"\n'), "the file of user keys"),
    (lambda path: path.write_text(""), "an empty one"),
    (lambda path: path.write_bytes(b"\x00\xff"), "no text"),
    (lambda path: path.write_text('{"prices":{}}'), "somebody's JSON"),
    (lambda path: path.mkdir(), "a folder"),
    (os.mkfifo, "a pipe, which would wait for a writer"),
]


@pytest.mark.parametrize(("put", "why"), FOREIGN)
def test_somebody_elses_file_is_left_alone(put: Callable[[Path], object], why: str, file: PriceFile) -> None:
    put(file.path)
    before = file.path.read_bytes() if file.path.is_file() else None
    with pytest.raises(PriceFileError) as error:
        file.read()
    assert error.value.foreign, why
    with pytest.raises(PriceFileError):
        file.write({"a/b": _fetched("1")})
    assert (file.path.read_bytes() if file.path.is_file() else None) == before, why
