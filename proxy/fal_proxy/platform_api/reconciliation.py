"""The command `reconcile`: its options, where its key and its lines come from, and what its exit code means."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, TypeVar

import click

from fal_proxy.environment import ENV_FAL_ADMIN_KEY, fal_admin_key
from fal_proxy.errors import Misconfigured
from fal_proxy.loading import Finding
from fal_proxy.platform_api import PlatformApi, PlatformError
from fal_proxy.platform_api.billing import MAX_DAYS, Bills
from fal_proxy.platform_api.books import Books
from fal_proxy.platform_api.reconcile import Window, as_json, as_lines, reconcile
from fal_proxy.settings import ENV_UPSTREAM
from fal_proxy.upstream.credentials import is_sendable
from fal_proxy.upstream.dial import Route
from fal_proxy.upstream.own_calls import OwnCalls

EXIT_DIFFERENT = 1
ASK_SECONDS = 60.0
MAX_BYTES = 32 * 1024 * 1024
_AGO = re.compile(r"(\d{1,6})([hdm])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
F = TypeVar("F", bound=Callable[..., Any])


def options(command: F) -> F:
    """Add the command's options."""
    for option in (
        click.option("--json", "as_program", is_flag=True, help="Print one JSON object."),
        click.option(
            "--late", default="1h", show_default=True, help="What is younger may still be billed: 30m, 2h, 1d."
        ),
        click.option(
            "--tolerance", default="0.000001", show_default=True, help="Dollars by which a request may differ."
        ),
        click.option("--lines", multiple=True, default=("-",), help="Files of access lines; - is stdin, the default."),
        click.option("--until", help="End, not included; default: now."),
        click.option("--since", required=True, help="2026-01-31, a time in ISO 8601 (UTC), or 24h, 7d ago."),
    ):
        command = option(command)
    return command


async def run(
    environ: Mapping[str, str],
    since: str,
    until: str | None,
    lines: tuple[str, ...],
    tolerance: str,
    late: str,
    as_program: bool,
) -> int:
    """Compare and print; return the exit code. Raises Misconfigured, OSError, click.BadParameter."""
    now = datetime.now(UTC)
    window = _window(now, since, until, late)
    allowed = _tolerance(tolerance)
    findings: list[Finding] = []
    key = fal_admin_key(environ, findings)
    if findings := [finding for finding in findings if finding.level == "error"]:
        raise Misconfigured([f"{finding.path}: {finding.message}" for finding in findings])
    if key is None or not is_sendable(key):
        raise Misconfigured(
            [f"{ENV_FAL_ADMIN_KEY}: bills are read with a fal key of admin scope: set it, or its _FILE"]
        )
    try:
        route = Route(environ.get(ENV_UPSTREAM))
    except ValueError as error:
        raise Misconfigured([f"{ENV_UPSTREAM}: {error}"]) from error
    books = Books(_each_line(lines))
    api = PlatformApi(route, OwnCalls(seconds=ASK_SECONDS, max_bytes=MAX_BYTES, connections=1))
    try:
        outcome = await reconcile(Bills(api, key), books, window, allowed)
    except PlatformError as error:
        if error.status in (401, 403):
            raise Misconfigured([f"{ENV_FAL_ADMIN_KEY}: it may not read bills: {error.detail}"]) from error
        raise Misconfigured([f"fal's bills cannot be read: {error.detail}"]) from error
    finally:
        await api.close()
    if as_program:
        click.echo(json.dumps(as_json(outcome)))
    else:
        for line in as_lines(outcome):
            click.echo(line)
    return EXIT_DIFFERENT if outcome.differences else 0


def _each_line(names: tuple[str, ...]) -> Iterator[bytes]:
    with ExitStack() as stack:
        for name in names:
            file = sys.stdin.buffer if name == "-" else stack.enter_context(open(name, "rb"))  # noqa: PTH123 -- `-` too
            yield from file


def _window(now: datetime, since: str, until: str | None, late: str) -> Window:
    begin = _moment(now, since, "--since")
    end = now if until is None else _moment(now, until, "--until")
    if not begin < end:
        raise click.BadParameter("must be before --until", param_hint="--since")
    if end - begin > timedelta(days=MAX_DAYS):
        raise click.BadParameter(f"fal shows at most {MAX_DAYS} days at once", param_hint="--since")
    return Window(begin, min(end, now), now, _span(late, "--late"))


def _moment(now: datetime, text: str, hint: str) -> datetime:
    if _AGO.fullmatch(text):
        return now - _span(text, hint)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter("must be a date or time in ISO 8601, or such as 24h or 7d", param_hint=hint) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _span(text: str, hint: str) -> timedelta:
    found = _AGO.fullmatch(text)
    if found is None:
        raise click.BadParameter("must be such as 30m, 24h or 7d", param_hint=hint)
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _tolerance(text: str) -> Fraction:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal(-1)
    if not amount.is_finite() or not 0 <= amount <= 1000:
        raise click.BadParameter("must be dollars, from 0 to 1000", param_hint="--tolerance")
    return Fraction(amount)
