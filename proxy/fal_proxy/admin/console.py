"""What the operator's page shows and does: usage, health, what is stopped; one caller's limits, reset, blocked or not.

Shows what this process has seen; what it stops, it stops in every process that shares the store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from fal_proxy import routes
from fal_proxy._version import __version__
from fal_proxy.admin import Admin, Answer
from fal_proxy.admin.usage import CSV, as_csv, summary, tally_of
from fal_proxy.admission import blocks
from fal_proxy.client import File
from fal_proxy.errors import Refusal, StoreUnavailable
from fal_proxy.exchange import Caller, shown_of
from fal_proxy.gateway import Gateway
from fal_proxy.stores.mailbox import Mailbox

_JSON = b"application/json"
_FOLDER = Path(__file__).with_name("page")
_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
_OURS = ((b"cross-origin-resource-policy", b"same-origin"),)


class Console:
    """Views and actions of the admin listener."""

    def __init__(self, current: Callable[[], Gateway], *, can_act: bool, mailbox: Mailbox | None) -> None:
        """Take what returns the gateway of the settings in force, and the mailbox where webhooks are received."""
        self._current = current
        self._can_act = can_act
        self._mailbox = mailbox

    def open(self, admin: Admin) -> None:
        """Add its routes to the admin listener."""
        admin.serve_page(page_files())
        admin.show(routes.USAGE.raw, self.usage)
        admin.show(routes.EXPORT.raw, self.export)
        admin.do(routes.STOP_PAID.raw, self._stop_paid)
        admin.do(routes.RESUME_PAID.raw, self._resume_paid)
        admin.show_caller(routes.CALLER.around[0], self.caller)
        actions = {routes.BLOCK: self._block, routes.UNBLOCK: self._unblock, routes.RESET: self._reset}
        for route, action in actions.items():
            admin.act_on_caller(*route.around, action)

    async def usage(self) -> Answer:
        """Return what the page shows first. Raises Refusal."""
        metrics = self._gateway.telemetry.metrics
        return _answer(
            {
                "version": __version__,
                "now": time.time(),
                "began": self._gateway.telemetry.rollup.began,
                "can_act": self._can_act,
                "hour": summary(self._gateway.telemetry.rollup.minutes()),
                "day": summary(self._gateway.telemetry.rollup.hours()),
                "live": {kind: count for kind, count in metrics.in_flight().items() if count},
                "stopped": await self._stopped(),
                "health": await self._health(),
            }
        )

    async def export(self) -> Answer:
        """Return the last day's hours as CSV. Raises Refusal."""
        hours = self._gateway.telemetry.rollup.hours()  # the running one is a copy, and the others do not change
        return CSV, await asyncio.to_thread(as_csv, hours)

    async def caller(self, shown: str) -> Answer:
        """Return what is known about a caller. Raises Refusal store_unavailable."""
        known = self._gateway.telemetry.rollup.find(shown)
        marks = await self._gateway.gate.marks()
        about: dict[str, Any] = {"caller": shown, "blocked_since": marks.get(blocks.name_of(shown)), "known": False}
        about["hour"] = [tally_of(span, shown) for span in self._gateway.telemetry.rollup.minutes()]
        about["day"] = [tally_of(span, shown) for span in self._gateway.telemetry.rollup.hours()]
        if known is not None:
            about |= {"known": True, "plan": known.plan, "source": known.source, **self._network(known, marks)}
            if known.plan in (gateway := self._gateway).plans:
                about["standing"] = await gateway.gate.standing(known, known.plan)
        return _answer(about)

    async def _stop_paid(self) -> Answer:
        await self._gateway.gate.mark(blocks.PAID, stopped=True)
        return _answer({"paid": "stopped"})

    async def _resume_paid(self) -> Answer:
        await self._gateway.gate.mark(blocks.PAID, stopped=False)
        return _answer({"paid": "running"})

    async def _block(self, shown: str) -> Answer:
        await self._gateway.gate.mark(blocks.name_of(shown), stopped=True)
        return _answer({"caller": shown, "blocked": True})

    async def _unblock(self, shown: str) -> Answer:
        await self._gateway.gate.mark(blocks.name_of(shown), stopped=False)
        return _answer({"caller": shown, "blocked": False})

    async def _reset(self, shown: str) -> Answer:
        gateway = self._gateway
        known = gateway.telemetry.rollup.find(shown)
        if known is None or known.plan not in gateway.plans:
            raise Refusal("not_found", "this process has not seen the caller; ask one that has, or the caller to call")
        await gateway.gate.forget(known, known.plan)
        return _answer({"caller": shown, "reset": True})

    @property
    def _gateway(self) -> Gateway:
        return self._current()

    def _network(self, caller: Caller, marks: Mapping[str, float]) -> dict[str, Any]:
        if not caller.network or caller.network == caller.id:
            return {"network": None}
        shown = shown_of(caller.network)
        return {"network": {"caller": shown, "blocked_since": marks.get(blocks.name_of(shown))}}

    async def _stopped(self) -> dict[str, Any] | None:
        """Return what is marked, None while the store is away."""
        try:
            marks = await self._gateway.gate.store.marks()
        except StoreUnavailable:
            return None
        callers = [{"caller": shown, "since": marks[blocks.name_of(shown)]} for shown in blocks.callers_in(marks)]
        return {"paid_since": marks.get(blocks.PAID), "callers": sorted(callers, key=lambda each: -each["since"])}

    async def _health(self) -> dict[str, Any]:
        keys, settler = self._gateway.keys, self._gateway.settler
        found: dict[str, Any] = {
            "keys": {"reasons": keys.reasons(), "usable": keys.usable(), "resting": keys.resting()},
            "store": True,
            "settler_seconds": settler.since_turn_seconds(),
            "webhooks": None,
        }
        try:
            await self._gateway.gate.store.ping()
        except StoreUnavailable:
            found["store"] = False
        if self._mailbox is not None:
            try:
                kept = await self._mailbox.standing()
                found["webhooks"] = {"events": kept.events, "waiting": kept.waiting, "dead_letters": kept.dead}
            except StoreUnavailable:
                found["webhooks"] = {"away": True}
        return found


def _answer(value: object) -> Answer:
    return _JSON, msgspec.json.encode(value)


def page_files() -> dict[bytes, File]:
    """Return the page's files by the paths they are served at."""
    served = {
        routes.PAGE.around[0] + path.name.encode(): File.of(path, _TYPES[path.suffix], _OURS)
        for path in _FOLDER.iterdir()
        if path.suffix in _TYPES
    }
    return {routes.OVERVIEW.raw: served.pop(routes.PAGE.around[0] + b"index.html"), **served}
