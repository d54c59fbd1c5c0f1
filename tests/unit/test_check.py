"""Every misconfiguration is a finding at its path, all at once; good configurations have no error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from fal_proxy.app import create_app
from fal_proxy.check import Report, examine
from fal_proxy.errors import Misconfigured
from fal_proxy.identity.key import add
from fal_proxy.settings import Settings
from support.proxied import FAL_KEY, FAL_KEY_SECRET, SIGNING_SECRET, WEBHOOK_SECRET

ENVIRON = {"FAL_KEY": FAL_KEY.reveal(), "FAL_PROXY_SECRET": SIGNING_SECRET, "FAL_PROXY_STATE": "memory://state"}
KEYS_ONLY = "[identity]\nsources = ['key']\n[plans.default]\nendpoints = ['fal-ai/flux/**']\n"
ANONYMOUS = KEYS_ONLY.replace("'key'", "'anonymous'") + "[server]\npublic_url = 'https://p.example'\n"
HUB = "[server]\npublic_url = 'https://p.example'\n[webhooks]\nmode = 'hub'\n"
BOTH = ANONYMOUS.replace("'anonymous'", "'key', 'anonymous'")


def judge(tmp_path: Path, text: str, environ: Mapping[str, str] = ENVIRON, *, ada: str | None = "default") -> Report:
    """Judge a file with this text beside a key file in which Ada is on plan `ada`."""
    (tmp_path / "fal-proxy.toml").write_text(text)
    if ada is not None:
        add(tmp_path / "users.toml", "ada", ada)
    return examine(None, tmp_path / "fal-proxy.toml", environ)


def found(report: Report, level: str) -> list[str]:
    """Return the paths of one level."""
    return [finding.path for finding in report.findings if finding.level == level]


GOOD: list[tuple[str, Mapping[str, str], list[str], str]] = [
    (KEYS_ONLY, ENVIRON, [], "keys need neither a signing secret nor a name"),
    (KEYS_ONLY, {"FAL_KEY_ID": "a", "FAL_KEY_SECRET": FAL_KEY_SECRET, "FAL_PROXY_STATE": "memory://s"}, [], "the key in halves"),
    (ANONYMOUS, ENVIRON, ["identity.anonymous"], "strangers are worth a word"),
    (BOTH, ENVIRON, ["identity.anonymous"], "both"),
    (ANONYMOUS.replace("public_url = 'https://p.example'", "hosts = ['p.example', '[::1]', '*']"), ENVIRON,
     ["identity.anonymous"], "hosts will do"),
    (KEYS_ONLY.replace("fal-ai/flux/**", "**"), ENVIRON, ["plans.default.endpoints"], "everything is legal and open"),
    (KEYS_ONLY, {**ENVIRON, "FAL_PROXY_UPSTREAM": "http://127.0.0.1:8090/x"}, ["FAL_PROXY_UPSTREAM"], "the key goes there"),
    (KEYS_ONLY + "[server]\ntrusted_proxies = ['10.0.0.0/8', '::1']\n[cors]\norigins = ['http://localhost:3000']",
     ENVIRON, [], "networks and origins"),
    (KEYS_ONLY + "[storage]\nmode = 'relay'", ENVIRON, ["server.public_url"], "where do upload URLs lead?"),
    (KEYS_ONLY + "[server]\npublic_url = 'https://p.example'\n[storage]\nmode = 'relay'", ENVIRON, [], "uploads are relayed"),
    (KEYS_ONLY + "[storage]\nhosts = ['v4.fal.media']", ENVIRON, ["storage.hosts"], "a host that we do not know"),
    (KEYS_ONLY + "[webhooks]\nallowed_hosts = ['app.example.com', 'a-1.b2.example']", ENVIRON, [], "plain names"),
    (KEYS_ONLY + HUB, ENVIRON, [], "the hub, and a folder for its events"),
    (KEYS_ONLY + HUB, ENVIRON | {"FAL_PROXY_STATE": "redis://r"}, [], "or a Redis"),
    (KEYS_ONLY + HUB.replace("[webhooks]", "hosts = ['internal', 'P.example']\n[webhooks]"), ENVIRON, [], "its host among others"),
    (KEYS_ONLY + HUB.replace("[webhooks]", "hosts = ['*']\n[webhooks]"), ENVIRON, [], "any host"),
    (KEYS_ONLY + HUB + "allowed_hosts = ['a.example']",
     ENVIRON | {"FAL_PROXY_WEBHOOK_SECRET": f"{WEBHOOK_SECRET}, {WEBHOOK_SECRET}"}, [], "a rotation"),
    (KEYS_ONLY + HUB, ENVIRON | {"FAL_PROXY_STATE": "memory://"}, ["webhooks.mode", "state.url"], "events forgotten"),
    (KEYS_ONLY + HUB.replace("https", "http"), ENVIRON, ["server.public_url"], "results over plain http"),
    (KEYS_ONLY + "allow_headers = ['X-Fal-Tags']\nmethods = ['GET']", ENVIRON, [], "a plan in full"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "environ", "warnings", "reason"), GOOD)
async def test_good_configuration_has_no_error(
    text: str, environ: Mapping[str, str], warnings: list[str], reason: str, tmp_path: Path
) -> None:
    report = judge(tmp_path, text, environ)
    assert found(report, "error") == [], reason
    assert found(report, "warning") == warnings, reason
    await create_app(config=tmp_path / "fal-proxy.toml", environ=environ).close()


def _without(name: str) -> Mapping[str, str]:
    return {key: value for key, value in ENVIRON.items() if key != name}


BAD: list[tuple[str, Mapping[str, str], list[str], str]] = [
    (KEYS_ONLY, _without("FAL_KEY"), ["FAL_KEY"], "no fal key"),
    (KEYS_ONLY, ENVIRON | {"FAL_KEY": "nocolon"}, ["FAL_KEY"], "no fal key by its form"),
    (KEYS_ONLY, ENVIRON | {"FAL_KEY": "a:b\nx: y"}, ["FAL_KEY"], "a line end would forge a field"),
    (KEYS_ONLY, ENVIRON | {"FAL_KEY": ":b"}, ["FAL_KEY"], "half of it missing"),
    (KEYS_ONLY, ENVIRON | {"FAL_KEY": "a:"}, ["FAL_KEY"], "the other half"),
    (KEYS_ONLY, ENVIRON | {"FAL_KEY": "a:\u00e9"}, ["FAL_KEY"], "not ASCII"),
    (KEYS_ONLY, ENVIRON | {"FAL_KEY_FILE": "/x"}, ["FAL_KEY"], "which of the two"),
    (KEYS_ONLY, ENVIRON | {"FAL_KEY_SECRET": "b"}, ["FAL_KEY", "FAL_KEY_ID"], "one and a half"),
    (KEYS_ONLY, {**_without("FAL_KEY"), "FAL_KEY_FILE": "/nonexistent/x"}, ["FAL_KEY_FILE"], "no such file"),
    (KEYS_ONLY, ENVIRON | {"FAL_PROXY_ADMIN_TOKEN_FILE": "/nonexistent/x"}, ["FAL_PROXY_ADMIN_TOKEN_FILE"], "nor this"),
    (KEYS_ONLY, ENVIRON | {"FAL_PROXY_HEADER_SECRET_FILE": "/nonexistent/x"}, ["FAL_PROXY_HEADER_SECRET_FILE"], "nor this"),
    (ANONYMOUS, ENVIRON | {"FAL_PROXY_SECRET_FILE": "/nonexistent/x"}, ["FAL_PROXY_SECRET_FILE"], "which of the two"),
    (ANONYMOUS, _without("FAL_PROXY_SECRET"), ["FAL_PROXY_SECRET"], "cookies must be signed"),
    (ANONYMOUS, ENVIRON | {"FAL_PROXY_SECRET": "short"}, ["FAL_PROXY_SECRET"], "guessable"),
    (ANONYMOUS, ENVIRON | {"FAL_PROXY_SECRET": SIGNING_SECRET + ",x"}, ["FAL_PROXY_SECRET"], "one of them guessable"),
    (ANONYMOUS, {"FAL_KEY": "a:b", "FAL_PROXY_SECRET_FILE": "/nonexistent/x"},
     ["FAL_PROXY_SECRET_FILE", "FAL_PROXY_SECRET"], "a file that is not there"),
    (KEYS_ONLY + "[storage]\nmode = 'relay'", _without("FAL_PROXY_SECRET"), ["FAL_PROXY_SECRET"], "nothing seals"),
    (KEYS_ONLY + "[storage]\nmode = 'relay'", ENVIRON | {"FAL_PROXY_SECRET": "short"}, ["FAL_PROXY_SECRET"], "guessable"),
    (KEYS_ONLY + HUB, _without("FAL_PROXY_SECRET"), ["FAL_PROXY_SECRET"], "nothing seals"),
    (ANONYMOUS + HUB.partition("[webhooks]")[2].join(["[webhooks]", "[storage]\nmode = 'relay'"]),
     ENVIRON | {"FAL_PROXY_SECRET": "short"}, ["FAL_PROXY_SECRET"], "guessable, and said once"),
    (KEYS_ONLY + HUB + "allowed_hosts = ['a.example']", ENVIRON, ["FAL_PROXY_WEBHOOK_SECRET"], "nothing signs"),
    (KEYS_ONLY + HUB, ENVIRON | {"FAL_PROXY_WEBHOOK_SECRET": f"{WEBHOOK_SECRET},whsec_c2hvcnQ="},
     ["FAL_PROXY_WEBHOOK_SECRET"], "one of them guessable"),
    (KEYS_ONLY + HUB + "allowed_hosts = ['a.example']", ENVIRON | {"FAL_PROXY_WEBHOOK_SECRET": WEBHOOK_SECRET[6:]},
     ["FAL_PROXY_WEBHOOK_SECRET"], "not its form"),
    (KEYS_ONLY + HUB + "allowed_hosts = ['a.example']", ENVIRON | {"FAL_PROXY_WEBHOOK_SECRET": WEBHOOK_SECRET + "?"},
     ["FAL_PROXY_WEBHOOK_SECRET"], "no base64"),
    (KEYS_ONLY + HUB + "allowed_hosts = ['a.example']", ENVIRON | {"FAL_PROXY_WEBHOOK_SECRET_FILE": "/nonexistent/x"},
     ["FAL_PROXY_WEBHOOK_SECRET_FILE"], "a file that is not there"),
    (KEYS_ONLY + "[webhooks]\nmode = 'hub'", ENVIRON, ["server.public_url"], "fal is told to call what?"),
    (KEYS_ONLY + HUB.replace("[webhooks]", "hosts = ['internal']\n[webhooks]"), ENVIRON, ["server.hosts"], "fal is turned away"),
    (KEYS_ONLY + "[webhooks]\nallowed_hosts = ['https://a.example', 'a.example:443', 'A.example', '10.0.0.1', 'localhost', 'a.example/x', '']",
     ENVIRON, ["webhooks.allowed_hosts"] * 7, "no host names"),
    (KEYS_ONLY + "[storage]\nmax_upload_bytes = 0", ENVIRON, ["storage.max_upload_bytes"], "no file"),
    (KEYS_ONLY + "[storage]\nserve_files = true\nhosts = []", ENVIRON, ["storage.hosts"], "served from where?"),
    (KEYS_ONLY + "[storage]\ncontent_types = ['*/*']", ENVIRON, ["storage.content_types"], "no content type"),
    (KEYS_ONLY + "[storage]\nhosts = ['https://v3.fal.media', 'v3.fal.media:443', '10.0.0.1', 'queue.fal.run', 'localhost']",
     ENVIRON, ["storage.hosts"] * 5, "no file hosts"),
    (KEYS_ONLY, ENVIRON | {"FAL_PROXY_UPSTREAM": "localhost:8090"}, ["FAL_PROXY_UPSTREAM"], "no URL"),
    (KEYS_ONLY.replace("['key']", "[]"), ENVIRON, ["identity.sources"], "nobody may call"),
    (KEYS_ONLY.replace("['key']", "['key', 'key']"), ENVIRON, ["identity.sources"], "a source twice"),
    (KEYS_ONLY.replace("'fal-ai/flux/**'", ""), ENVIRON, ["plans"], "no plan opens anything"),
    (KEYS_ONLY.replace("flux/**", "flux**"), ENVIRON, ["plans.default.endpoints"], "a malformed glob"),
    (KEYS_ONLY + "allow_headers = ['Cookie', 'x']", ENVIRON, ["plans.default.allow_headers"] * 2, "not ours to open"),
    (ANONYMOUS.replace("public_url", "host"), ENVIRON, ["server.public_url"], "what is ours is unknown"),
    (ANONYMOUS + "[identity.anonymous]\nplan = 'gone'", ENVIRON, ["identity.anonymous.plan"], "no such plan"),
    (KEYS_ONLY + "[server]\npublic_url = 'p.example'", ENVIRON, ["server.public_url"], "no URL"),
    (KEYS_ONLY + "[server]\nhosts = ['p.example:80', 'p.example']", ENVIRON, ["server.hosts"], "would never match"),
    (KEYS_ONLY + "[server]\nport = 65536", ENVIRON, ["server.port"], "no port"),
    (KEYS_ONLY + "[server]\nport = -1", ENVIRON, ["server.port"], "no port"),
    (KEYS_ONLY + "[server]\nmax_body_bytes = 0", ENVIRON, ["server.max_body_bytes"], "no body"),
    (KEYS_ONLY + "[server]\ntrusted_proxies = ['10.0.0.0/8', 'nginx', 'x']", ENVIRON, ["server.trusted_proxies"] * 2,
     "names are no networks"),
    (KEYS_ONLY + "[cors]\norigins = ['*', 'https://a', 'https://b/']", ENVIRON, ["cors.origins"] * 2, "inexact"),
    (KEYS_ONLY + "[upstream]\nconnect_seconds = 0\nhead_seconds = nan\nbody_idle_seconds = inf", ENVIRON,
     ["upstream.connect_seconds", "upstream.head_seconds", "upstream.body_idle_seconds"], "no durations"),
    ("unknown = 1\n" + KEYS_ONLY, ENVIRON, ["unknown"], "what the loader says is said here too"),
]  # fmt: skip
MOUNTS = ["", "/", "api", "/api/", "//api", "/a b", "/a?b", "/a/../b", "/.", "/..", "/é", "/a\n"]


@pytest.mark.parametrize(("text", "environ", "errors", "reason"), BAD)
def test_mistake_is_an_error_at_its_path_and_refuses_the_start(
    text: str, environ: Mapping[str, str], errors: list[str], reason: str, tmp_path: Path
) -> None:
    report = judge(tmp_path, text, environ)
    assert found(report, "error") == errors, reason
    assert all(finding.message and "\n" not in finding.message for finding in report.findings)
    with pytest.raises(Misconfigured) as caught:
        create_app(config=tmp_path / "fal-proxy.toml", environ=environ)
    assert [finding.partition(":")[0] for finding in caught.value.findings] == errors


@pytest.mark.parametrize("mount", MOUNTS)
def test_mount_must_be_a_plain_path(mount: str, tmp_path: Path) -> None:
    report = judge(tmp_path, KEYS_ONLY, ENVIRON | {"FAL_PROXY_MOUNT": mount})
    assert found(report, "error") == ["mount"]


@pytest.mark.parametrize("mount", ["/x", "/api/fal/proxy", "/a.b/~c_d-e", "/...", "/.well-known/fal"])
def test_plain_path_is_a_mount(mount: str, tmp_path: Path) -> None:
    assert found(judge(tmp_path, KEYS_ONLY, ENVIRON | {"FAL_PROXY_MOUNT": mount}), "error") == []


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    text = "[server]\nport = 'x'\nmax_body_bytes = 0\n[identity]\nsources = ['anonymous']\n[plans.a]\nendpoints = ['/', '?']"
    errors = ["server.port", "server.max_body_bytes", "FAL_KEY", "FAL_PROXY_SECRET"]
    errors += ["plans.a.endpoints", "plans.a.endpoints", "server.public_url", "identity.anonymous.plan"]
    assert found(judge(tmp_path, text, {}), "error") == errors


def test_key_on_an_unknown_plan_is_an_error_at_the_key(tmp_path: Path) -> None:
    report = judge(tmp_path, KEYS_ONLY, ada="gold")
    assert found(report, "error") == ["keys.ada.plan"]
    assert report.access == ["key ada (plan gold): nothing"]


KEY_FILES = [
    ("keys = 1", "`keys` is no table"),
    ("[keys]\nada = 1", "a key is no table"),
    ("[keys.ada]\nplan = 'default'", "no hash"),
    ("[keys.ada]\nhash = 'md5:0'", "another hash"),
    ("[keys.'a b']\nhash = 'sha256:" + "0" * 64 + "'", "no name"),
    ("[keys", "no TOML"),
    ("x = " + "1" * 5000, "a number without end"),
    ("x = " + "[" * 100_000, "deep nesting"),
]


@pytest.mark.parametrize(("text", "reason"), KEY_FILES)
def test_malformed_key_file_is_an_error(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "users.toml").write_text(text)
    assert found(judge(tmp_path, KEYS_ONLY, ada=None), "error") == ["identity.key.file"], reason


def test_key_file_that_is_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "users.toml").mkdir()
    assert found(judge(tmp_path, KEYS_ONLY, ada=None), "error") == ["identity.key.file"]


def test_missing_keys_and_loose_permissions_are_warnings(tmp_path: Path) -> None:
    assert found(judge(tmp_path, KEYS_ONLY, ada=None), "warning") == ["identity.key.file"]
    add(tmp_path / "users.toml", "ada", "default")
    (tmp_path / "users.toml").chmod(0o640)
    report = judge(tmp_path, KEYS_ONLY, ada=None)
    assert (found(report, "error"), found(report, "warning")) == ([], ["identity.key.file"])
    assert "chmod 600" in report.findings[0].message


def test_access_says_who_may_do_what(tmp_path: Path) -> None:
    opened = "run, stream, submit and realtime on fal-ai/flux/** (20/minute; 200/day; 4 at a time; no budget)"
    reads = 'reads their own requests; fal.stream and streamStatus with connectionMode "server" only'
    assert judge(tmp_path, BOTH).access == [
        f"key ada (plan default): {opened}; uploads (60/hour); {reads}",
        f"anyone (plan default): {opened}; uploads (60/hour); {reads}",
    ]
    report = judge(tmp_path, BOTH + "[storage]\nmode = 'off'", ada=None)
    assert report.access[1] == f"anyone (plan default): {opened}; {reads}"


class Handed(NamedTuple):
    """Settings of realtime, and what is said about them."""

    reason: str
    realtime: str
    plan: str
    warned: list[str]
    opens: str


HANDED = [
    Handed("sockets through us", 'mode = "relay"', "", [], "run, stream, submit and realtime on"),
    Handed(
        "its spend is not metered",
        'mode = "token"',
        "realtime_token = true",
        ["plans.default.realtime_token"],
        "run, stream, submit and fal tokens on",
    ),
    Handed("no plan takes part", 'mode = "token"', "", ["realtime.mode"], "run, stream and submit on"),
    Handed(
        "a plan that waits for the mode",
        "",
        "realtime_token = true",
        ["plans.default.realtime_token"],
        "run, stream, submit and realtime on",
    ),
    Handed("nothing", 'mode = "off"', "", [], "run, stream and submit on"),
    Handed("world models", "wma = true", "", [], "run, stream, submit, realtime and world models on"),
]


@pytest.mark.parametrize("case", HANDED, ids=[case.reason for case in HANDED])
def test_what_leads_past_us_is_named_and_warned_of(case: Handed, tmp_path: Path) -> None:
    plan = "[plans.default]\nendpoints = ['fal-ai/flux/**']"
    assert plan in BOTH
    config = BOTH.replace(plan, f"{plan}\n{case.plan}") + f"\n[realtime]\n{case.realtime}\n"
    report = judge(tmp_path, config)
    usual = found(judge(tmp_path, BOTH, ada=None), "warning")
    assert (found(report, "error"), sorted(found(report, "warning"))) == ([], sorted([*usual, *case.warned]))
    assert case.opens in report.access[0]


def test_no_finding_holds_a_secret(tmp_path: Path) -> None:
    environ = {"FAL_KEY": FAL_KEY_SECRET, "FAL_PROXY_SECRET": "canary"}
    report = judge(tmp_path, ANONYMOUS, environ)
    assert found(report, "error") == ["FAL_KEY", "FAL_PROXY_SECRET"]
    assert FAL_KEY_SECRET not in str(report)
    assert "canary" not in str(report)


def test_a_password_that_looks_like_a_port_is_in_no_finding(tmp_path: Path) -> None:
    environ = {name: value for name, value in ENVIRON.items() if name != "FAL_PROXY_STATE"}
    report = judge(tmp_path, KEYS_ONLY + "[state]\nurl = 'redis://:hunter2/hunter2@redis'\n", environ)
    [finding] = report.errors
    assert (finding.path, "hunter2" in finding.message) == ("state.url", False)


def test_settings_made_by_hand_are_judged_like_a_file() -> None:
    report = examine(Settings(mount="x"), None, {})
    assert found(report, "error") == ["mount", "FAL_KEY", "plans", "identity.sources"]
    assert found(examine(Settings(), None, {}, key=FAL_KEY), "error") == ["plans", "identity.sources"]
