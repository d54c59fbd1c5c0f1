"""What a job costs: `[prices]`. Pure.

Money is exact: USD are fractions as the settings spell them, amounts are integer micro-dollars, rounded up once per job.
Knows no store and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

from fal_proxy.policy.endpoints import App, Globs, plainly, spelled_plainly
from fal_proxy.policy.inputs import denied, is_number

MICROUSD = 1_000_000
MAX_UNITS = 10_000

_TABLE_KEYS = frozenset(["usd", "reserve_units", "units_from"])


@dataclass(frozen=True, slots=True)
class Price:
    """The price of one endpoint."""

    usd: Fraction  # per unit
    reserve_units: Fraction = Fraction(1)
    units_from: str | None = None  # the field of the input that says how many units a job will be
    text: str = field(init=False, compare=False)  # of `usd`, as it is written down with a job
    reserved_microusd: int = field(init=False, compare=False)  # where the input says nothing

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", str(self.usd))
        object.__setattr__(self, "reserved_microusd", _rounded_up(self.usd * self.reserve_units))


class Prices:
    """The price list of one deployment, compiled once at start."""

    def __init__(self, prices: Mapping[str, object]) -> None:
        """Compile `[prices]` as TOML gives it; raise ValueError with one sentence for the first malformed entry."""
        for fault in faults(prices):
            raise ValueError(fault)
        compiled = {spelled_plainly(name): _price(value) for name, value in prices.items()}
        self.default = compiled.pop("default", None)  # of whatever has no price of its own
        self._exact = {name: price for name, price in compiled.items() if "*" not in name}
        self._counted = Globs([name for name, price in compiled.items() if price.units_from is not None])
        globs = sorted((name for name in compiled if "*" in name), key=len, reverse=True)
        self._globs = [(Globs([name]), compiled[name]) for name in globs]
        self._remembered = lru_cache(maxsize=512)(self._price_of)

    def price_of(self, endpoint_id: str) -> Price | None:
        """Return the price by exact id, else by the longest matching glob, else the default; None without any."""
        return self._remembered(endpoint_id)

    def _price_of(self, endpoint_id: str) -> Price | None:
        price = self.named_price_of(spelled_plainly(endpoint_id))
        return self.default if price is None else price

    def named_price_of(self, plain_id: str) -> Price | None:
        """Return the price of a plainly spelled id as the operator names it: exactly, or by glob."""
        if (price := self._exact.get(plain_id)) is not None:
            return price
        return next((price for globs, price in self._globs if globs.match(plain_id)), None)

    def reads_inputs_of(self, app: App) -> bool:
        """Say whether the price of the app, or of anything below it, may depend on its input."""
        counted = self.default is not None and self.default.units_from is not None
        return counted or self._counted.reach(plainly(app))

    def needs_input(self, endpoint_id: str) -> bool:
        """Say whether the price depends on the input, so that the body must be read whole."""
        price = self.price_of(endpoint_id)
        return price is not None and price.units_from is not None


def reservation_microusd(price: Price, given: Mapping[str, Any]) -> int:
    """Return what to set aside for a job with this input. Raises Refusal `input_denied`."""
    name = price.units_from
    if name is None or name not in given:
        return price.reserved_microusd
    units = given[name]
    if not (is_number(units) and 0 <= units <= MAX_UNITS):
        raise denied(f"{name} must be a number from 0 to {MAX_UNITS}: the price depends on it")
    return _rounded_up(price.usd * _exact(units))


@lru_cache(maxsize=1024)  # the same few prices and units over and over, and fractions are slow
def charge_for(usd: str, units: str) -> int:
    """Return what a job costs by the price and the units as they were written down."""
    return _rounded_up(Fraction(usd) * Fraction(units))


def per_seconds_microusd(usd_per_second: Fraction, seconds: float) -> int:
    """Return what so many seconds of something cost."""
    return _rounded_up(usd_per_second * Fraction(seconds))


def faults(prices: Mapping[str, object]) -> Iterator[str]:
    """Say in one sentence each what is wrong with a price list."""
    spellings: dict[str, str] = {}
    for name, value in prices.items():
        plain = spelled_plainly(name)
        if plain in spellings:
            yield f"{name}: is {spellings[plain]} in another spelling"
        spellings.setdefault(plain, name)
        if name != "default":
            try:
                Globs([name, plain])
            except ValueError as error:
                yield str(error)
        yield from (f"{name}: {fault}" for fault in _faults_of_price(value))


def _faults_of_price(value: object) -> Iterator[str]:
    if not isinstance(value, dict):
        if not _is_amount(value):
            yield "must be USD per unit, zero or more, or a table with usd"
        return
    for key in value.keys() - _TABLE_KEYS:
        yield f"{key}: no such key; there are {', '.join(sorted(_TABLE_KEYS))}"
    if not _is_amount(value.get("usd")):
        yield "usd: must be a number, zero or more"
    if not _is_amount(value.get("reserve_units", 1)):
        yield "reserve_units: must be a number, zero or more"
    units_from = value.get("units_from", "any")
    if not isinstance(units_from, str) or not units_from or "." in units_from:
        yield "units_from: must name a top-level field of the input"


def _price(value: Any) -> Price:
    if not isinstance(value, dict):
        return Price(_exact(value))
    return Price(_exact(value["usd"]), _exact(value.get("reserve_units", 1)), value.get("units_from"))


def _is_amount(value: object) -> bool:
    if isinstance(value, Decimal):
        return value.is_finite() and value >= 0
    return is_number(value) and 0 <= value < math.inf


def _exact(value: float | Decimal) -> Fraction:
    """Return the number as it was spelled: a float stands for the shortest decimal that means it."""
    return Fraction(repr(value)) if isinstance(value, float) else Fraction(value)


def _rounded_up(usd: Fraction) -> int:
    return math.ceil(usd * MICROUSD)
