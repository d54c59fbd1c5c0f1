"""Fetched prices on disk: `price_feed.file`. Read once, replaced whole, never written where somebody else's file is.

A file is believed if it is ours, of the same fal, and nobody else can write it: what it says decides what callers pay.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from fal_proxy.platform_api.prices import Offer, is_askable, offer_of
from fal_proxy.whole_file import write_whole

MAX_PRICES = 5000
MAX_BYTES = 2 * 1024 * 1024
CLOCK_SECONDS = 300.0  # that two clocks may differ by
_WHAT = "fal-proxy price feed 1"
_OURS = b'{"what":"fal-proxy price feed'  # how every file of ours begins, a torn one too


class Fetched(NamedTuple):
    """An offer, and when it was fetched (seconds, wall clock)."""

    offer: Offer
    at: float


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    usd: str
    unit: str
    at: float


class _Book(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    what: str
    source: str
    prices: dict[str, _Row]


class PriceFileError(ValueError):
    """The file is not to be believed; the text says why. `foreign`: it is not ours to replace either."""

    def __init__(self, message: str, *, foreign: bool = False) -> None:
        super().__init__(message)
        self.foreign = foreign


class PriceFile:
    """One file, of the fal at one address."""

    def __init__(self, path: Path, source: str, now: Callable[[], float] = time.time) -> None:
        self.path = path
        self._source = source
        self._now = now

    def read(self) -> dict[str, Fetched]:
        """Return what the file says, nothing if there is none. Raises PriceFileError."""
        data = _believable(self.path)
        if data is None:
            return {}
        try:
            if len(data) > MAX_BYTES:
                raise PriceFileError(f"has more than {MAX_BYTES} bytes, and will be written anew")
            book = msgspec.json.decode(data, type=_Book)
        except (msgspec.DecodeError, RecursionError) as error:
            raise PriceFileError("is torn, and will be written anew") from error
        if book.what != _WHAT:
            raise PriceFileError("is of another version, and will be written anew")
        if book.source != self._source:
            raise PriceFileError(f"holds prices of another fal, {_shown(book.source)}, and will be written anew")
        found, latest = {}, self._now() + CLOCK_SECONDS
        for name, row in book.prices.items():
            offer = offer_of(row.usd, row.unit)
            if offer is None or not is_askable(name):
                raise PriceFileError("holds what is no price, and will be written anew")
            if row.at <= latest:  # what a clock that was wrong wrote down would never grow old
                found[name] = Fetched(offer, row.at)
        return found

    def write(self, known: Mapping[str, Fetched]) -> None:
        """Replace the file: what is known here, and what another process fetched later.

        Raises PriceFileError for a file that is not ours to replace, OSError.
        """
        try:
            merged = self.read()
        except PriceFileError as error:
            if error.foreign:
                raise
            merged = {}
        for name, fetched in known.items():
            if name not in merged or merged[name].at < fetched.at:
                merged[name] = fetched
        newest = sorted(merged.items(), key=lambda item: item[1].at)[-MAX_PRICES:]
        rows = {name: _Row(_decimal(each.offer), each.offer.unit, each.at) for name, each in newest}
        write_whole(self.path, msgspec.json.encode(_Book(_WHAT, self._source, rows)).decode())


def _believable(path: Path) -> bytes | None:
    """Return what is in the file, None if there is none. Raises PriceFileError for one that we cannot have written."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PriceFileError(f"cannot be read: {error.strerror or error}", foreign=True) from error
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        os.close(descriptor)
        raise PriceFileError("is no file", foreign=True)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if not data.startswith(_OURS):
        raise PriceFileError("is no price list of ours: name another file, this one is left alone", foreign=True)
    if stat.S_IMODE(state.st_mode) & 0o022 or state.st_uid not in (os.geteuid(), 0):
        raise PriceFileError("can be written by others, so it is not believed, and will be written anew")
    return data


def _decimal(offer: Offer) -> str:
    """Return the price as a decimal text, which every fetched one has: they came as decimals."""
    usd, places = offer.price.usd, 0
    while usd.denominator != 1:
        usd, places = usd * 10, places + 1
    return f"{usd.numerator}e-{places}"


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:100])
