"""The files of deploy/ that nothing here can run: judged by their own tools and schemas, and by what they promise each other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from fal_proxy import check
from fal_proxy.environment import SECRET_VARIABLES
from fal_proxy.relay.http import DEPARTED_SECONDS
from fal_proxy.server import SETTLING_SECONDS
from support.commands import clean_environment
from support.fronts import DEPLOY, put_into
from support.proxied import FAL_KEY, SIGNING_SECRET

ROOT = DEPLOY.parent
CONFIG = tomllib.loads((DEPLOY / "fal-proxy.toml").read_text("utf-8"))
# How long the end of a process may take, from the signal on.
END_SECONDS = (
    CONFIG["server"]["drain_notice_seconds"]
    + CONFIG["server"]["drain_seconds"]
    + DEPARTED_SECONDS
    + 2 * SETTLING_SECONDS
)


def documents() -> list[dict[str, Any]]:
    """Return what kubernetes.yaml describes."""
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8")))


def of_kind(kind: str) -> dict[str, Any]:
    """Return the only object of a kind."""
    [found] = [each for each in documents() if each["kind"] == kind]
    return found


def compose() -> dict[str, Any]:
    """Return what compose.yaml describes."""
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8")))


def unit() -> list[tuple[str, str]]:
    """Return the settings of the systemd unit."""
    lines = (DEPLOY / "fal-proxy@.service").read_text("utf-8").splitlines()
    return [(name, value) for name, mark, value in (line.partition("=") for line in lines) if mark and name[0] != "#"]


def seconds(text: str) -> int:
    """Return a duration of compose's."""
    assert text.endswith("s")
    return int(text[:-1])


def test_settings_file_is_one_that_serve_would_start_with() -> None:
    environ = {
        "FAL_KEY": FAL_KEY.reveal(),
        "FAL_PROXY_SECRET": SIGNING_SECRET,
        "FAL_PROXY_STATE": "redis://redis:6379/0",
        "FAL_PROXY_SERVER__TRUSTED_PROXIES": '["127.0.0.1"]',
    }
    report = check.examine(None, DEPLOY / "fal-proxy.toml", environ)
    assert [str(each) for each in report.findings if each.path != "identity.key.file"] == []


@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
def test_kubernetes_objects_are_what_the_api_takes(version: str) -> None:
    kinds = [each["kind"] for each in documents()]
    assert kinds == [
        "ConfigMap",
        "Deployment",
        "Service",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
        "NetworkPolicy",
    ]
    for each in documents():
        kubernetes_validate.validate(each, version, strict=True)


def test_kubernetes_runs_the_same_settings() -> None:
    assert tomllib.loads(of_kind("ConfigMap")["data"]["fal-proxy.toml"]) == CONFIG


