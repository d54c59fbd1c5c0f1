"""What the code offers is documented, and what is documented exists: the tables by derivation, the prose word by word.

The tables themselves are compared in `test_repository`. Here: everything that the prose names, and that no part of the
code offers what the lists behind the tables do not know.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
import httpx2
import msgspec
import pytest

from fal_proxy.app import App, create_app
from fal_proxy.client import FILES
from fal_proxy.emulator.faults import FaultKind
from fal_proxy.errors import ERROR_TYPES
from fal_proxy.loading import ENV_PREFIX, Finding, build, overlay
from fal_proxy.routes import ME, PAGE, ROUTES, Served, route_of
from fal_proxy.settings import Settings, Storage, Webhooks
from fal_proxy.telemetry.catalogue import METRICS
from support.documents import README, commands, shown
from support.promql import metric_of
from support.proxied import FAL_KEY, SIGNING_SECRET, open_settings, with_server

ROOT = README.parent
PROXY = ROOT / "proxy" / "fal_proxy"
# What the README points to, and what people copy from.
DOCUMENTS = [README, *(ROOT / name for name in ("SECURITY.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md"))]
TEXT = README.read_text("utf-8")
PROSE = "\n".join(path.read_text("utf-8") for path in DOCUMENTS)
NO_SETTINGS = {"server.address", "storage.googleapis.com"}  # an attribute of spans, a host
OF_CLIENTS = {"FAL_RUN_HOST", "FAL_QUEUE_RUN_HOST"}  # variables that fal's own clients read
# Those that deploy/compose.yaml and deploy/Caddyfile read, and never we.
OF_DEPLOY = {f"FAL_PROXY_{name}" for name in ("HOST", "HTTP_PORT", "PORT", "REPLICAS", "SITE")}
# Paths in code that are fal's, or pieces of one; every other is a route of ours.
OF_FAL = {
    b"/status",
    b"/realtime",
    b"/queue.fal.run/",
    b"/.well-known/jwks.json",
    b"/multipart",
    b"/files/upload",
    b"/storage/upload/complete-multipart",
}


def sources(*, without: tuple[str, ...] = ("emulator", "demo")) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PROXY.rglob("*.py")):
        if not set(path.relative_to(PROXY).parts) & set(without):
            yield path, ast.parse(path.read_text("utf-8"))


def constants(*, without: tuple[str, ...] = ("emulator", "demo")) -> Iterator[tuple[Path, object]]:
    """Yield every constant in the proxy's code."""
    for path, tree in sources(without=without):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant):
                yield path, node.value


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


# Settings


def test_every_toml_of_the_documents_is_made_of_settings_that_exist() -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", PROSE, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    for block in blocks:
        findings: list[Finding] = []
        build(Settings, tomllib.loads(block), "", findings)
        assert findings == [], block


def test_every_setting_that_prose_names_exists() -> None:
    tables = {name for name, kind in Settings.__annotations__.items() if name not in ("mount", "total_budget")}
    assert {"server", "realtime", "telemetry"} <= tables
    table = TEXT.partition("<!-- settings:")[2].partition("<!-- /settings -->")[0]
    known = set(re.findall(r"^\| `([a-z_.\[\]A-Z]+)`", table, re.MULTILINE))
    sections = tables - {"plans", "inputs", "prices"}
    named = set(re.findall(rf"`((?:{'|'.join(sorted(sections))})(?:\.[a-z_]+)+)(?: = [^`]*)?`", PROSE))
    assert len(named) > 20
    within = {".".join(name.split(".")[:count]) for name in known for count in range(1, 4)}
    assert named - known - within - NO_SETTINGS == set()


# Commands


