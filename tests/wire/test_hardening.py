"""What `serve` does to its own process: no core dumps, no secrets in its environment, none in its log."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.commands import Running, clean_environment, running
from support.proxied import FAL_KEY, FAL_KEY_SECRET, SIGNING_SECRET

TOKEN, HEADER_SECRET = "an admin token of many characters", "what the reverse proxy shows us"
CONFIG = """
[server]
hosts = ["127.0.0.1"]
[identity]
sources = ["anonymous"]
[plans.default]
endpoints = ["**"]
[admin]
port = 0
"""


@contextlib.contextmanager
def serving(folder: Path, **environ: str) -> Iterator[Running]:
    (folder / "fal-proxy.toml").write_text(CONFIG)
    with running(["serve", "--port", "0"], folder, clean_environment(**environ)) as proxy:
        yield proxy


def shown(path: Path) -> bytes:
    """Return what another process may see of this file: nothing, if it may not."""
    try:
        return path.read_bytes()
    except PermissionError:
        return b""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_serve_leaves_no_secret_in_its_environment_and_dumps_no_core(tmp_path: Path) -> None:
    secrets = {
        "FAL_KEY": FAL_KEY.reveal(),
        "FAL_PROXY_SECRET": SIGNING_SECRET,
        "FAL_PROXY_ADMIN_TOKEN": TOKEN.replace(" ", "-"),
        "FAL_PROXY_HEADER_SECRET": HEADER_SECRET,
        "FAL_PROXY_STATE": "memory://state",
        "FAL_ADMIN_KEY": "adadadad-0000-4000-8000-00000000feed:" + "ad" * 16,
    }
    with serving(tmp_path, **secrets) as proxy:
        about = Path(f"/proc/{proxy.process.pid}")
        environ = shown(about / "environ")
        assert not [value for value in secrets.values() if value.encode() in environ]
        assert re.search(r"Max core file size +0 +0 ", (about / "limits").read_text())
        if os.geteuid() == 0:
            assert b"PATH=" in environ, "the rest of it stays"
            assert about.stat().st_uid == 0
        else:
            assert environ == b"", "not dumpable: its files in /proc are the superuser's"


def test_every_secret_may_come_from_a_file(tmp_path: Path) -> None:
    environ = {}
    for name, text in (
        ("FAL_KEY", f"{FAL_KEY.reveal()} 2\n"),
        ("FAL_PROXY_SECRET", SIGNING_SECRET + "\n"),
        ("FAL_PROXY_ADMIN_TOKEN", "a-token-of-many-characters\n"),
        ("FAL_PROXY_HEADER_SECRET", HEADER_SECRET + "\n"),
        ("FAL_ADMIN_KEY", "adadadad-0000-4000-8000-00000000feed:" + "ad" * 16 + "\n"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
        environ[f"{name}_FILE"] = str(tmp_path / name)
    with serving(tmp_path, **environ) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b'{"status":"ready","reasons":[]}')
        connection.close()


@pytest.mark.parametrize("wraps", [False, True], ids=["at once", "in a cause"])
def test_key_in_a_traceback_never_reaches_stderr(wraps: bool, tmp_path: Path) -> None:
    """A fault of ours is put into the process; its text holds the key, as the worst of faults would."""
    (tmp_path / "sitecustomize.py").write_text(
        "import fal_proxy.gateway as gateway\n"
        "async def fault(*_):\n"
        f"    error = ValueError('Authorization: Key {FAL_KEY.reveal()}')\n"
        f"    raise {'RuntimeError() from error' if wraps else 'error'}\n"
        "gateway.Gateway._answer_me = fault\n"
    )
    environ = {"FAL_KEY": FAL_KEY.reveal(), "FAL_PROXY_SECRET": SIGNING_SECRET, "PYTHONPATH": str(tmp_path)}
    with serving(tmp_path, **environ) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        connection.request("GET", "/api/fal/proxy/me")
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("x-fal-error-type")) == (500, "internal_error")
        assert FAL_KEY_SECRET.encode() not in answer.read()
        connection.close()
        proxy.process.terminate()
        out, err = proxy.process.communicate(timeout=40)
    assert FAL_KEY_SECRET not in out + err
    assert "ValueError: Authorization: Key ••••••••" in err
    assert "Traceback" in err


def test_only_the_environments_module_and_the_settings_look_into_the_environment() -> None:
    package = Path(__file__).resolve().parents[2] / "proxy" / "fal_proxy"
    looking = {path.name for path in package.rglob("*.py") if "os.environ" in path.read_text("utf-8")}
    assert looking == {"environment.py", "settings.py", "hardening.py"}
