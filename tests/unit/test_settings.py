"""Settings from flag, environment, file and default; every mistake by its path, all at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fal_proxy.loading import Finding
from fal_proxy.settings import (
    Plan,
    Settings,
    config_path,
    origin_of,
)

# What the contract's page on settings says, for the keys that exist.
DEFAULTS = {
    "mount": "/api/fal/proxy",
    "server": {
        "host": "127.0.0.1",
        "port": 8080,
        "public_url": "",
        "hosts": [],
        "trusted_proxies": [],
        "max_body_bytes": 10485760,
        "drain_seconds": 30,
        "drain_notice_seconds": 0,
    },
    "upstream": {"connect_seconds": 5, "head_seconds": 60, "body_idle_seconds": 900},
    "cors": {"origins": []},
    "identity": {
        "sources": [],
        "key": {"file": "users.toml"},
        "jwt": {
            "issuer": "",
            "audience": "",
            "jwks_url": "",
            "algorithms": ["RS256", "ES256", "EdDSA"],
            "plan_claim": "plan",
        },
        "forward": {"url": "", "headers": ["cookie"], "cache_seconds": 10},
        "header": {"name": "x-forwarded-user", "from_": [], "secret_header": ""},
        "anonymous": {"plan": "default", "network_factor": 20},
    },
    "plans": {},
    "storage": {
        "mode": "direct",
        "hosts": ["v3.fal.media", "v3b.fal.media", "fal.media"],
        "max_upload_bytes": 1073741824,
        "content_types": [
            "image/*",
            "video/*",
            "audio/*",
            "text/*",
            "model/*",
            "application/octet-stream",
            "application/json",
            "application/pdf",
            "application/zip",
            "application/x-zip-compressed",
        ],
        "serve_files": False,
    },
    "realtime": {
        "mode": "relay",
        "token_seconds": 120,
        "usd_per_second": None,
        "max_message_bytes": 1048576,
        "messages": "30/second",
        "session_seconds": 3600,
        "idle_seconds": 300,
        "wma": False,
    },
    "inputs": [],
    "webhooks": {"allowed_hosts": [], "mode": "off"},
    "admin": {"host": "127.0.0.1", "port": 9090},
    "telemetry": {"tracing": False},
    "total_budget": "",
    "prices": {},
    "price_feed": {"mode": "off", "refresh_seconds": 3600, "max_age_seconds": 86400, "file": "fal-prices.json"},
    "state": {"url": "memory://", "on_failure": "deny", "ownership": "strict"},
}


def load(tmp_path: Path, text: str = "", environ: Mapping[str, str] | None = None) -> tuple[Settings, list[Finding]]:
    """Load a file with this text."""
    file = tmp_path / "fal-proxy.toml"
    file.write_text(text)
    return Settings.load(file, environ or {})


def plain(settings: msgspec.Struct) -> Any:
    """Return settings as JSON knows them."""
    return msgspec.json.decode(msgspec.json.encode(settings))


def paths(findings: list[Finding]) -> list[str]:
    """Return where the errors are."""
    assert all(finding.level == "error" for finding in findings)
    return [finding.path for finding in findings]


def test_defaults_are_the_contracts(tmp_path: Path) -> None:
    settings, findings = load(tmp_path)
    assert plain(settings) == DEFAULTS
    assert findings == []
    assert plain(Plan()) == {
        "endpoints": [],
        "methods": ["POST"],
        "allow_headers": [],
        "submit": "20/minute; 200/day",
        "read": "2400/minute",
        "upload": "60/hour",
        "concurrent": 4,
        "realtime_sessions": 1,
        "realtime_token": False,
        "budget": "",
        "total_budget": "",
    }


def test_file_replaces_defaults_and_environment_replaces_the_file(tmp_path: Path) -> None:
    text = "[server]\nport = 1\nhost = 'file'\n[upstream]\nhead_seconds = 7"
    settings, findings = load(
        tmp_path, text, {"FAL_PROXY_SERVER__PORT": "2", "FAL_PROXY_CORS__ORIGINS": '["https://a"]'}
    )
    assert findings == []
    assert (settings.server.port, settings.server.host) == (2, "file")
    assert settings.upstream.head_seconds == 7
    assert settings.cors.origins == ("https://a",)
    assert settings.server.max_body_bytes == 10485760


ENVIRONMENT: list[tuple[str, str, list[str], Any]] = [
    ("FAL_PROXY_MOUNT", "/x", ["mount"], "/x"),
    ("FAL_PROXY_SERVER__PUBLIC_URL", "https://p.example", ["server", "public_url"], "https://p.example"),
    ("FAL_PROXY_SERVER__HOST", "1234", ["server", "host"], "1234"),
    ("FAL_PROXY_SERVER__HOSTS", '["a", "b"]', ["server", "hosts"], ["a", "b"]),
    ("FAL_PROXY_SERVER", '{"port": 3}', ["server", "port"], 3),
    ("FAL_PROXY_UPSTREAM__HEAD_SECONDS", "0.5", ["upstream", "head_seconds"], 0.5),
    ("FAL_PROXY_IDENTITY__SOURCES", '["anonymous", "key"]', ["identity", "sources"], ["anonymous", "key"]),
    ("FAL_PROXY_IDENTITY__KEY__FILE", "k.toml", ["identity", "key", "file"], "k.toml"),
    ("FAL_PROXY_PLANS__FREE__ENDPOINTS", '["a/*"]', ["plans", "free", "endpoints"], ["a/*"]),
    ("FAL_PROXY_PLANS", '{"free": {"methods": ["GET"]}}', ["plans", "free", "methods"], ["GET"]),
    ("FAL_PROXY_STORAGE__MODE", "off", ["storage", "mode"], "off"),
    ("FAL_PROXY_STORAGE__MODE", '"off"', ["storage", "mode"], "off"),
]


@pytest.mark.parametrize(("name", "value", "where", "expected"), ENVIRONMENT)
def test_variable_sets_the_setting_that_it_names(
    name: str, value: str, where: list[str], expected: object, tmp_path: Path
) -> None:
    settings, findings = load(tmp_path, "", {name: value})
    found = plain(settings)
    for key in where:
        found = found[key]
    assert (found, findings) == (expected, [])


def test_deeper_variable_replaces_a_part_of_a_shallower_one(tmp_path: Path) -> None:
    environ = {"FAL_PROXY_SERVER__PORT": "2", "FAL_PROXY_SERVER": '{"port": 1, "host": "h"}'}
    settings, findings = load(tmp_path, "", environ)
    assert (settings.server.port, settings.server.host, findings) == (2, "h", [])


def test_variables_beside_the_settings_are_no_findings(tmp_path: Path) -> None:
    names = ["FAL_PROXY_SECRET", "FAL_PROXY_SECRET_FILE", "FAL_PROXY_UPSTREAM", "FAL_PROXY_CONFIG", "FAL_KEY", "PATH"]
    assert load(tmp_path, "", dict.fromkeys(names, "x"))[1] == []


MISTAKES = [
    ("prot = 1", {}, ["prot"], "unknown at the top"),
    ("[servre]\nport = 1", {}, ["servre"], "unknown table"),
    ("[server]\nprot = 1", {}, ["server.prot"], "unknown in a table"),
    ("[webhooks]\nmode = 'x'", {}, ["webhooks.mode"], "a mode that there is not"),
    ("[server]\nport = '1'", {}, ["server.port"], "a string is no number"),
    ("[server]\nport = true", {}, ["server.port"], "nor is a boolean"),
    ("[server]\nhosts = 'a'", {}, ["server.hosts"], "one is no list"),
    ("[server]\nhosts = ['a', 1]", {}, ["server.hosts"], "one wrong member"),
    ("plans = 1", {}, ["plans"], "no table"),
    ("[plans]\ndefault = 1", {}, ["plans.default"], "no table"),
    ("[[server]]\nport = 1", {}, ["server"], "a list of tables"),
    ("[identity]\nsources = ['oauth']", {}, ["identity.sources"], "unknown source"),
    ("[storage]\nmode = 'proxy'", {}, ["storage.mode"], "no such mode"),
    ("[plans.x]\nmethods = ['HEAD']", {}, ["plans.x.methods"], "not a method that a plan may open"),
    ("[server]\nport = 2026-01-01", {}, ["server.port"], "a date is no number"),
    ("", {"FAL_PROXY_PROT": "1"}, ["FAL_PROXY_PROT"], "unknown variable"),
    ("", {"FAL_PROXY_SERVER__PROT": "1"}, ["FAL_PROXY_SERVER__PROT"], "unknown in a section"),
    ("", {"FAL_PROXY_SERVER__PORT__X": "1"}, ["FAL_PROXY_SERVER__PORT__X"], "below a value"),
    ("", {"FAL_PROXY_": "1"}, ["FAL_PROXY_"], "no name at all"),
    ("", {"FAL_PROXY_SERVER__PORT": "a"}, ["server.port"], "a word is no number"),
    ("", {"FAL_PROXY_SERVER__PORT": ""}, ["server.port"], "nor is nothing"),
    ("", {"FAL_PROXY_SERVER__HOSTS": "a,b"}, ["server.hosts"], "lists are JSON"),
    ("", {"FAL_PROXY_SERVER__HOSTS": "[" * 100_000}, ["server.hosts"], "deep nesting"),
    ("", {"FAL_PROXY_SERVER__HOSTS": '["\udcff"]'}, ["server.hosts"], "bytes that are no UTF-8"),
    ("", {"FAL_PROXY_SERVER": "1"}, ["server"], "no table"),
]


@pytest.mark.parametrize(("text", "environ", "expected", "reason"), MISTAKES)
def test_mistake_is_named_by_its_path(
    text: str, environ: dict[str, str], expected: list[str], reason: str, tmp_path: Path
) -> None:
    settings, findings = load(tmp_path, text, environ)
    assert paths(findings) == expected, reason
    assert settings.server == Settings().server, "a mistake leaves the default in place"


def test_all_mistakes_are_found_at_once(tmp_path: Path) -> None:
    text = "x = 1\n[server]\nport = 'a'\nhost = 1\ny = 2\n[plans.a]\nz = 3\nmethods = 4\n[storage]\nmode = 'no'"
    _, findings = load(tmp_path, text, {"FAL_PROXY_NO": "", "FAL_PROXY_CORS__ORIGINS": "1"})
    expected = ["FAL_PROXY_NO", "x", "server.port", "server.host", "server.y", "plans.a.z", "plans.a.methods"]
    assert sorted(paths(findings)) == sorted([*expected, "storage.mode", "cors.origins"])


UNREADABLE = [
    (b"[server", "no TOML"),
    (b"a = 1\na = 2", "a key twice"),
    (b"mount = '\xff'", "no UTF-8"),
    (b"x = " + b"[" * 100_000, "deep nesting"),
    (b"[server]\nport = " + b"1" * 5000, "a number without end"),
]


@pytest.mark.parametrize(("content", "reason"), UNREADABLE)
def test_unreadable_file_is_one_finding_with_its_name(content: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_bytes(content)
    settings, findings = Settings.load(file, {})
    assert paths(findings) == [str(file)], reason
    assert settings == Settings()


def test_only_the_default_file_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings.load(None, {}) == (Settings(), [])
    missing = str(tmp_path / "missing.toml")
    assert Settings.load(missing, {})[1] == [Finding("error", missing, "no such file")]
    assert Settings.load(None, {"FAL_PROXY_CONFIG": missing})[1] == [Finding("error", missing, "no such file")]
    assert paths(Settings.load(tmp_path, {})[1]) == [str(tmp_path)], "a folder is no file"


def test_flag_names_the_file_before_the_environment_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["fal-proxy.toml", "environment.toml", "flag.toml"]):
        (tmp_path / name).write_text(f"[server]\nport = {number}")
    environ = {"FAL_PROXY_CONFIG": "environment.toml"}
    assert Settings.load(None, {})[0].server.port == 0
    assert Settings.load(None, environ)[0].server.port == 1
    assert Settings.load("flag.toml", environ)[0].server.port == 2
    assert config_path("flag.toml", environ) == Path("flag.toml")


ORIGINS = [
    ("https://a.example", "https://a.example", "the plain form"),
    ("https://a.example/", "https://a.example", "a root path"),
    ("HTTPS://A.Example:443", "https://a.example", "case and default port"),
    ("http://a.example:80", "http://a.example", "default port"),
    ("https://a.example:80", "https://a.example:80", "another scheme's default"),
    ("http://[::1]:8080", "http://[::1]:8080", "IPv6"),
    ("http://my_service:1", "http://my_service:1", "names of containers"),
    ("https://a.example/app", None, "a path"),
    ("https://a.example?x", None, "a query"),
    ("https://a.example#x", None, "a fragment"),
    ("https://u@a.example", None, "a user"),
    ("ftp://a.example", None, "another scheme"),
    ("a.example", None, "no scheme"),
    ("https://", None, "no host"),
    ("https://a.example:99999", None, "no port"),
    ("https://*.example", None, "no pattern"),
    ("https://m\u00fcnchen.example", None, "browsers send punycode"),
    ("https://a b.example", None, "a space"),
    ("null", None, "what sandboxed pages send"),
    ("*", None, "no star"),
]


@pytest.mark.parametrize(("url", "origin", "reason"), ORIGINS)
def test_origin_is_read_in_the_form_that_browsers_send(url: str, origin: str | None, reason: str) -> None:
    assert origin_of(url) == origin, reason
