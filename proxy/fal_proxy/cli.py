"""The commands. Each is a few lines: the work is done below."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from fal_proxy import check as checks
from fal_proxy._version import __version__
from fal_proxy.app import App, create_app
from fal_proxy.demo import Demo
from fal_proxy.demo.playground import open_playground
from fal_proxy.downstream.websocket import SocketProtocol
from fal_proxy.environment import SECRET_VARIABLES, Secret, captured, secret_in_url, shared_secrets
from fal_proxy.errors import Misconfigured
from fal_proxy.hangup import Hangup
from fal_proxy.hardening import forbid_core_dumps, forget_variables
from fal_proxy.identity import key as user_keys
from fal_proxy.platform_api import reconciliation
from fal_proxy.platform_api.live import ask_fal
from fal_proxy.refusing import EXIT_MISCONFIGURED, refusing
from fal_proxy.server import ADMIN_CONNECTIONS, LAST_CALLS_SECONDS, Drain, Listener, bind
from fal_proxy.server import serve as run_server
from fal_proxy.settings import Settings, config_path
from fal_proxy.telemetry.lines import LineWriter
from fal_proxy.telemetry.masking import SecretMask
from fal_proxy.upstream.credentials import fal_keys, secret_half

_mask = SecretMask()  # on every handler of this process


def _finite(_: click.Context, option: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter("must be a finite number", param=option)
    return value


_speed = click.option(
    "--speed",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    callback=_finite,
    help="Divides fal's durations.",
)
_config = click.option("--config", type=click.Path(dir_okay=False), help="Settings file; default ./fal-proxy.toml.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fal-proxy")
def main() -> None:
    """Let browser apps use fal.ai without ever holding the fal key."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(_mask)
    logging.getLogger("fal_proxy.reload").setLevel(logging.INFO)  # whoever changes settings waits for an answer


@main.command()
@_config
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 picks a free one.")
@click.option("--reuse-port", is_flag=True, help="Share the port with other processes of the same user.")
@refusing
def serve(config: str | None, host: str | None, port: int | None, reuse_port: bool) -> None:
    """Serve with file and environment as configured; refuses to start while anything is open by mistake."""
    hangup = Hangup()
    environ = captured()
    forbid_core_dumps()
    report = checks.examine(None, config, environ)
    for finding in report.findings:
        if finding.level == "warning":
            click.echo(f"fal-proxy: warning: {finding.path}: {finding.message}", err=True)
    app = create_app(config=config, environ=environ)
    app.follow_file(hangup)
    _mask_secrets(app, [*shared_secrets(environ), *secret_in_url(app.settings.state.url)])
    forget_variables(SECRET_VARIABLES)
    server = app.settings.server
    sock = bind(host or server.host, server.port if port is None else port, reuse_port=reuse_port)
    listener = Listener(
        app,
        sock,
        websockets=SocketProtocol,
        max_message_bytes=app.max_message_bytes,
        lifecycle=app.lifecycle,
        trusts=app.trusts,
    )
    admin = _admin_listener(app.settings, app)
    lines = _access_lines(app)

    def announce() -> None:
        _announce(listener)
        if admin is not None:
            click.echo(f"fal-proxy: metrics on {admin.url}/metrics, the admin page on {admin.url}/", err=True)
        lines.start()

    def drain() -> Drain:
        server = app.settings.server
        return Drain(server.drain_seconds, server.drain_notice_seconds, LAST_CALLS_SECONDS)

    run_server(listener, announce, beside=admin, drain=drain)
    hangup.ignore()


@main.command()
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 picks a free one.")
@_speed
@refusing
def dev(port: int, speed: float) -> None:
    """Play: a page, the proxy and an offline fal on loopback, no key, no configuration, no network."""
    emulator = _emulator()
    proxy_sock, fal_sock = bind("127.0.0.1", port), bind("127.0.0.1", 0)
    fal_url = Listener(None, fal_sock).url
    offline = emulator.create_emulator(fal_url, speed=speed)
    fal = Listener(offline, fal_sock, emulator.EmulatorProtocol, emulator.EmulatorSocket)

    def break_fal(faults: str) -> None:
        offline.faults[:] = emulator.parse_faults(faults)

    with tempfile.TemporaryDirectory(prefix="fal-proxy-dev-") as folder:
        playground = open_playground(Path(folder), fal_url)
        proxy = Listener(
            Demo(playground, offline.journal, break_fal),
            proxy_sock,
            websockets=SocketProtocol,
            max_message_bytes=playground.proxy.max_message_bytes,
            lifecycle=playground.proxy.lifecycle,
        )
        lines = _access_lines(playground.proxy, playground.tokens)

        def announce() -> None:
            _announce(proxy)
            mount, key = playground.settings.mount, playground.user_key
            click.echo(_DEV_HINT.format(url=proxy.url, mount=mount, key=key, fal=fal_url))
            lines.start()

        run_server(proxy, announce, beside=fal)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="0 picks a free one.")
@click.option("--public-url", help="What handed-out URLs start with; default: the address listened on.")
@_speed
@click.option("--seed", type=int, help="Makes chance repeatable.")
@click.option(
    "--faults",
    default="",
    help="'GLOB:KIND[=ARG][@P];…', KIND: status delay reset stall truncate nginx502 gzip; sockets: drop garbage oversized close; webhook_: late early twice disorder forged unknown expired rotated huge truncated.",
)
@refusing
def emulate(host: str, port: int, public_url: str | None, speed: float, seed: int | None, faults: str) -> None:
    """Serve an offline fal: every host below one port, /<host>/<path>."""
    emulator = _emulator()
    try:
        parsed = emulator.parse_faults(faults)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--faults") from error
    sock = bind(host, port)
    url = Listener(None, sock).url
    app = emulator.create_emulator((public_url or url).rstrip("/"), speed=speed, seed=seed, faults=parsed)
    listener = Listener(app, sock, emulator.EmulatorProtocol, emulator.EmulatorSocket)
    run_server(listener, lambda: _announce(listener))


