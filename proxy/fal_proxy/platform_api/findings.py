"""What is wrong, or worth knowing, about prices and the platform API: the operator's prices, the feed's settings and its
file, the key for bills. Asks nobody.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

from fal_proxy.environment import ENV_FAL_ADMIN_KEY, fal_admin_key
from fal_proxy.loading import Finding
from fal_proxy.platform_api import PlatformApi
from fal_proxy.platform_api.price_file import Fetched, PriceFile, PriceFileError
from fal_proxy.policy import pricing
from fal_proxy.policy.endpoints import spelled_plainly
from fal_proxy.policy.pricing import Prices
from fal_proxy.settings import ENV_UPSTREAM, Plan, Settings
from fal_proxy.upstream.credentials import fal_keys, is_sendable
from fal_proxy.upstream.dial import Route

_SEGMENT = "x0x0"  # of an endpoint that no glob means by itself


def platform_findings(settings: Settings, folder: Path, environ: Mapping[str, str]) -> list[Finding]:
    """Return all findings; `folder` is that of the settings file."""
    feed = settings.price_feed
    faults = [Finding("error", "prices", fault) for fault in pricing.faults(settings.prices)]
    findings = faults + list(_judge_feed(settings))
    cached: Mapping[str, Fetched] = {}
    if feed.mode == "fetch" and feed.file:
        try:
            cached = PriceFile(folder / feed.file, source(environ)).read()
        except PriceFileError as error:
            findings.append(Finding("warning", "price_feed.file", f"{error}; it is ignored"))
        if not (folder / feed.file).parent.is_dir():
            findings.append(Finding("error", "price_feed.file", "its folder does not exist"))
    if not faults:
        findings += _judge_plans(settings, cached)
    return findings + list(_judge_admin_key(environ))


def source(environ: Mapping[str, str]) -> str:
    """Return the address of the platform API as this environment has it."""
    try:
        route = Route(environ.get(ENV_UPSTREAM))
    except ValueError:  # a finding of its own
        route = Route()
    return PlatformApi.address(route)


def unpriced(settings: Settings, plan: Plan) -> list[str]:
    """Return the endpoints of a plan, as it writes them, of which `[prices]` do not name every one."""
    prices = Prices(settings.prices)
    return [
        glob
        for glob in dict.fromkeys(plan.endpoints)
        if any(prices.named_price_of(name) is None for name in _samples(spelled_plainly(glob)))
    ]


def has_budget(settings: Settings, plan: Plan) -> bool:
    """Say whether money is counted for the plan's callers."""
    return bool(plan.budget or plan.total_budget or settings.total_budget)


def _judge_admin_key(environ: Mapping[str, str]) -> Iterator[Finding]:
    findings: list[Finding] = []
    key = fal_admin_key(environ, findings)
    yield from findings
    if key is None:
        return
    if not is_sendable(key):
        yield Finding("error", ENV_FAL_ADMIN_KEY, "is no fal key: it must look like <id>:<secret>")
    elif any(key.reveal() == each.secret.reveal() for each in fal_keys(environ, []).keys):
        message = (
            "is also a key that requests are sent with: give those one of API scope, which cannot read your account"
        )
        yield Finding("warning", ENV_FAL_ADMIN_KEY, message)


def _judge_feed(settings: Settings) -> Iterator[Finding]:
    feed = settings.price_feed
    for name in ("refresh_seconds", "max_age_seconds"):
        if not 0 < getattr(feed, name) < float("inf"):
            yield Finding("error", f"price_feed.{name}", "must be a positive number of seconds")
    if feed.max_age_seconds < feed.refresh_seconds:
        yield Finding("error", "price_feed.max_age_seconds", "must not be less than refresh_seconds")
    if feed.mode == "fetch" and not any(has_budget(settings, plan) for plan in settings.plans.values()):
        yield Finding("warning", "price_feed.mode", "says nothing without a budget: prices are for budgets only")


def _judge_plans(settings: Settings, cached: Mapping[str, Fetched]) -> Iterator[Finding]:
    fetching = settings.price_feed.mode == "fetch"
    for name, plan in settings.plans.items():
        if not has_budget(settings, plan):
            continue
        if not settings.prices and not fetching:
            message = (
                f"plan {name!r} has a budget, which needs prices: [prices] with at least `default`, or [price_feed]"
            )
            yield Finding("error", "prices", message)
            continue
        if "default" in settings.prices:
            continue
        for glob in unpriced(settings, plan):
            if not fetching:
                message = f"{glob} has no price in [prices], or not all of it has: without one, 403 under the budget"
                yield Finding("warning", f"plans.{name}.endpoints", message)
            elif "*" not in glob and spelled_plainly(glob) not in cached:
                message = f"{glob} has no price yet: fal is asked when it is first requested; `check --live` asks now"
                yield Finding("warning", f"plans.{name}.endpoints", message)


def _samples(glob: str) -> Iterator[str]:
    """Return endpoints that stand for all that the glob opens: nothing, one and two segments for each `**`."""
    choices = [
        ["", _SEGMENT, f"{_SEGMENT}/{_SEGMENT}"] if segment == "**" else [segment.replace("*", _SEGMENT)]
        for segment in glob.split("/")
    ]
    for chosen in itertools.islice(itertools.product(*choices), 100):
        if name := "/".join(part for part in chosen if part):
            yield name
