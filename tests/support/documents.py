"""The README's tables, derived from the lists in code. Run as a script to rewrite them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import click
import msgspec

from fal_proxy.cli import main
from fal_proxy.client import FILES, integrity
from fal_proxy.errors import ERROR_TYPES
from fal_proxy.loading import section_in, written
from fal_proxy.reloading import NEEDS_RESTART
from fal_proxy.routes import ROUTES, Served
from fal_proxy.settings import Settings
from fal_proxy.telemetry.access import AccessLine
from fal_proxy.telemetry.catalogue import METRICS

README = Path(__file__).resolve().parents[2] / "README.md"
RESTART = " *(restart)*"
_PLACES = {"mount": "proxy", "root": "proxy", "admin": "admin"}


def error_rows() -> list[str]:
    """Return one table row per error type."""
    return [f"| {row.status} | `{name}` | {row.meaning} |" for name, row in ERROR_TYPES.items()]


def setting_rows() -> list[str]:
    """Return one table row per setting, with its default as TOML writes it, and whether it needs a restart."""
    return [
        f"| `{path}` | `{default}` | {description}{RESTART if path in NEEDS_RESTART else ''} |"
        for path, default, description in _walk(Settings, "")
    ]


def access_rows() -> list[str]:
    """Return one table row per field of an access line."""
    hints = get_type_hints(AccessLine, include_extras=True)
    return [f"| `{name}` | {hint.__metadata__[0].description} |" for name, hint in hints.items()]


def metric_rows() -> list[str]:
    """Return one table row per metric."""
    rows = METRICS.values()
    return [
        f"| `{row.name}` | {row.type} | {' '.join(f'`{label}`' for label in row.labels)} | {row.meaning} |"
        for row in rows
    ]


def commands(group: click.Group = main, prefix: str = "fal-proxy") -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its whole name."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def command_rows() -> list[str]:
    """Return one table row per command, with its options."""
    rows = []
    for name, command in commands():
        arguments = [str(part.human_readable_name) for part in command.params if isinstance(part, click.Argument)]
        options = [
            f"`{max(part.opts, key=len)}` {_cell(part.help)}"
            for part in command.params
            if isinstance(part, click.Option)
        ]
        rows.append(f"| `{' '.join([name, *arguments])}` | {_cell(command.help)} | {'<br>'.join(options)} |")
    return rows


def route_rows() -> list[str]:
    """Return one table row per route."""
    return [f"| {_PLACES[route.where]} | {route.methods} | `{shown(route)}` | {route.meaning} |" for route in ROUTES]


def shown(route: Served) -> str:
    """Return a route's path as documentation writes it."""
    return route.below("<mount>")


def _cell(text: str | None) -> str:
    """Return help text as a cell of a table: one line, and nothing that Markdown takes for a tag or a border."""
    return " ".join((text or "").split()).replace("<", "&lt;").replace("|", "&#124;")


def _walk(kind: type[msgspec.Struct], prefix: str) -> Iterator[tuple[str, str, str]]:
    defaults = kind()
    for name, annotated in get_type_hints(kind, include_extras=True).items():
        hint, *extras = get_args(annotated) if get_origin(annotated) is Annotated else (annotated,)
        if section := section_in(hint):
            shape, inner = section
            yield from _walk(inner, prefix + name + {dict: ".NAME.", tuple: "[].", None: "."}[shape])
        else:
            yield prefix + written(name), json.dumps(getattr(defaults, name)), extras[0].description


def with_tables(text: str) -> str:
    """Return the README with its derived tables and the shim's hash filled in."""
    tables = {
        "errors": error_rows(),
        "commands": command_rows(),
        "routes": route_rows(),
        "settings": setting_rows(),
        "access": access_rows(),
        "metrics": metric_rows(),
    }
    for name, rows in tables.items():
        pattern = rf"(<!-- {name}: [^\n]*-->\n[^\n]*\n[^\n]*\n).*?(<!-- /{name} -->)"
        filled = "\n".join(rows).replace("\\", r"\\")
        text = re.sub(pattern, rf"\g<1>{filled}\n\g<2>", text, flags=re.DOTALL)
    pinned = integrity(FILES[b"/client.js"].content)
    return re.sub(r"sha384-[A-Za-z0-9+/]{64}", lambda _: pinned, text)


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text("utf-8")), "utf-8")
