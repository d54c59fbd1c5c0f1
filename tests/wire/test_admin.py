"""The admin listener: who it answers, and that a page cannot reach it through its visitor's browser."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from fal_proxy.address_guard import AddressGuard
from fal_proxy.admin import Admin
from fal_proxy.environment import Secret
from fal_proxy.server import Listener, bind, serving
from fal_proxy.telemetry import Telemetry
from fal_proxy.telemetry.catalogue import METRICS
from fal_proxy.telemetry.metrics import CONTENT_TYPE
from fal_proxy.upstream.dial import Dialer
from fal_proxy.upstream.engine import Engine
from support.commands import clean_environment, running
from support.lines import parsed
from support.ports import free_port
from support.proxied import FAL_KEY, MOUNT, SIGNING_SECRET
from support.raw import RawAnswer, raw_client, request

TOKEN = "a token of the operator"
BEARER = {"Authorization": "Bearer " + TOKEN.replace(" ", "-")}


@contextlib.asynccontextmanager
async def admin(host: str = "127.0.0.1", guard: AddressGuard | None = None) -> AsyncIterator[int]:
    """Serve an admin app that believes to listen on `host`; yield its port."""
    telemetry = Telemetry(["default"], Engine(Dialer(1)))
    app = Admin(host, Secret(TOKEN.replace(" ", "-")), telemetry.metrics, guard)
    async with serving(Listener(app, bind("127.0.0.1", 0))) as url:
        yield int(url.rpartition(":")[2])


async def _ask(
    port: int, path: str = "/metrics", headers: dict[str, str] | None = None, method: str = "GET"
) -> RawAnswer:
    async with raw_client(port) as client:
        await client.send(request(method, path, headers))
        return await client.answer()


JUDGED = [
    ("127.0.0.1", {"Host": "127.0.0.1:9090"}, 200, "its own address"),
    ("127.0.0.1", {"Host": "localhost"}, 200, "a loopback name"),
    ("127.0.0.1", {"Host": "[::1]:9090"}, 200, "a loopback address"),
    ("127.0.0.1", {"Host": "LOCALHOST:1"}, 200, "names have no case"),
    ("127.0.0.1", {"Host": "evil.example"}, 421, "a rebound name"),
    ("127.0.0.1", {"Host": "127.0.0.1.evil.example"}, 421, "a name that begins like ours"),
    ("127.0.0.1", {"Host": "10.0.0.1"}, 421, "an address that it does not listen on"),
    ("127.0.0.1", {"Host": "127.0.0.1@evil.example"}, 400, "no plain Host"),
    ("127.0.0.1", {"Host": ""}, 400, "an empty Host"),
    ("127.0.0.1", {"Host": "localhost:9090", "Origin": "http://localhost:9090"}, 200, "its own page"),
    ("127.0.0.1", {"Host": "localhost:9090", "Origin": "https://localhost:9090"}, 200, "its own page behind TLS"),
    ("127.0.0.1", {"Host": "localhost:9090", "Origin": "http://localhost:8080"}, 403, "the proxy's page"),
    ("127.0.0.1", {"Host": "localhost:9090", "Origin": "http://127.0.0.1:9090"}, 403, "another name is another origin"),
    ("127.0.0.1", {"Host": "localhost", "Origin": "null"}, 403, "a sandboxed page"),
    ("127.0.0.1", {"Host": "localhost", "Origin": "https://evil.example"}, 403, "any other page"),
    ("10.0.0.5", {"Host": "10.0.0.5:9090"}, 401, "off loopback without the token"),
    ("10.0.0.5", {"Host": "10.0.0.5:9090", **BEARER}, 200, "off loopback with the token"),
    ("10.0.0.5", {"Host": "10.0.0.5", "Authorization": "Bearer wrong"}, 401, "another token"),
    ("10.0.0.5", {"Host": "10.0.0.5", "Authorization": "Bearer"}, 401, "an empty token"),
    ("10.0.0.5", {"Host": "10.0.0.5", "Authorization": BEARER["Authorization"] + "x"}, 401, "a longer token"),
    (
        "10.0.0.5",
        {"Host": "10.0.0.5", "Authorization": BEARER["Authorization"].replace("Bearer", "Basic")},
        401,
        "Basic",
    ),
    ("10.0.0.5", {"Host": "localhost"}, 401, "a loopback name does not make the listener loopback"),
    ("10.0.0.5", {"Host": "10.0.0.6", **BEARER}, 421, "another address"),
    ("fd00::5", {"Host": "[fd00::5]:9090", **BEARER}, 200, "IPv6 in brackets"),
    ("metrics.internal", {"Host": "metrics.internal:9090", **BEARER}, 200, "the configured name"),
    ("0.0.0.0", {"Host": "10.9.8.7:9090", **BEARER}, 200, "listening everywhere, any address is its own"),
    ("0.0.0.0", {"Host": "evil.example", **BEARER}, 421, "and no name is"),
    ("0.0.0.0", {"Host": "10.9.8.7:9090", "Origin": "https://evil.example", **BEARER}, 403, "nor any other page"),
]


@pytest.mark.parametrize(("host", "headers", "status", "why"), JUDGED)
async def test_admin_listener_judges_name_page_and_token(
    host: str, headers: dict[str, str], status: int, why: str
) -> None:
    async with admin(host) as port:
        answer = await _ask(port, headers=headers)
    assert answer.status == status, why
    assert (answer.one(b"x-fal-error-type") is None) == (status == 200)
    assert answer.one(b"access-control-allow-origin") is None
    assert answer.one(b"cross-origin-resource-policy") == b"same-origin"


async def test_two_host_or_origin_lines_are_no_request_of_a_browser() -> None:
    async with admin() as port, raw_client(port) as client:
        await client.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert (await client.answer()).status == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/metrics?name=x", 200),
        ("GET", "/", 200),
        ("GET", "/metrics/", 404),
        ("GET", MOUNT, 404),
        ("GET", "//metrics", 404),
        ("POST", "/metrics", 405),
    ],
)
async def test_admin_listener_has_two_routes(method: str, path: str, status: int) -> None:
    async with admin() as port:
        assert (await _ask(port, path, method=method)).status == status


async def test_metrics_are_what_prometheus_reads() -> None:
    async with admin() as port:
        answer, overview = await _ask(port), await _ask(port, "/")
    assert answer.one(b"content-type") == CONTENT_TYPE.encode()
    text = answer.body.decode()
    assert all(f"# TYPE {row.name} {row.type}\n" in text for row in METRICS.values())
    assert ("fal_proxy_upstream_open_calls", {}, 0.0) in parsed(text)
    assert "_created" not in text
    assert msgspec.json.decode(overview.body)["name"] == "fal-proxy"


async def test_admin_listener_has_a_ceiling_per_address() -> None:
    async with admin(guard=AddressGuard(2, clock=lambda: 0.0)) as port:
        statuses = [(await _ask(port)).status for _ in range(2)]
        last = await _ask(port)
    assert [*statuses, last.status] == [200, 200, 429]
    assert last.one(b"retry-after") == b"60"


def _environ(**variables: str) -> dict[str, str]:
    return clean_environment(
        FAL_KEY=FAL_KEY.reveal(),
        FAL_PROXY_SECRET=SIGNING_SECRET,
        FAL_PROXY_IDENTITY__SOURCES='["key"]',
        FAL_PROXY_PLANS__DEFAULT__ENDPOINTS='["fal-ai/**"]',
        **variables,
    )


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def test_serve_opens_the_admin_listener_and_writes_access_lines_after_its_first_line(tmp_path: Path) -> None:
    port = free_port()
    with running(["serve", "--port", "0"], tmp_path, _environ(FAL_PROXY_ADMIN__PORT=str(port))) as proxy:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            _get(f"{proxy.url}{MOUNT}/fal.run/fal-ai/flux")
        assert proxy.process.stdout is not None
        line = msgspec.json.decode(proxy.process.stdout.readline())
        assert (line["decision"], line["status"]) == ("unidentified", 401)
        found = parsed(_get(f"http://127.0.0.1:{port}/metrics"))
    labels = {"kind": "none", "decision": "unidentified", "ending": "refused"}
    assert ("fal_proxy_exchanges_total", labels, 1.0) in found


def test_stdout_that_nobody_reads_stops_no_request_and_loses_no_line_of_the_last_moment(tmp_path: Path) -> None:
    count = 400  # more than a pipe holds
    with running(["serve", "--port", "0"], tmp_path, _environ(FAL_PROXY_ADMIN__PORT="0")) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        for _ in range(count):
            connection.request("GET", f"{MOUNT}/fal.run/fal-ai/flux")
            assert connection.getresponse().read()
        connection.close()
        proxy.process.terminate()
        assert proxy.process.stdout is not None
        written = proxy.process.stdout.read()
    assert len(written) > 1 << 16
    assert len([msgspec.json.decode(line) for line in written.splitlines()]) == count


def test_serve_without_an_admin_port_opens_no_second_listener(tmp_path: Path) -> None:
    with running(["serve", "--port", "0"], tmp_path, _environ(FAL_PROXY_ADMIN__PORT="0")) as proxy:
        listing = _listening(proxy.process.pid)
    assert listing == {proxy.port}


def _listening(pid: int) -> set[int]:
    """Return the ports that a process listens on, as Linux tells it."""
    inodes = {link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, "admin.port: cannot listen on 127.0.0.1 port {port}: Address already in use"),
        ({"FAL_PROXY_ADMIN__HOST": "0.0.0.0"}, "admin.host: is not loopback, so it needs FAL_PROXY_ADMIN_TOKEN"),
        ({"FAL_PROXY_ADMIN_TOKEN": "short"}, "FAL_PROXY_ADMIN_TOKEN: needs at least 16"),
        ({"FAL_PROXY_ADMIN__PORT": "65536"}, "admin.port: must be 0 (off) to 65535"),
    ],
    ids=["busy", "open", "short token", "no port"],
)
def test_serve_refuses_an_admin_listener_that_is_busy_or_open(
    variables: dict[str, str], named: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        result = subprocess.run(
            [sys.executable, "-m", "fal_proxy", "serve", "--port", "0"],
            cwd=tmp_path,
            env=_environ(**{"FAL_PROXY_ADMIN__PORT": str(port)} | variables),
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert result.returncode == 3
    assert result.stdout == ""
    assert named.format(port=port) in result.stderr
    assert "Traceback" not in result.stderr
