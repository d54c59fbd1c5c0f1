"""`check --live`: asks fal itself, with every key, what costs nothing, and says what was heard. Never shows a key.

Two questions a key: the status of a request that never was, which the queue refuses a bad key and a locked account, and
the price list, which needs a valid key. Nothing that could be billed is sent. A lock is seen only if fal says so to a
read; otherwise with the first paid request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from fal_proxy.environment import ENV_FAL_ADMIN_KEY, Secret, fal_admin_key
from fal_proxy.loading import Finding
from fal_proxy.platform_api import HOST, PlatformApi, PlatformError, said
from fal_proxy.platform_api.findings import has_budget, unpriced
from fal_proxy.platform_api.price_list import exact_ids
from fal_proxy.platform_api.prices import MOST_IDS, PATH, ask_prices, is_askable
from fal_proxy.policy import pricing
from fal_proxy.policy.endpoints import spelled_plainly
from fal_proxy.settings import ENV_UPSTREAM, Settings
from fal_proxy.upstream.credentials import authorization, fal_keys, is_sendable
from fal_proxy.upstream.dial import Origin, Route, is_public, resolve
from fal_proxy.upstream.keys import Fault, fault_in, shown
from fal_proxy.upstream.own_calls import OwnAnswer, OwnCallError, OwnCalls

ASK_SECONDS = 10.0
RESOLVE_SECONDS = 5.0
MAX_BYTES = 1024 * 1024
AT_ONCE = 8
SLOW_SECONDS = 2.0
SKEW_SECONDS = 30.0
BILLS = "/v1/models/billing-events"
_QUEUE = b"queue.fal.run"
_NEVER_WAS = b"/fal-ai/flux/requests/00000000-0000-4000-8000-000000000000/status"
_SAMPLE = "fal-ai/flux/dev"
_NEEDED = (b"fal.run", _QUEUE)


@dataclass(slots=True)
class Heard:
    """What was found out; `answers` is for programs, `lines` for people."""

    findings: list[Finding] = field(default_factory=list)
    hosts: dict[str, int] = field(default_factory=dict)  # addresses of each
    keys: list[dict[str, Any]] = field(default_factory=list)
    clock_seconds: float | None = None  # how far fal's clock is ahead of ours
    prices: dict[str, str | None] = field(default_factory=dict)

    @property
    def answers(self) -> dict[str, Any]:
        """Return everything but the findings, for JSON."""
        return {"hosts": self.hosts, "keys": self.keys, "clock_seconds": self.clock_seconds, "prices": self.prices}

    def lines(self) -> list[str]:
        """Return the same as sentences."""
        told = [f"{host} has {count} address{'' if count == 1 else 'es'}" for host, count in self.hosts.items()]
        for key in self.keys:
            word = "accepts" if key["accepted"] else "does not accept"
            took = "" if key["milliseconds"] is None else f", and answers in {key['milliseconds']:.0f} ms"
            told.append(f"fal {word} key {key['key']}{took}")
        if self.clock_seconds is not None:
            told.append(
                f"fal's clock is {abs(self.clock_seconds):.1f} s {'ahead' if self.clock_seconds > 0 else 'behind'}"
            )
        return told + [f"{name} costs {price or 'what fal does not say'}" for name, price in self.prices.items()]


async def ask_fal(settings: Settings, environ: Mapping[str, str]) -> Heard:
    """Ask with every key of the environment; takes as long as fal does, at most half a minute."""
    heard = Heard()
    found = fal_keys(environ, [])
    keys = [key.secret for key in found.keys if is_sendable(key.secret)]
    variable = "FAL_KEY_FILE" if found.file else "FAL_KEY" if environ.get("FAL_KEY", "").strip() else "FAL_KEY_ID"
    try:
        route = Route(environ.get(ENV_UPSTREAM))
    except ValueError:
        return heard  # a finding already, and nowhere to ask
    await _look_up(heard, settings, route)
    calls = OwnCalls(seconds=ASK_SECONDS, max_bytes=MAX_BYTES, connections=AT_ONCE)
    asker = _Asker(heard, route, calls, _wanted(settings))
    try:
        limit = asyncio.Semaphore(AT_ONCE // 2)
        await asyncio.gather(*(asker.ask(key, variable, limit) for key in keys))
        await asker.price(settings)
        admin = fal_admin_key(environ, [])
        if admin is not None and is_sendable(admin):
            await asker.ask_for_bills(admin)
    finally:
        await calls.close()
    asker.judge_clock()
    return heard


class _Asker:
    def __init__(self, heard: Heard, route: Route, calls: OwnCalls, wanted: list[str]) -> None:
        self._heard = heard
        self._route = route
        self._calls = calls
        self._wanted = wanted
        self._accepted: Secret | None = None
        self._skews: list[float] = []

    async def ask(self, key: Secret, variable: str, limit: asyncio.Semaphore) -> None:
        """Find out what fal says to one key."""
        record: dict[str, Any] = {"key": shown(key), "accepted": False, "milliseconds": None}
        self._heard.keys.append(record)
        async with limit:
            try:
                answer, seconds = await self._get(_QUEUE, _NEVER_WAS, key)
            except OwnCallError as error:
                self._find("error", variable, key, f"queue.fal.run cannot be reached: {error}")
                return
            record["milliseconds"] = round(seconds * 1000, 1)
            refused = _refusal(answer)
            if refused is None:
                refused = await self._ask_platform(key, variable)
        if refused:
            self._find("error", variable, key, refused)
            return
        record["accepted"] = True
        self._accepted = self._accepted or key
        if answer.status >= 429:
            self._find("warning", variable, key, f"queue.fal.run answers {answer.status}")
        if seconds > SLOW_SECONDS:
            self._find("warning", variable, key, f"queue.fal.run took {seconds:.1f} s to answer")

    async def _ask_platform(self, key: Secret, variable: str) -> str | None:
        """Return why the key is refused: the queue may say 404 to anybody, the price list says nothing without a key."""
        path = f"{PATH}?endpoint_id={_SAMPLE}".encode()
        try:
            answer, _ = await self._get(HOST, path, key)
        except OwnCallError as error:
            self._find(
                "warning", variable, key, f"api.fal.ai cannot be reached: {error}; so it is not certain to be valid"
            )
            return None
        if answer.status == 401:
            return "fal's price list refuses it: it is invalid, or lacks the API scope"
        if answer.status not in (200, 404):
            self._find(
                "warning", variable, key, f"of fal's price list, {said(answer)}; so it is not certain to be valid"
            )
        return None

    async def price(self, settings: Settings) -> None:
        """Ask what costs what in plans with a budget, and has no price of the operator's."""
        if self._accepted is None or not self._wanted:
            return
        try:
            found = await ask_prices(PlatformApi(self._route, self._calls), self._wanted, self._accepted)
        except PlatformError as error:
            if error.status != 404:
                self._heard.findings.append(Finding("warning", "price_feed", f"fal's price list: {error.detail}"))
                return
            found = {}
        for name in self._wanted:
            offer = found.get(name)
            self._heard.prices[name] = f"${float(offer.price.usd):.10g} per {offer.unit or 'unit'}" if offer else None
            if offer is None and "default" not in settings.prices:
                message = f"fal names no price for {name}, and [prices] do not either: 403 under the budget"
                self._heard.findings.append(Finding("warning", "prices", message))

    async def ask_for_bills(self, key: Secret) -> None:
        """Find out whether the key for bills may read them."""
        try:
            answer, _ = await self._get(HOST, f"{BILLS}?limit=1".encode(), key)
        except OwnCallError as error:
            self._find("warning", ENV_FAL_ADMIN_KEY, key, f"api.fal.ai cannot be reached: {error}")
            return
        if answer.status in (401, 403):
            self._find(
                "error", ENV_FAL_ADMIN_KEY, key, f"it may not read bills, which needs admin scope: {said(answer)}"
            )
        elif answer.status != 200:
            self._find("warning", ENV_FAL_ADMIN_KEY, key, f"of fal's bills, {said(answer)}")

    def judge_clock(self) -> None:
        """Say how far our clock is off."""
        if not self._skews:
            return
        nearest: float = min(self._skews, key=abs)
        skew = self._heard.clock_seconds = round(nearest, 1)
        if abs(skew) > SKEW_SECONDS:
            word = "behind" if skew > 0 else "ahead of"
            message = f"is {abs(skew):.0f} s {word} fal's: tokens and the signatures of webhooks are judged by it"
            self._heard.findings.append(Finding("warning", "clock", message))

    async def _get(self, host: bytes, path: bytes, key: Secret) -> tuple[OwnAnswer, float]:
        """Return the answer and how long it took. Raises OwnCallError."""
        began, wall = time.monotonic(), time.time()
        answer = await self._calls.get(self._route.address(host, path).decode("ascii"), [authorization(key)])
        seconds = time.monotonic() - began
        try:
            # The field has whole seconds, rounded down.
            theirs = parsedate_to_datetime(answer.date).timestamp() + 0.5
        except (ValueError, TypeError):
            return answer, seconds
        self._skews.append(theirs - wall - seconds / 2)
        return answer, seconds

    def _find(self, level: Any, variable: str, key: Secret, message: str) -> None:
        self._heard.findings.append(Finding(level, variable, f"key {shown(key)}: {message}"))