def test_every_command_that_documents_name_has_the_options_that_they_give_it() -> None:
    known = dict(commands())
    judged = 0
    for text in re.findall(r"fal-proxy ([^`|\n]*)", PROSE):
        words = text.split()
        names = [f"fal-proxy {' '.join(words[:count])}" for count in (2, 1)]
        if (command := next((known[name] for name in names if name in known), None)) is not None:
            options = {option for part in command.params for option in part.opts} | {"--help"}
            assert set(re.findall(r"(?<!\S)--[a-z][a-z-]*", text)) <= options, text
            judged += 1
    assert judged > len(known)


def test_every_line_of_a_shell_that_begins_with_us_is_a_command() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", PROSE, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    ours = [
        re.split(r"fal-proxy ", line, maxsplit=1)[1].split()
        for line in lines
        if re.match(r"(\./run )?fal-proxy ", line)
    ]
    assert len(ours) >= 4
    for words in ours:
        assert any(f"fal-proxy {' '.join(words[:count])}" in dict(commands()) for count in (1, 2)), words


# Routes


@pytest.fixture
def everything(tmp_path: Path) -> App:
    """An app with every mode on that adds routes."""
    settings = with_server(open_settings(tmp_path), public_url="https://app.example.com", hosts=("app.example.com",))
    storage, webhooks = Storage(mode="relay", serve_files=True), Webhooks(mode="hub")
    settings = msgspec.structs.replace(settings, storage=storage, webhooks=webhooks)
    environ = {"FAL_PROXY_SECRET": SIGNING_SECRET, "FAL_PROXY_CONFIG": str(tmp_path / "fal-proxy.toml")}
    return create_app(settings, environ=environ, key=FAL_KEY)


def of(where: str) -> list[Served]:
    return [route for route in ROUTES if route.where == where]


def test_the_app_answers_exactly_the_routes_of_the_list(everything: App) -> None:
    gateway = everything._gateway
    hosts = {host.encode() for host in Storage().hosts}
    by_segment = set(gateway.routes) - hosts
    files = {path[1:] for path in FILES}
    own = {route.segment for route in of("mount") if not route.segment.startswith(b"{")}
    assert by_segment | files | {b"me", b""} == own
    admin = everything.admin
    named = {"<number>": "{number}", "<caller>": "{caller}"}
    about = {
        method: {each.before + named[each.named] + each.after for each in admin._routes if each.method == method}
        for method in ("GET", "POST")
    }
    pages = {PAGE.path if path.startswith(PAGE.around[0]) else path.decode() for path in admin._page}
    shown_there = {path.decode() for path in admin._views} | about["GET"] | pages
    acted_on = {path.decode() for path in admin._actions} | about["POST"]
    assert shown_there == {route.path for route in of("admin") if "POST" not in route.methods}
    assert acted_on == {route.path for route in of("admin") if "POST" in route.methods}


async def test_what_lies_beside_the_mount_is_answered_and_nothing_else(everything: App) -> None:
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(everything), base_url="https://app.example.com"
    ) as client:
        for route in (*of("root"), ME):
            answer = await client.get(route.below(everything._mount.decode()))
            assert answer.status_code == 200, route.path
        assert (await client.get("/metrics")).json()["error_type"] == "not_found"
    await everything.close()


def test_every_path_in_code_is_a_route_of_the_list_or_fals() -> None:
    ours = {route.raw for route in ROUTES} | {part for route in ROUTES if "{" in route.path for part in route.around}
    literals = {
        (path.name, value)
        for path, value in constants(without=("emulator", "demo", "policy"))
        if isinstance(value, bytes) and re.fullmatch(rb"/[a-z.][a-z.\-/_]*", value)
    }
    assert {(name, value) for name, value in literals if value not in ours | OF_FAL} == set()
    assert {value for _, value in literals} >= OF_FAL, "one of fal's is gone"


def test_a_span_names_each_route_by_its_template() -> None:
    mount = "/api/fal/proxy"
    for route in of("mount"):
        path = re.sub(r"\{\w+\}", "x", route.below(mount)).encode()
        assert route_of(path, mount) == route.below(mount)
    assert route_of(b"/api/fal/proxy/fal.run/a/b", mount) == mount + "/{host}/{path}"


