"""`[[inputs]]` in the settings: how it is read, and which mistakes `check` names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fal_proxy.check import examine
from fal_proxy.policy.inputs import InputRules, faults
from fal_proxy.settings import InputRule, Settings
from support.documents import README


def _load(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> tuple[Settings, list[str]]:
    file = tmp_path / "fal-proxy.toml"
    file.write_text(text, "utf-8")
    settings, findings = Settings.load(file, environ or {})
    return settings, [f"{finding.path}: {finding.message}" for finding in findings]


def test_rules_are_read_in_file_order(tmp_path: Path) -> None:
    settings, findings = _load(
        tmp_path,
        """
        [[inputs]]
        endpoint = "fal-ai/flux/**"
        default = { num_images = 1 }
        clamp = { num_images = [1, 2], guidance = [0.5, 20] }
        [[inputs]]
        endpoint = "**"
        drop = ["sync_mode"]
        """,
    )
    assert findings == []
    assert settings.inputs == (
        InputRule(
            endpoint="fal-ai/flux/**",
            default={"num_images": 1},
            clamp={"num_images": (1, 2), "guidance": (0.5, 20)},
        ),
        InputRule(endpoint="**", drop=("sync_mode",)),
    )


def test_rules_can_come_from_the_environment_as_json(tmp_path: Path) -> None:
    settings, findings = _load(tmp_path, "", {"FAL_PROXY_INPUTS": '[{"endpoint": "a/b", "reject": ["x"]}]'})
    assert findings == []
    assert settings.inputs == (InputRule(endpoint="a/b", reject=("x",)),)


UNREADABLE = [
    ("inputs = 3", "inputs: must be a list of tables", "no list"),
    ('inputs = { endpoint = "a/b" }', "inputs: must be a list of tables", "one table instead of a list"),
    ("inputs = [1]", "inputs[0]: must be a table", "a list of something else"),
    ('[[inputs]]\nendpoint = "a/b"\nforces = {}', "inputs[0].forces: no such setting", "an unknown key"),
    ("[[inputs]]\nendpoint = 1", "inputs[0].endpoint: Expected `str`, got `int`", "a wrong type"),
    ("[[inputs]]\nclamp = { n = [1] }", "inputs[0].clamp: Expected `array` of length 2", "half a range"),
    ('[[inputs]]\nclamp = { n = ["1", "2"] }', "inputs[0].clamp: Expected `int | float`", "a range of texts"),
    ("[[inputs]]\nclamp = { n = [true, 2] }", "inputs[0].clamp: Expected `int | float`", "a range of booleans"),
    ('[[inputs]]\ndrop = "x"', "inputs[0].drop: Expected `array`", "a text instead of a list"),
]


@pytest.mark.parametrize(("text", "finding", "reason"), UNREADABLE, ids=[row[2] for row in UNREADABLE])
def test_what_cannot_be_read_is_named_by_its_path(tmp_path: Path, text: str, finding: str, reason: str) -> None:
    _, findings = _load(tmp_path, text)
    assert [found for found in findings if found.startswith(finding)], (reason, findings)


def test_number_too_long_to_read_is_a_finding(tmp_path: Path) -> None:
    _, findings = _load(tmp_path, "inputs = " + "9" * 5000)
    assert len(findings) == 1
    assert "cannot be read" in findings[0]


CONTRADICTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"endpoint": "", "drop": ("x",)}, "endpoint: '' is no endpoint glob", "a rule for nothing"),
    ({"endpoint": "/a/b", "drop": ("x",)}, "endpoint: '/a/b' is no endpoint glob", "a leading slash"),
    ({"endpoint": "a/b**", "drop": ("x",)}, "** must be a whole segment", "half a wildcard"),
    ({}, "has no effect", "a rule without parts"),
    ({"clamp": {"n": (2, 1)}}, "clamp.n: must be two finite numbers", "a range the wrong way round"),
    ({"clamp": {"n": (0, float("inf"))}}, "clamp.n: must be two finite numbers", "infinity is no end"),
    ({"clamp": {"n": (float("nan"), 1)}}, "clamp.n: must be two finite numbers", "nor is NaN"),
    ({"clamp": {"n": (0, 10**5000)}}, "clamp.n", "an end that no JSON should hold, or error text print"),
    ({"default": {"n": "1"}, "clamp": {"n": (1, 2)}}, "default.n: must be a number", "a default that clamp refuses"),
    ({"drop": ("n",), "force": {"n": 1}}, "drop: n contradicts force.n", "set and removed"),
    ({"drop": ("n",), "default": {"n": 1}}, "drop: n contradicts default.n", "inserted and removed"),
    ({"drop": ("n",), "clamp": {"n": (1, 2)}}, "drop: n contradicts clamp.n", "bounded and removed"),
    ({"force": {"n": float("nan")}}, "force.n: is no JSON value", "NaN would become null"),
    ({"default": {"n": [{"m": 2**64}]}}, "default.n: is no JSON value", "an integer that callers may not send either"),
    ({"force": {"n": object()}}, "force.n: is no JSON value", "TOML dates and the like"),
    ({"reject": ("a.b",)}, "reject: 'a.b' is no top-level field", "paths are not supported: no false safety"),
    ({"drop": ("",)}, "drop: '' is no top-level field", "an empty name"),
]


@pytest.mark.parametrize(("parts", "fault", "reason"), CONTRADICTIONS, ids=[row[2] for row in CONTRADICTIONS])
def test_rule_that_makes_no_sense_is_named_and_never_compiled(parts: dict[str, Any], fault: str, reason: str) -> None:
    rule = InputRule(**{"endpoint": "a/b", **parts})
    assert [found for found in faults(rule) if fault in found], (reason, list(faults(rule)))
    with pytest.raises(ValueError, match=r"."):
        InputRules([rule])
    assert f"inputs[0]: {next(faults(rule))}" in [
        f"{finding.path}: {finding.message}" for finding in examine(Settings(inputs=(rule,)), None, {}).errors
    ]


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"clamp": {"n": (1, 1)}}, "a range of one"),
        ({"reject": ("n",), "force": {"n": 1}}, "what callers may not set, the operator may"),
        ({"force": {"n": None, "m": {"a": [1.5, "x", False]}}}, "any JSON value"),
    ],
)
def test_rule_that_makes_sense_has_no_faults(parts: dict[str, Any], reason: str) -> None:
    assert list(faults(InputRule(endpoint="a/b", **parts))) == [], reason


def test_readme_example_does_what_the_readme_says(tmp_path: Path) -> None:
    section = README.read_text("utf-8").partition("### What may be asked")[2]
    example, asked, sent = re.findall(
        r"```toml\n(.*?)```.*?`({.*?})` arrives at fal as\n`({.*?})`", section, re.DOTALL
    )[0]
    settings, findings = _load(tmp_path, example)
    assert findings == []
    rules = InputRules(settings.inputs)
    assert rules.judge("fal-ai/flux/dev", asked.encode()) == sent.encode()
    assert json.loads(sent)["num_images"] == 2