def _refusal(answer: OwnAnswer) -> str | None:
    """Return what the queue's answer says against the key."""
    fault = fault_in(answer.status, answer.body)
    if fault is Fault.INVALID:
        return "fal calls it invalid (401)"
    if fault is Fault.LOCKED:
        return f"fal says that its account is locked (403){_reason(answer.body)}: see fal.ai/dashboard/billing"
    if answer.status in (401, 403):
        return f"queue.fal.run refuses it with {answer.status}, and does not say that it is invalid or locked"
    return None


def _reason(body: bytes) -> str:
    known = (
        b"Exhausted balance",
        b"Admin lock",
        b"User budget is exceeded",
        b"Please add a payment method",
        b"archived",
    )
    return next((f", {each.decode()}" for each in known if each in body), "")


def _wanted(settings: Settings) -> list[str]:
    """Return what plans with a budget name and the operator does not price, as far as one question goes."""
    if any(pricing.faults(settings.prices)):
        return []
    plans = [plan for plan in settings.plans.values() if has_budget(settings, plan)]
    missing = {spelled_plainly(glob) for plan in plans for glob in unpriced(settings, plan)}
    return [name for name in exact_ids(plans) if name in missing and is_askable(name)][:MOST_IDS]


async def _look_up(heard: Heard, settings: Settings, route: Route) -> None:
    """Resolve every host that this deployment calls."""
    hosts = [*_NEEDED, b"rest.fal.ai", HOST]
    hosts += [b"wma.fal.run"] if settings.realtime.wma else []
    files = settings.storage.hosts if settings.storage.mode == "relay" or settings.storage.serve_files else ()
    hosts += [host.encode() for host in files]
    origins = {route.to(host, b"/")[0]: host for host in reversed(hosts)}  # with an override they are one
    await asyncio.gather(*(_look_up_one(heard, origin, host) for origin, host in reversed(origins.items())))


async def _look_up_one(heard: Heard, origin: Origin, host: bytes) -> None:
    level: Any = "error" if host in _NEEDED else "warning"
    heard.hosts[origin.host] = 0
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            addresses = await resolve(origin.host, origin.port)
    except (OSError, UnicodeError):  # TimeoutError is one of them
        heard.findings.append(Finding(level, origin.host, "has no address here"))
        return
    heard.hosts[origin.host] = len(addresses)
    if not origin.trusted and not any(is_public(address) for _, address, _ in addresses):
        heard.findings.append(
            Finding(level, origin.host, "resolves to an address that is not public: nothing is sent there")
        )