def test_whoever_stops_a_replica_waits_for_its_end() -> None:
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    pause = re.search(r"time\.sleep\((\d+)\)", pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pause is not None
    assert pod["terminationGracePeriodSeconds"] >= END_SECONDS + int(pause[1])
    services = compose()["services"]
    for name in ("proxy-1", "proxy-2"):
        assert seconds(services[name]["stop_grace_period"]) >= END_SECONDS
        assert seconds(services["caddy"]["stop_grace_period"]) >= seconds(services[name]["stop_grace_period"])
    assert int(dict(unit())["TimeoutStopSec"]) >= END_SECONDS


def test_kubernetes_sets_nothing_that_looks_like_a_setting_and_probes_under_a_name_that_is_answered() -> None:
    """A Service called fal-proxy becomes FAL_PROXY_PORT in every pod of its namespace, which `serve` takes for a setting."""
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    assert pod["enableServiceLinks"] is False
    environ = {"FAL_PROXY_PORT": "tcp://10.0.0.1:80"}
    linked = check.examine(None, DEPLOY / "fal-proxy.toml", environ)
    assert any("port" in str(each).lower() for each in linked.findings if each.level == "error"), "it is still needed"
    host = CONFIG["server"]["public_url"].removeprefix("https://")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        fields = pod["containers"][0][probe]["httpGet"]["httpHeaders"]
        assert fields == [{"name": "Host", "value": host}], probe


def test_no_secret_stands_in_a_variable_of_kubernetes_or_compose() -> None:
    [container] = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    for each in container["env"]:
        assert each["name"] not in SECRET_VARIABLES or "secretKeyRef" in each["valueFrom"], each["name"]
    for service in compose()["services"].values():
        given = service.get("environment", {})
        assert not [name for name in given if name in SECRET_VARIABLES and name != "FAL_PROXY_STATE"]


def test_everything_runs_without_rights_and_on_a_root_that_cannot_be_written() -> None:
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for name, service in compose()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name


def test_compose_file_keeps_its_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(DEPLOY / "compose.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_trusts_the_one_address_that_caddy_has() -> None:
    services = compose()["services"]
    address = services["caddy"]["networks"]["front"]["ipv4_address"]
    for name in ("proxy-1", "proxy-2"):
        assert json.loads(services[name]["environment"]["FAL_PROXY_SERVER__TRUSTED_PROXIES"]) == [address]
        assert "ports" not in services[name], "only Caddy is reached from outside"
        # Under another name than this, every health check of Caddy's would be 421.
        public = services[name]["environment"]["FAL_PROXY_SERVER__PUBLIC_URL"]
        assert public == f"https://{services['caddy']['environment']['FAL_PROXY_HOST']}"


def test_dockerfile_has_nothing_that_its_linter_objects_to() -> None:
    done = subprocess.run(["hadolint", "--no-color", str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_image_is_built_from_nothing_but_what_it_names() -> None:
    """Keys that lie about, history and tests are not even sent to the builder."""
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    copied = {
        source for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for source in line.split()[:-1]
    }
    assert kept == copied
    assert all((ROOT / each).exists() for each in kept)


def systemd(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze over the unit with a program that exists here; skip where there is no systemd."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = (DEPLOY / "fal-proxy@.service").read_text("utf-8")
    there = folder / "fal-proxy@0.service"
    there.write_text(put_into(text, {"/opt/fal-proxy/bin/fal-proxy": sys.executable}), "utf-8")
    command = ["systemd-analyze", *arguments, str(there)]
    return subprocess.run(command, capture_output=True, text=True, env=clean_environment(SYSTEMD_COLORS="0"))


def test_systemd_finds_nothing_to_say_against_the_unit(tmp_path: Path) -> None:
    done = systemd("verify", "--man=no", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_calls_the_unit_well_protected(tmp_path: Path) -> None:
    done = systemd("security", "--offline=true", "--threshold=15", folder=tmp_path)  # tenths; 1.1 when it was written
    assert done.returncode == 0, done.stdout


def test_instances_share_a_port_and_not_the_one_for_metrics() -> None:
    settings = unit()
    assert ("ExecStart", "/opt/fal-proxy/bin/fal-proxy serve --reuse-port") in settings
    assert ("Environment", "FAL_PROXY_ADMIN__PORT=909%i") in settings
    assert ("User", "fal-proxy") in settings, "the kernel shares a port among processes of one user only"


def test_example_of_the_environment_names_variables_that_exist() -> None:
    lines = (DEPLOY / "env.example").read_text("utf-8").splitlines()
    given = dict(line.lstrip("#").split("=", 1) for line in lines if re.match(r"#?[A-Z_]+=", line))
    given |= {"FAL_KEY_FILE": "", "FAL_PROXY_SECRET_FILE": "", "FAL_PROXY_ADMIN_TOKEN_FILE": "", "FAL_PROXY_CONFIG": ""}
    report = check.examine(None, DEPLOY / "fal-proxy.toml", given | {"FAL_KEY": FAL_KEY.reveal()})
    strange = [str(each) for each in report.findings if "unknown" in each.message or "no such" in each.message]
    assert strange == []
    assert {"FAL_KEY_FILE", "FAL_PROXY_SECRET_FILE", "FAL_PROXY_STATE"} <= set(given)


def test_readme_of_the_folder_says_of_every_file_how_it_was_tried() -> None:
    text = (DEPLOY / "README.md").read_text("utf-8")
    table = text.partition("| file |")[2].partition("\n\n")[0]
    files = {path.name for path in DEPLOY.iterdir() if path.is_file()} - {"README.md"}
    assert {name for line in table.splitlines() for name in re.findall(r"`([^`]+)`", line.split("|")[1])} == files
