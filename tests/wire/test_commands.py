"""The command line in processes of its own: first lines, exit codes, refusals, and what never appears."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from support.proxied import FAL_KEY, FAL_KEY_ID, FAL_KEY_SECRET, MOUNT, SIGNING_SECRET

SECONDS = 20.0
GOOD = """
[server]
port = 1
hosts = ["127.0.0.1"]
[identity]
sources = ["key", "anonymous"]
[plans.default]
endpoints = ["fal-ai/flux/**"]
"""
# Several of these may run at once: none of them takes the port of the admin listener.
SECRETS = {"FAL_KEY": FAL_KEY.reveal(), "FAL_PROXY_SECRET": SIGNING_SECRET, "FAL_PROXY_ADMIN__PORT": "0"}
SECRETS["FAL_PROXY_STATE"] = "memory://state"


class Ended(NamedTuple):
    """What a process left behind."""

    code: int
    out: str
    err: str


def command(arguments: tuple[str, ...], folder: Path, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start `fal-proxy ARGUMENTS` in a folder, with nothing of our own environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "fal_proxy", *arguments],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # what a line read early has buffered, `communicate` would never see
    )


def ended(process: subprocess.Popen[bytes], so_far: str = "") -> Ended:
    """Wait for the end; nothing that a process prints may hold the fal key or a traceback."""
    try:
        out, err = (text.decode() for text in process.communicate(timeout=SECONDS))
    finally:
        process.kill()  # one that did not end by itself must not outlive the test
    text = so_far + out + err
    assert FAL_KEY_SECRET not in text
    assert FAL_KEY_ID not in text
    assert "Traceback" not in text
    return Ended(process.returncode, so_far + out, err)


def run(*arguments: str, folder: Path, **environ: str) -> Ended:
    """Run `fal-proxy ARGUMENTS` to its end."""
    return ended(command(arguments, folder, environ))


class Serving:
    """A serving process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self.process = process
        self._lines = iter(process.stdout.readline, b"")
        self.printed = ""
        self.first_line = self.line()
        match = re.fullmatch(r"listening on http://127\.0\.0\.1:(\d+)\n", self.first_line)
        assert match, (self.first_line, process.communicate(timeout=SECONDS))
        self.port = int(match.group(1))

    def line(self) -> str:
        """Return the next line of stdout."""
        line = next(self._lines).decode()
        self.printed += line
        return line

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """Send one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Ended:
        """End it and return what it left."""
        self.process.send_signal(number)
        return ended(self.process, self.printed)


@contextlib.contextmanager
def serving(*arguments: str, folder: Path, **environ: str) -> Iterator[Serving]:
    """Run a serving command until the block ends."""
    process = command(arguments, folder, environ)
    try:
        yield Serving(process)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    """A folder with a good configuration."""
    (tmp_path / "fal-proxy.toml").write_text(GOOD)
    return tmp_path


def test_serve_announces_itself_serves_alone_and_ends_on_sigterm(configured: Path) -> None:
    with serving("serve", "--port", "0", folder=configured, WEB_CONCURRENCY="3", **SECRETS) as proxy:
        assert proxy.ask("GET", "/healthz")[0] == 200
        assert proxy.ask("GET", "/healthz", host="evil.example")[0] == 421
        assert proxy.ask("POST", MOUNT, authorization="Bearer fpk_x")[0] == 401
        children = Path(f"/proc/{proxy.process.pid}/task/{proxy.process.pid}/children")  # where there is a /proc
        assert not children.exists() or not children.read_text(), "one process"
        end = proxy.stop()
    assert end.code == 0
    first, *lines = end.out.splitlines(keepends=True)
    assert first == proxy.first_line
    assert [json.loads(line)["status"] for line in lines] == [401], "behind it, one line per exchange below the mount"
    assert end.err.splitlines()
    assert all(line.startswith("fal-proxy: warning: identity.") for line in end.err.splitlines())


def test_serve_without_anything_configured_says_all_that_is_missing(tmp_path: Path) -> None:
    end = run("serve", folder=tmp_path)
    assert (end.code, end.out) == (3, "")
    lines = [line for line in end.err.splitlines(keepends=True) if not line.startswith("fal-proxy: warning: ")]
    assert re.fullmatch(
        r"fal-proxy: FAL_KEY: .+\nfal-proxy: plans: .+\nfal-proxy: identity\.sources: .+\n", "".join(lines)
    )
    assert list(tmp_path.iterdir()) == []


REFUSALS = [
    ({"FAL_PROXY_IDENTITY__SOURCES": "[]"}, "identity.sources", "no identity source"),
    ({"FAL_PROXY_PLANS__DEFAULT__ENDPOINTS": "[]"}, "plans", "no plan that opens an endpoint"),
    ({"FAL_KEY": ""}, "FAL_KEY", "no key"),
    ({"FAL_PROXY_SECRET": ""}, "FAL_PROXY_SECRET", "no signing secret"),
    ({"FAL_PROXY_SERVER__HOSTS": "[]"}, "server.public_url", "anonymous, and neither public_url nor hosts"),
    ({"FAL_PROXY_IDENTITY__ANONYMOUS__PLAN": "gone"}, "identity.anonymous.plan", "an unknown plan"),
    ({"FAL_PROXY_STATE": "sqlite://x"}, "state.url", "a store that does not exist"),
]


@pytest.mark.parametrize(("change", "path", "reason"), REFUSALS)
def test_serve_refuses_to_start_half_configured(
    change: dict[str, str], path: str, reason: str, configured: Path
) -> None:
    end = run("serve", "--port", "0", folder=configured, **SECRETS | change)
    assert (end.code, end.out) == (3, ""), reason
    errors = [line for line in end.err.splitlines() if not line.startswith("fal-proxy: warning: ")]
    assert [line.split(": ")[:2] for line in errors] == [["fal-proxy", path]], reason


def test_busy_port_is_named_by_every_serving_command(configured: Path) -> None:
    with serving("emulate", "--port", "0", folder=configured) as first:
        assert first.ask("GET", "/")[0] in range(200, 500)
        for name in ("serve", "dev", "emulate"):
            end = run(name, "--port", str(first.port), folder=configured, **SECRETS)
            assert (end.code, end.out) == (3, "")
            assert f"127.0.0.1 port {first.port}" in end.err.splitlines()[-1]
        assert first.stop() == Ended(0, first.first_line, "")


def test_serving_ends_on_ctrl_c(tmp_path: Path) -> None:
    with serving("emulate", "--port", "0", folder=tmp_path) as emulator:
        assert emulator.stop(signal.SIGINT) == Ended(0, emulator.first_line, "")


@pytest.mark.parametrize("arguments", [("nonsense",), ("serve", "--nonsense"), ("serve", "--port", "65536"),
                                       ("emulate", "--faults", "x"), ("keys", "add")])  # fmt: skip
def test_wrong_usage_is_exit_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    end = run(*arguments, folder=tmp_path)
    assert (end.code, end.out) == (2, "")
    assert "Error: " in end.err


def test_check_tells_people_and_programs_the_same(configured: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = run("check", folder=configured, **SECRETS)
    machine = run("check", "--json", folder=configured, **SECRETS)
    assert (text.code, machine.code, text.err, machine.err) == (0, 0, "", "")
    report = json.loads(machine.out)
    assert set(report) == {"findings", "access"}
    assert [(item["level"], item["path"]) for item in report["findings"]] == [
        ("warning", "identity.key.file"),
        ("warning", "identity.anonymous"),
    ]
    assert all(set(item) == {"level", "path", "message"} for item in report["findings"])
    lines = [f"{item['level']}: {item['path']}: {item['message']}" for item in report["findings"]]
    assert text.out.splitlines() == lines + [f"access: {line}" for line in report["access"]]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    config = str(configured / "fal-proxy.toml")
    assert run("check", "--json", "--config", config, folder=elsewhere, **SECRETS) == machine
    assert run("check", "--json", folder=elsewhere, FAL_PROXY_CONFIG=config, **SECRETS) == machine


def test_check_of_a_bad_configuration_is_exit_3(configured: Path) -> None:
    (configured / "fal-proxy.toml").write_text(GOOD + "unknown = 1\n")
    text, machine = run("check", folder=configured), run("check", "--json", folder=configured, **SECRETS)
    assert (text.code, machine.code) == (3, 3)
    for path in ("plans.default.unknown", "FAL_KEY", "FAL_PROXY_SECRET"):
        assert f"error: {path}: " in text.out
    errors = [item["path"] for item in json.loads(machine.out)["findings"] if item["level"] == "error"]
    assert errors == ["plans.default.unknown"]


def test_keys_are_added_once_listed_and_revoked(configured: Path) -> None:
    added = run("keys", "add", "ada", folder=configured)
    assert (added.code, added.err) == (0, "")
    assert re.fullmatch(r"fpk_[\w-]{43}\n", added.out), "only the key"
    again = run("keys", "add", "ada", folder=configured)
    assert (again.code, again.out) == (3, "")
    assert re.fullmatch(r"fal-proxy: .*ada.*\n", again.err)
    unknown = run("keys", "add", "eve", "--plan", "gold", folder=configured)
    assert (unknown.code, unknown.out) == (3, "")
    assert "gold" in unknown.err
    listed = run("keys", "list", folder=configured)
    assert re.fullmatch(r"ada\tdefault\t20\d\d-.+\n", listed.out)
    assert added.out.strip() not in (configured / "users.toml").read_text()
    assert run("keys", "revoke", "ada", folder=configured) == Ended(0, "", "")
    gone = run("keys", "revoke", "ada", folder=configured)
    assert (gone.code, gone.out, len(gone.err.splitlines())) == (3, "", 1)


def test_dev_needs_nothing_and_reads_nothing(tmp_path: Path) -> None:
    folder, temporary = tmp_path / "app", tmp_path / "tmp"
    folder.mkdir()
    temporary.mkdir()
    (folder / "fal-proxy.toml").write_text("broken [")
    environ = {
        **SECRETS,
        "FAL_PROXY_UPSTREAM": "http://127.0.0.1:1",
        "FAL_PROXY_CONFIG": str(tmp_path / "missing.toml"),
        "FAL_PROXY_SERVER__PORT": "nonsense",
        "TMPDIR": str(temporary),
    }
    with serving("dev", "--port", "0", folder=folder, **environ) as dev:
        for host in (f"127.0.0.1:{dev.port}", f"localhost:{dev.port}", "LOCALHOST", f"[::1]:{dev.port}"):
            assert dev.ask("GET", "/healthz", host=host)[0] == 200
        for host in ("evil.example", f"localhost.evil.example:{dev.port}", "127.0.0.2", "0.0.0.0"):
            status, body = dev.ask("GET", MOUNT, host=host)
            assert (status, json.loads(body)["error_type"]) == (421, "misdirected_host")
        while "Authorization: Bearer" not in dev.line():
            pass
        key = re.findall(r"Bearer (fpk_[\w-]{43})'", dev.printed)[0]
        address = re.findall(r"curl (\S+)", dev.printed)[0]
        assert address == f"http://127.0.0.1:{dev.port}{MOUNT}/fal.run/fal-ai/flux/dev"
        path = MOUNT + "/fal.run/emulator/echo"
        for proof, status in ({"authorization": f"Bearer {key}"}, 200), ({"authorization": "Bearer x"}, 401), ({}, 200):
            asked = dev.ask("POST", path, b'{"prompt": "a harbour"}', **{"content-type": "application/json"}, **proof)
            assert asked[0] == status
            assert status != 200 or json.loads(asked[1])["input"] == {"prompt": "a harbour"}
        end = dev.stop()
    assert (end.code, end.err) == (0, "")
    assert list(temporary.iterdir()) == [], "the key file is gone"
