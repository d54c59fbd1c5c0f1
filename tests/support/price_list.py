"""A fal that has a price list and runs anything: a service of ours on loopback, in the words of fal's documentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from support.services import Asked, Reply, Service

KEPT = 1_800_000_000.0


def row(endpoint: str, price: str, currency: str = "USD", unit: str = "images") -> str:
    """Return a row of a price list, its price as JSON."""
    return f'{{"endpoint_id":"{endpoint}","unit_price":{price},"unit":"{unit}","currency":"{currency}"}}'


def page(*rows: str, cursor: str | None = None) -> Reply:
    """Return a page of a price list."""
    after = "null" if cursor is None else f'"{cursor}"'
    text = f'{{"prices":[{",".join(rows)}],"next_cursor":{after},"has_more":{str(cursor is not None).lower()}}}'
    return Reply(200, text.encode())


@dataclass
class Fal:
    """What it costs, by id; whatever is asked for beside that has no price. `says` answers in its place."""

    prices: dict[str, str] = field(default_factory=dict)
    says: Callable[[list[str]], Reply | None] | None = None
    units: str = "1"
    questions: list[list[str]] = field(default_factory=list)
    cursors: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.service = Service(self.answer)

    def answer(self, asked: Asked) -> Reply:
        """Answer one request, whatever its host."""
        parts = urlsplit(asked.path)
        if not parts.path.startswith("/api.fal.ai/v1/models/pricing"):
            self.runs.append(parts.path)
            return Reply(200, b"{}", ((b"x-fal-billable-units", self.units.encode()),))
        query = parse_qs(parts.query)
        ids = ",".join(query["endpoint_id"]).split(",")
        self.questions.append(ids)
        self.cursors += query.get("cursor", [])
        self.keys += [value.decode().removeprefix("Key ") for value in asked.values(b"authorization")]
        if self.says is not None and (reply := self.says(ids)) is not None:
            return reply
        return page(*(row(name, self.prices[name]) for name in ids if name in self.prices))


def refusing(*statuses: int, body: bytes = b'{"error":{"type":"server_error","message":"x"}}') -> Callable[..., Reply]:
    """Return what answers with these statuses, the last of them for ever."""
    left = list(statuses)
    return lambda _: Reply(left.pop(0) if len(left) > 1 else left[0], body)
