"""How settings are read: TOML and environment into frozen structs, whatever the structs say. Every mistake is named by
its path, and all are found at once. Knows no setting by name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

ENV_PREFIX = "FAL_PROXY_"


class Finding(NamedTuple):
    """One thing that is wrong or worth knowing about a configuration; `path` is the setting or variable at fault."""

    level: Literal["error", "warning"]
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.level}: {self.path}: {self.message}"


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the settings; its fields are its keys."""


def says(description: str) -> msgspec.Meta:
    """Return the sentence about a setting that help and documentation show."""
    return msgspec.Meta(description=description)


def read_file(path: Path, *, may_be_missing: bool, findings: list[Finding]) -> dict[str, Any]:
    """Return the file's tables, none if it cannot be read."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if not may_be_missing:
            findings.append(Finding("error", str(path), "no such file"))
    except (OSError, ValueError, RecursionError) as error:  # no UTF-8, no TOML, a number beyond all bounds
        findings.append(Finding("error", str(path), f"cannot be read: {error}"))
    return {}


def overlay(
    kind: Any, raw: dict[str, Any], environ: Mapping[str, str], reserved: Collection[str], findings: list[Finding]
) -> None:
    """Lay `FAL_PROXY_SECTION__KEY` variables over the file's tables, but for `reserved` ones that mean something else."""
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name in reserved:
            continue
        keys = name[len(ENV_PREFIX) :].lower().split("__")
        leaf = _leaf_type(kind, keys)
        if leaf is None:
            findings.append(Finding("error", name, "no such setting"))
            continue
        value: Any = environ[name]
        if leaf is not str:
            try:
                value = msgspec.json.decode(value)
            except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
                # A bare word is what people write for one of a few names; the type check below judges it.
                pass
        table = raw
        for key in keys[:-1]:
            inner = table.setdefault(key, {})
            if not isinstance(inner, dict):
                inner = table[key] = {}
            table = inner
        table[keys[-1]] = value


def _leaf_type(kind: Any, keys: list[str]) -> Any:
    """Return the type of the setting that `keys` name, or None."""
    for key in keys:
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            kind = {written(name): hint for name, hint in get_type_hints(kind).items()}.get(key)
        else:
            return None
    return kind


def written(name: str) -> str:
    """Return a field's name as files and variables write it: Python keeps `from` to itself."""
    return name.removesuffix("_")


def section_in(hint: Any) -> tuple[Any, Any] | None:
    """Return (tuple, S) for a list of sections S, (dict, S) for named ones, (None, S) for S itself, else None."""
    origin, inner = get_origin(hint), hint
    if origin is dict:
        inner = get_args(hint)[1]
    elif origin is tuple:
        inner = get_args(hint)[0]
    return (origin, inner) if isinstance(inner, type) and issubclass(inner, msgspec.Struct) else None


def build(kind: Any, raw: Any, path: str, findings: list[Finding]) -> Any:
    """Convert one table, field by field, so that one mistake does not hide the next."""
    if not isinstance(raw, dict):
        findings.append(Finding("error", path, "must be a table"))
        return kind()
    hints = {written(name): hint for name, hint in get_type_hints(kind).items()}
    values: dict[str, Any] = {}
    for key, value in raw.items():
        where = f"{path}.{key}" if path else key
        hint = hints.get(key)
        if hint is None:
            findings.append(Finding("error", where, "no such setting"))
        elif section := section_in(hint):
            values[key] = _build_sections(*section, value, where, findings)
        else:
            try:
                values[key] = msgspec.convert(value, hint, strict=True)
            except (msgspec.ValidationError, UnicodeEncodeError, RecursionError) as error:
                findings.append(Finding("error", where, str(error)))
    return kind(**{name: values[written(name)] for name in kind.__struct_fields__ if written(name) in values})


def _build_sections(shape: Any, kind: Any, value: Any, where: str, findings: list[Finding]) -> Any:
    if shape is None:
        return build(kind, value, where, findings)
    if shape is tuple:
        if not isinstance(value, list):
            findings.append(Finding("error", where, "must be a list of tables"))
            return ()
        return tuple(build(kind, item, f"{where}[{index}]", findings) for index, item in enumerate(value))
    if not isinstance(value, dict):
        findings.append(Finding("error", where, "must be a table"))
        return {}
    return {name: build(kind, item, f"{where}.{name}", findings) for name, item in value.items()}