@main.command()
@_config
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--live", is_flag=True, help="Ask fal too, with every key; costs nothing.")
@refusing
def check(config: str | None, as_json: bool, live: bool) -> None:
    """Judge file and environment: every finding, and who may do what. Exit 0 with warnings, 3 with errors."""
    environ = captured()
    report = checks.examine(None, config, environ)
    _mask_environment(environ)
    heard = asyncio.run(ask_fal(report.settings, environ)) if live else None
    report.findings += heard.findings if heard else []
    if as_json:
        findings = [finding._asdict() for finding in report.findings]
        answers = {"live": heard.answers} if heard else {}
        click.echo(json.dumps({"findings": findings, "access": report.access, **answers}))
    else:
        for finding in report.findings:
            click.echo(str(finding))
        for line in report.access:
            click.echo(f"access: {line}")
        for line in heard.lines() if heard else ():
            click.echo(f"live: {line}")
        if not report.findings:
            click.echo("nothing to say against it")
    sys.exit(EXIT_MISCONFIGURED if report.errors else 0)


@main.command()
@reconciliation.options
@refusing
def reconcile(**given: Any) -> None:
    """Compare fal's bills with our access lines. Exit 0 when they agree, 1 when they differ, 3 when nobody can say."""
    environ = captured()
    forbid_core_dumps()
    _mask_environment(environ)
    forget_variables(SECRET_VARIABLES)
    sys.exit(asyncio.run(reconciliation.run(environ, **given)))


@main.group()
def keys() -> None:
    """User keys: who may call with `Authorization: Bearer fpk_…`."""


@keys.command("add")
@click.argument("name")
@click.option("--plan", default="default", show_default=True, help="The plan that the key's holder is on.")
@_config
@refusing
def add_key(name: str, plan: str, config: str | None) -> None:
    """Create a key for NAME and print it, this once and never again."""
    path, settings = _key_file(config)
    if plan not in settings.plans:
        raise Misconfigured(
            [f"there is no plan called {plan!r}: add [plans.{plan}] to {config_path(config, captured())}"]
        )
    click.echo(user_keys.add(path, name, plan))


@keys.command("list")
@_config
@refusing
def list_keys(config: str | None) -> None:
    """List names, plans and creation times."""
    for record in user_keys.read(_key_file(config)[0]):
        click.echo(f"{record.name}\t{record.plan}\t{record.created}")


@keys.command("revoke")
@click.argument("name")
@_config
@refusing
def revoke_key(name: str, config: str | None) -> None:
    """Remove NAME's key; running proxies notice with the next request."""
    user_keys.revoke(_key_file(config)[0], name)


def _key_file(config: str | None) -> tuple[Path, Settings]:
    environ = captured()
    settings, findings = Settings.load(config, environ)
    if errors := [f"{finding.path}: {finding.message}" for finding in findings if finding.level == "error"]:
        raise Misconfigured(errors)
    return config_path(config, environ).parent / settings.identity.key.file, settings


def _admin_listener(settings: Settings, app: App) -> Listener | None:
    if not settings.admin.port:
        return None
    try:
        return Listener(app.admin, bind(settings.admin.host, settings.admin.port), max_connections=ADMIN_CONNECTIONS)
    except Misconfigured as error:
        raise Misconfigured([f"admin.port: {finding}" for finding in error.findings]) from error


def _access_lines(*apps: App) -> LineWriter:
    """Send access lines to stdout, and nowhere else; they wait until the first line of stdout is written."""
    lines = LineWriter(sys.stdout, masked=_mask.masked)
    for app in apps:
        app.access.outlet = lines
    return lines


def _mask_environment(environ: dict[str, str]) -> None:
    keys = [text for key in fal_keys(environ, []).keys for text in (key.secret.reveal(), secret_half(key.secret))]
    _mask.learn([*keys, *(secret.reveal() for secret in shared_secrets(environ))])


def _mask_secrets(app: App, others: list[Secret]) -> None:
    _mask.learn(secret.reveal() for secret in others)

    def learn(keys: list[Secret]) -> None:
        _mask.learn([text for key in keys for text in (key.reveal(), secret_half(key))], of=app)

    app.keys.listen(learn)


def _announce(listener: Listener) -> None:
    click.echo(f"listening on {listener.url}")


def _emulator() -> ModuleType:
    try:
        from fal_proxy import emulator
    except ModuleNotFoundError as error:
        if error.name != "PIL":
            raise
        raise Misconfigured(
            [
                "the emulator paints with Pillow, which is not installed here (the image leaves it out): pip install pillow"
            ]
        ) from error
    return emulator


_DEV_HINT = """
Open:            {url}/
In your page:    fal.config({{ proxyUrl: "{url}{mount}" }})
From a shell:    curl {url}{mount}/fal.run/fal-ai/flux/dev -H 'Authorization: Bearer {key}' \\
                      -H 'Content-Type: application/json' -d '{{"prompt": "a harbour at dawn"}}'
Offline fal:     {fal}
No key of fal's is used, nothing leaves this machine. Ctrl-C ends it."""
