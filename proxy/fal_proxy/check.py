"""Judge a configuration before anything starts: every mistake as a Finding, all at once, and who may do what.

Errors refuse the start; warnings name postures that are legal and open.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fal_proxy.admin import is_loopback
from fal_proxy.admission.limits import CLASSES, parse_budget
from fal_proxy.admission.rates import parse_rates
from fal_proxy.environment import MIN_SECRET_BYTES, Secret, admin_token, header_secret, signing_secrets
from fal_proxy.identity import DEFAULT_PLAN
from fal_proxy.identity.findings import judge_sources, named_elsewhere
from fal_proxy.identity.key import KeyFileError, KeyRecord, read
from fal_proxy.identity.network import TrustedProxies
from fal_proxy.loading import Finding
from fal_proxy.platform_api.findings import platform_findings
from fal_proxy.policy import inputs, webhooks
from fal_proxy.policy.endpoints import Globs
from fal_proxy.policy.origin import Site
from fal_proxy.policy.plans import compile_plan
from fal_proxy.policy.uploads import UploadRules
from fal_proxy.relay.guard import RUN_CHARS
from fal_proxy.settings import (
    ENV_ADMIN_TOKEN,
    ENV_SECRET,
    ENV_UPSTREAM,
    Plan,
    Settings,
    Storage,
    config_path,
)
from fal_proxy.stores.opening import folder_of, is_shared
from fal_proxy.telemetry import tracing
from fal_proxy.upstream.credentials import FalKey, FalKeys, fal_keys, is_sendable, secret_half
from fal_proxy.upstream.dial import Route

_FILE_HOST = re.compile(r"(?:[a-z0-9\-]+\.)+[a-z0-9\-]*[a-z][a-z0-9\-]*")
_CALLED_WITH_THE_KEY = ("fal.run", "queue.fal.run", "rest.fal.ai", "rest.alpha.fal.ai", "wma.fal.run")
_MOUNT = re.compile(r"(?:/(?!\.\.?(?:/|$))[A-Za-z0-9\-._~]+)+")


@dataclass(slots=True)
class Report:
    """What was found; `settings` are usable when there are no errors."""

    settings: Settings
    findings: list[Finding] = field(default_factory=list)
    access: list[str] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        """Return what refuses the start."""
        return [finding for finding in self.findings if finding.level == "error"]

    def error(self, path: str, message: str) -> None:
        """Note a mistake."""
        self.findings.append(Finding("error", path, message))

    def warn(self, path: str, message: str) -> None:
        """Note an open posture."""
        self.findings.append(Finding("warning", path, message))

    def attempt(self, path: str, build: Callable[[], object]) -> None:
        """Note a mistake if `build` raises ValueError."""
        try:
            build()
        except ValueError as error:
            self.error(path, str(error))


def examine(
    settings: Settings | None,
    config: str | Path | None,
    environ: Mapping[str, str],
    *,
    key: Secret | None = None,
    embedded: bool = False,
) -> Report:
    """Return all findings about `settings`, or about file and environment; `embedded`: an app names its users itself."""
    if settings is None:
        settings, findings = Settings.load(config, environ)
        report = Report(settings, findings)
        if any(finding.path == str(config_path(config, environ)) for finding in findings):
            _judge_keys_of_fal(report, environ, key)
            return report  # what the defaults lack would only hide that the file was not read
    else:
        report = Report(settings)
    _judge_values(report)
    _judge_keys_of_fal(report, environ, key)
    _judge_secrets(report, environ)
    _judge_plans(report)
    _judge_money(report)
    report.findings += platform_findings(report.settings, config_path(config, environ).parent, environ)
    _judge_realtime(report)
    _judge_storage(report)
    report.findings += [*webhooks.findings(report.settings, environ), *tracing.findings(report.settings, environ)]
    _judge_state(report, config_path(config, environ).parent)
    for index, rule in enumerate(report.settings.inputs):
        for fault in inputs.faults(rule):
            report.error(f"inputs[{index}]", fault)
    _judge_sources(report, config_path(config, environ).parent, environ, embedded=embedded)
    _judge_admin(report, admin_token(environ, report.findings))
    return report


def _judge_values(report: Report) -> None:
    settings, server, upstream = report.settings, report.settings.server, report.settings.upstream
    if not _MOUNT.fullmatch(settings.mount):
        report.error("mount", "must be a path such as /api/fal/proxy")
    if not 0 <= server.port <= 65535:
        report.error("server.port", "must be 0 to 65535")
    if server.max_body_bytes < 1:
        report.error("server.max_body_bytes", "must be at least 1")
    for name in ("drain_seconds", "drain_notice_seconds"):
        if not 0 <= getattr(server, name) < float("inf"):
            report.error(f"server.{name}", "must be a number of seconds, zero or more")
    for name in upstream.__struct_fields__:
        if not 0 < getattr(upstream, name) < float("inf"):
            report.error(f"upstream.{name}", "must be a positive number of seconds")
    report.attempt("server.public_url", lambda: Site(server.public_url, (), ()))
    for origin in settings.cors.origins:
        report.attempt("cors.origins", partial(Site, "", (), [origin]))
    for host in server.hosts:
        report.attempt("server.hosts", partial(Site, "", [host], ()))
    for network in server.trusted_proxies:
        report.attempt("server.trusted_proxies", partial(TrustedProxies, [network]))


def _judge_admin(report: Report, secret: Secret | None) -> None:
    admin, token = report.settings.admin, secret.reveal() if secret else ""
    if not 0 <= admin.port <= 65535:
        report.error("admin.port", "must be 0 (off) to 65535")
    if token and (len(token) < MIN_SECRET_BYTES or not token.isascii() or not token.isprintable() or " " in token):
        report.error(ENV_ADMIN_TOKEN, f"needs at least {MIN_SECRET_BYTES} printable ASCII characters, no spaces")
    if admin.port and not is_loopback(admin.host):
        if token:
            report.warn("admin.host", "is not loopback: metrics and their token travel unencrypted")
        else:
            report.error("admin.host", f"is not loopback, so it needs {ENV_ADMIN_TOKEN}; or set admin.port = 0")


def _judge_keys_of_fal(report: Report, environ: Mapping[str, str], key: Secret | None) -> None:
    if key is None:
        found = fal_keys(environ, report.findings)
    else:
        found = FalKeys((FalKey(key),))
        if not is_sendable(key):
            report.error("FAL_KEY", "is no fal key: it must look like <id>:<secret>")
    if any(len(secret_half(each.secret)) < RUN_CHARS for each in found.keys):
        where = "FAL_KEY_FILE" if found.file else "FAL_KEY"
        report.warn(where, f"fal's keys are longer; the guard does not look for a secret of less than {RUN_CHARS}")


def _judge_secrets(report: Report, environ: Mapping[str, str]) -> None:
    settings = report.settings
    needs = ["anonymous callers"] if "anonymous" in settings.identity.sources else []
    needs += ["relayed uploads"] if settings.storage.mode == "relay" else []
    needs += ["webhooks"] if settings.webhooks.mode == "hub" else []
    if needs and not signing_secrets(environ, report.findings):
        report.error(ENV_SECRET, f"{', '.join(needs)} need a signing secret: set it to 32 random bytes, in hex")
    if upstream := environ.get(ENV_UPSTREAM):
        report.attempt(ENV_UPSTREAM, lambda: Route(upstream))
        report.warn(ENV_UPSTREAM, "all traffic, and the fal key, goes there instead of to fal")


def _judge_plans(report: Report) -> None:
    plans = report.settings.plans
    for name, plan in plans.items():
        for glob in plan.endpoints:
            report.attempt(f"plans.{name}.endpoints", partial(Globs, [glob]))
        for header in plan.allow_headers:
            part = Plan(allow_headers=(header,))
            report.attempt(f"plans.{name}.allow_headers", partial(compile_plan, "", part))
        if "**" in plan.endpoints:
            report.warn(f"plans.{name}.endpoints", "** opens every endpoint of fal, whatever it costs")
    if not any(plan.endpoints for plan in plans.values()):
        report.error("plans", 'no plan opens an endpoint: add [plans.default] with endpoints = ["fal-ai/flux/**"]')


def _judge_money(report: Report) -> None:
    settings = report.settings
    report.attempt("total_budget", lambda: parse_budget(settings.total_budget))
    for name, plan in settings.plans.items():
        for key in CLASSES:
            report.attempt(f"plans.{name}.{key}", partial(parse_rates, getattr(plan, key)))
        if plan.concurrent < 1:
            report.error(f"plans.{name}.concurrent", "must be at least 1")
        if plan.realtime_sessions < 0:
            report.error(f"plans.{name}.realtime_sessions", "must be zero or more")
        for amount in ("budget", "total_budget"):
            report.attempt(f"plans.{name}.{amount}", partial(parse_budget, getattr(plan, amount)))
    if settings.identity.anonymous.network_factor < 1:
        report.error("identity.anonymous.network_factor", "must be at least 1")


def _judge_realtime(report: Report) -> None:
    realtime = report.settings.realtime
    report.attempt("realtime.messages", partial(parse_rates, realtime.messages))
    for name in ("token_seconds", "max_message_bytes", "session_seconds", "idle_seconds"):
        if not 0 < getattr(realtime, name) < float("inf"):
            report.error(f"realtime.{name}", "must be a positive number")
    price = realtime.usd_per_second
    if price is not None and not 0 <= price < float("inf"):
        report.error("realtime.usd_per_second", "must be a number, zero or more")
    handing = [name for name, plan in report.settings.plans.items() if plan.realtime_token]
    if realtime.mode != "token":
        for name in handing:
            report.warn(f"plans.{name}.realtime_token", 'says nothing without realtime.mode = "token"')
        return
    for name in handing:
        report.warn(
            f"plans.{name}.realtime_token",
            "what is spent with fal's tokens is not metered: each opens every path of its app's name, of any owner, "
            "and its sockets outlive it",
        )
    if not handing:
        report.warn("realtime.mode", "no plan has realtime_token, so realtime is closed to everybody")


def _judge_storage(report: Report) -> None:
    storage = report.settings.storage
    if storage.mode == "relay" and not report.settings.server.public_url:
        report.warn("server.public_url", "is empty: upload URLs begin with the socket's scheme and the request's Host")
    if storage.max_upload_bytes < 1:
        report.error("storage.max_upload_bytes", "must be at least 1")
    report.attempt("storage.content_types", partial(UploadRules, storage.content_types))
    if not storage.hosts and (storage.mode == "relay" or storage.serve_files):
        report.error("storage.hosts", "is empty, so that nothing can be relayed")
    for host in storage.hosts:
        if not _FILE_HOST.fullmatch(host) or host in _CALLED_WITH_THE_KEY:
            report.error("storage.hosts", f"{host!r} is no file host: a name in lower case, without scheme and port")
        elif host not in Storage().hosts:
            report.warn("storage.hosts", f"{host} is no file host of fal's that we know; what is relayed goes there")


def _judge_state(report: Report, folder: Path) -> None:
    state = report.settings.state
    try:
        shared = is_shared(state.url)
        journal = None if shared else folder_of(state.url, folder)
    except ValueError as error:
        report.error("state.url", str(error))
        return
    if not shared and journal is None:
        report.warn(
            "state.url", "counters, budgets and ownership are lost with the process: memory:///folder keeps them"
        )
    if not shared and state.on_failure == "local":
        report.warn("state.on_failure", "says nothing without a Redis in state.url")
    if state.ownership == "off":
        report.warn("state.ownership", "whoever knows a request id and may call can read and cancel it")


def _judge_sources(report: Report, folder: Path, environ: Mapping[str, str], *, embedded: bool) -> None:
    settings = report.settings
    sources = settings.identity.sources
    if "key" in sources:
        _judge_keys(report, folder / settings.identity.key.file)
    report.findings += judge_sources(settings, header_secret(environ, report.findings), embedded=embedded)
    report.access += [f"{who}: {_opens(settings, DEFAULT_PLAN)}" for who in named_elsewhere(settings.identity)]
    if "anonymous" in sources:
        plan = settings.identity.anonymous.plan
        if plan not in settings.plans:
            report.error("identity.anonymous.plan", f"there is no plan called {plan!r}")
        elif not (settings.total_budget or settings.plans[plan].total_budget):
            report.warn(
                "identity.anonymous", f"strangers may use plan {plan!r}, and no total budget bounds what they cost"
            )
        report.access.append(f"anyone (plan {plan}): {_opens(settings, plan)}")


def _judge_keys(report: Report, path: Path) -> None:
    try:
        records = read(path)
        if records and stat.S_IMODE(path.stat().st_mode) & 0o077:
            report.warn("identity.key.file", "others on this machine can read it: chmod 600")
    except KeyFileError as error:
        report.error("identity.key.file", str(error))
        return
    except OSError as error:
        report.error("identity.key.file", f"cannot be read: {error.strerror}")
        return
    if not records:
        report.warn("identity.key.file", "holds no keys yet: fal-proxy keys add NAME")
    for record in records:
        _judge_key(report, record)


def _judge_key(report: Report, record: KeyRecord) -> None:
    if record.plan not in report.settings.plans:
        report.error(f"keys.{record.name}.plan", f"there is no plan called {record.plan!r}")
    report.access.append(f"key {record.name} (plan {record.plan}): {_opens(report.settings, record.plan)}")


def _opens(settings: Settings, name: str) -> str:
    plan = settings.plans.get(name)
    if plan is None or not plan.endpoints:
        return "nothing"
    uploads = "" if settings.storage.mode == "off" else f"; uploads ({plan.upload or 'without limit'})"
    reads = "their own requests" if settings.state.ownership == "strict" else "any request whose id they know"
    limits = [plan.submit or "no rate", f"{plan.concurrent} at a time", plan.budget or "no budget"]
    totals = [f"{text} together" for text in (plan.total_budget, settings.total_budget) if text]
    kinds, realtime = ["run", "stream", "submit"], settings.realtime
    if realtime.mode == "relay" and plan.realtime_sessions:
        kinds.append("realtime")
    if realtime.mode == "token" and plan.realtime_token:
        kinds.append("fal tokens")
    if realtime.wma and plan.realtime_sessions:
        kinds.append("world models")
    opens = f"{', '.join(kinds[:-1])} and {kinds[-1]} on {', '.join(plan.endpoints)}"
    note = '; fal.stream and streamStatus with connectionMode "server" only' if realtime.mode != "token" else ""
    return f"{opens} ({'; '.join(limits + totals)}){uploads}; reads {reads}{note}"
