"""What `check` says about identity sources: each mistake named by its setting, each open posture a warning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fal_proxy.check import examine
from fal_proxy.settings import ENV_HEADER_SECRET, Settings

GOOD = {
    "FAL_KEY": "id:a-secret-of-24-characters",
    "FAL_PROXY_STATE": "memory://state",
    "FAL_PROXY_SERVER__PUBLIC_URL": "https://app.example.com",
    "FAL_PROXY_PLANS": '{"default": {"endpoints": ["fal-ai/flux/**"]}}',
    "FAL_PROXY_IDENTITY__JWT__ISSUER": "https://login.example.com/",
    "FAL_PROXY_IDENTITY__JWT__AUDIENCE": "fal-proxy",
    "FAL_PROXY_IDENTITY__FORWARD__URL": "https://app.example.com/whoami",
    "FAL_PROXY_IDENTITY__HEADER__FROM": '["10.0.0.0/8"]',
    "FAL_PROXY_IDENTITY__SOURCES": '["jwt", "forward", "header"]',
}


def _findings(folder: Path, **changes: object) -> list[tuple[str, str]]:
    environ = {
        **GOOD,
        **{name: value if isinstance(value, str) else json.dumps(value) for name, value in changes.items()},
    }
    (folder / "fal-proxy.toml").touch()
    report = examine(None, folder / "fal-proxy.toml", environ)
    return [(finding.level, finding.path) for finding in report.findings]


def _identity(setting: str) -> str:
    return "FAL_PROXY_IDENTITY__" + setting.upper().replace(".", "__")


ROWS: list[tuple[str, object, str | None, str]] = [
    ("jwt.issuer", "", "error", "nobody's tokens"),
    ("jwt.issuer", "login.example.com", "error", "no URL"),
    ("jwt.issuer", "http://login.example.com", "error", "keys fetched in the clear are anybody's"),
    ("jwt.issuer", "http://127.0.0.1:8080", None, "does not leave this machine"),
    ("jwt.issuer", "http://127.0.0.1.evil.example", "error", "only looks like loopback"),
    ("jwt.issuer", "https://user:pw@login.example.com", "error", "credentials have no place in it"),
    ("jwt.audience", "", "error", "any token of the issuer's would count"),
    ("jwt.jwks_url", "http://login.example.com/keys", "error", "keys fetched in the clear are anybody's"),
    ("jwt.jwks_url", "https://login.example.com/keys", None, "given instead of discovered"),
    ("jwt.algorithms", [], "error", "nothing can be accepted"),
    ("jwt.algorithms", ["none"], "error", "proves nothing"),
    ("jwt.algorithms", ["RS256", "HS256"], "error", "the public key would be the secret"),
    ("jwt.algorithms", ["rs256"], "error", "names are exact"),
    ("jwt.algorithms", ["PS256", "ES512", "Ed25519"], None, "known and safe"),
    ("jwt.plan_claim", "", "error", "no claim"),
    ("forward.url", "", "error", "nobody to ask"),
    ("forward.url", "ftp://app.example.com/", "error", "not HTTP"),
    ("forward.url", "http://app:3000/whoami", "warning", "sessions in the clear, as inside one compose file"),
    ("forward.url", "http://localhost:3000/whoami", None, "does not leave this machine"),
    ("forward.headers", [], "error", "never asked"),
    ("forward.headers", ["host"], "error", "would address another service"),
    ("forward.headers", ["Content-Length"], "error", "would frame another message"),
    ("forward.headers", ["x y"], "error", "no field name"),
    ("forward.headers", ["cookie", "authorization"], None, "both proofs"),
    ("forward.cache_seconds", -1, "error", "no time"),
    ("forward.cache_seconds", 3601, "error", "a session that has ended would go on"),
    ("header.from", [], "error", "anybody could be anybody"),
    ("header.from", ["0.0.0.0/0"], "error", "anybody could be anybody"),
    ("header.from", ["::/0"], "error", "anybody could be anybody"),
    ("header.from", ["proxy.example.com"], "error", "no address"),
    ("header.name", "", "error", "no field"),
    ("header.name", "Cookie", "error", "a field with a meaning of its own"),
    ("header.name", "remote-user", None, "another name"),
    ("header.secret_header", "x_forwarded_user", "error", "the name's own twin"),
]  # fmt: skip


@pytest.mark.parametrize(("setting", "value", "level", "reason"), ROWS)
def test_setting_is_judged(setting: str, value: object, level: str | None, reason: str, tmp_path: Path) -> None:
    found = [
        finding for finding in _findings(tmp_path, **{_identity(setting): value}) if finding[1].startswith("ident")
    ]
    assert found == ([] if level is None else [(level, f"identity.{setting}")]), reason


def test_good_configuration_has_no_findings_and_says_who_may_do_what(tmp_path: Path) -> None:
    assert _findings(tmp_path) == []
    access = examine(None, None, GOOD).access
    assert [line.partition(" (plan")[0] for line in access] == [
        "tokens of https://login.example.com/",
        "whoever https://app.example.com/whoami names",
        "whoever 10.0.0.0/8 names in x-forwarded-user",
    ]


@pytest.mark.parametrize(("secret", "found"), [(None, True), ("", True), ("short", True), ("0123456789abcdef", False)])
def test_secret_header_needs_a_secret_in_the_environment(secret: str | None, found: bool, tmp_path: Path) -> None:
    changes: dict[str, object] = {_identity("header.secret_header"): "x-proxy-secret"}
    if secret is not None:
        changes[ENV_HEADER_SECRET] = secret
    assert (("error", ENV_HEADER_SECRET) in _findings(tmp_path, **changes)) == found


@pytest.mark.parametrize(("source", "found"), [("key", False), ("jwt", False), ("forward", True), ("header", True)])
def test_ambient_sources_need_to_know_which_pages_are_ours(source: str, found: bool, tmp_path: Path) -> None:
    changes = {_identity("sources"): [source], "FAL_PROXY_SERVER__PUBLIC_URL": ""}
    assert (("error", "server.public_url") in _findings(tmp_path, **changes)) == found


@pytest.mark.parametrize(("source", "level"), [("header", "error"), ("jwt", "warning"), ("forward", "warning")])
def test_callers_without_a_plan_need_the_default_one(source: str, level: str, tmp_path: Path) -> None:
    changes = {_identity("sources"): [source], "FAL_PROXY_PLANS": {"pro": {"endpoints": ["x/y"]}}}
    assert _findings(tmp_path, **changes) == [(level, f"identity.{source}")]


def test_field_called_from_is_read_from_file_and_environment(tmp_path: Path) -> None:
    config = tmp_path / "fal-proxy.toml"
    config.write_text('[identity.header]\nfrom = ["10.0.0.1"]\n')
    assert Settings.load(config, {})[0].identity.header.from_ == ("10.0.0.1",)
    settings, findings = Settings.load(config, {_identity("header.from"): '["10.0.0.2"]'})
    assert (settings.identity.header.from_, findings) == (("10.0.0.2",), [])
    config.write_text('[identity.header]\nfrom_ = ["10.0.0.1"]\n')
    assert [finding.path for finding in Settings.load(config, {})[1]] == ["identity.header.from_"]
