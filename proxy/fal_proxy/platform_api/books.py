"""Our own books, as access lines tell them: what each request of fal's cost its caller here. Asks nobody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from fractions import Fraction

import msgspec

from fal_proxy.exchange import ADMITTED
from fal_proxy.headers import billable_units
from fal_proxy.policy.pricing import MICROUSD


class _Line(msgspec.Struct, frozen=True):
    """What of an access line counts here; lines of versions that had no `request_id` are read too."""

    ts: datetime
    kind: str
    decision: str
    endpoint: str | None = None
    plan: str | None = None
    request_id: str | None = None
    units: str | None = None
    cost_microusd: int | None = None


class Charge(msgspec.Struct):
    """One request of fal's in our lines."""

    endpoint: str
    first: datetime
    last: datetime
    plan: str | None = None
    microusd: int | None = None  # None: no line charged anything
    units: Fraction | None = None  # the last that fal told us

    @property
    def usd(self) -> Fraction:
        """Return what was charged."""
        return Fraction(self.microusd or 0, MICROUSD)


class Books:
    """What a stretch of access lines says."""

    def __init__(self, lines: Iterable[str | bytes] = ()) -> None:
        self.charges: dict[str, Charge] = {}
        self.charging: set[str | None] = set()  # plans that charged anybody for anything
        self.unnamed: Counter[str] = Counter()  # micro-dollars that no request of fal's is named for, by endpoint
        self.read = 0
        self.skipped = 0  # lines that are none of ours
        self._decode = msgspec.json.Decoder(_Line).decode
        for line in lines:
            self._take(line)

    def _take(self, text: str | bytes) -> None:
        try:
            line = self._decode(text)
        except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
            self.skipped += 1
            return
        self.read += 1
        at = line.ts if line.ts.tzinfo else line.ts.replace(tzinfo=UTC)
        endpoint, cost = line.endpoint or line.kind, line.cost_microusd
        if cost is not None and line.plan is not None:
            self.charging.add(line.plan)
        if not line.request_id:
            if cost:
                self.unnamed[endpoint] += cost
            return
        if line.decision != ADMITTED and cost is None:
            return  # refused before fal heard of it, and so the id is whatever somebody asked for
        charge = self.charges.get(line.request_id)
        if charge is None:
            charge = self.charges[line.request_id] = Charge(endpoint, at, at)
        charge.first, charge.last = min(charge.first, at), max(charge.last, at)
        charge.plan = charge.plan or line.plan
        if len(endpoint) > len(charge.endpoint):
            charge.endpoint = endpoint  # polls name the app, the submit all of the endpoint
        if cost is not None:
            charge.microusd = (charge.microusd or 0) + cost
        if line.units is not None and billable_units([line.units.encode()]):
            charge.units = Fraction(line.units)