def test_every_route_that_prose_names_is_in_the_list() -> None:
    named = set(re.findall(r"`(?:GET |POST |PUT )?<mount>(/[a-z0-9.]+)", PROSE))
    assert named <= {"/" + route.segment.decode() for route in of("mount")} | {"/v3.fal.media", "/client.js"}
    assert all(shown(route) in TEXT for route in ROUTES)


# Metrics, error types


def test_every_metric_that_prose_names_exists() -> None:
    named = set(re.findall(r"fal_proxy_[a-z_]+", PROSE)) - {"fal_proxy_anon"}
    assert {name for name in named if name not in METRICS and metric_of(name) is None} == set()
    assert named >= set(METRICS)


def test_every_error_type_that_prose_names_with_its_status_exists() -> None:
    named = set(re.findall(r"\b([45]\d\d) `([a-z_]+)`", PROSE))
    assert len(named) > 5
    assert {
        (status, name) for status, name in named if name not in ERROR_TYPES or ERROR_TYPES[name].status != int(status)
    } == set()


def test_every_error_type_is_used_by_the_code() -> None:
    """The table itself names each once; errors.py names some a second time, as what an exception means."""
    named = [(path.name, value) for path, value in constants() if value in ERROR_TYPES]
    unused = {name for name in ERROR_TYPES if sum(value == name for _, value in named) < 2}
    assert unused == set()


# The environment


def variables() -> set[str]:
    """Return every variable of the environment that the proxy's code names."""
    named = {value for _, value in constants() if isinstance(value, str) and re.fullmatch(r"(FAL|OTEL)_[A-Z_]+", value)}
    return named - {ENV_PREFIX}


def test_every_variable_in_code_is_documented() -> None:
    spelled = {name for name in variables() if "__" in name}  # a setting by its other name
    assert len(variables()) > 10
    assert {name for name in variables() - spelled if not re.search(rf"\b{name}\b", TEXT)} == set()
    assert spelled == {"FAL_PROXY_STATE__URL"}


def test_every_variable_that_prose_names_is_read() -> None:
    deployed = [path.read_text("utf-8") for path in (ROOT / "deploy").iterdir() if path.is_file()]
    named = set(re.findall(r"\bFAL_[A-Z_]*[A-Z]\b", "\n".join([PROSE, *deployed]))) - OF_CLIENTS - OF_DEPLOY
    unknown = named - variables() - {f"{name}_FILE" for name in variables()}
    findings: list[Finding] = []
    overlay(Settings, {}, dict.fromkeys(unknown, "1"), (), findings)
    assert [str(finding) for finding in findings] == [], "neither a variable nor a setting"


# Faults of the offline fal


def test_every_fault_of_the_emulator_is_documented_and_the_reverse() -> None:
    kinds = set(get_args(FaultKind))
    prose = section("Offline fal").partition("Faults: ")[2]
    named = set(re.findall(r"`([a-z0-9_]+)(?:\[?=[^`]*)?`", prose))
    assert kinds - named == set()
    assert {word for word in named if word.startswith("webhook_")} <= kinds
    listed = set(re.findall(r"`([a-z0-9_]+)(?:\[=[A-Z]+\])?`", prose.partition("with `@P`")[0])) | {"drop"}
    assert listed <= kinds


def test_help_names_every_fault() -> None:
    [option] = [part for part in dict(commands())["fal-proxy emulate"].params if part.name == "faults"]
    assert isinstance(option, click.Option)
    plain, _, webhooks = str(option.help).partition("KIND: ")[2].rstrip(".").partition("webhook_: ")
    words = set(re.findall(r"[a-z0-9_]+", plain.replace("sockets:", ""))) | {
        f"webhook_{word}" for word in webhooks.split()
    }
    assert words == set(get_args(FaultKind))
