"""nginx and Caddy, started with the very files of deploy/: only ports, names and folders are put into them."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.certificates import authority
from support.commands import clean_environment
from support.ports import free_port

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
NOTICE_SECONDS = {"nginx": 0.0, "caddy": 2.5}  # Caddy looks at /readyz every second; nginx cannot
_START_SECONDS = 20.0


@dataclass(frozen=True)
class Front:
    """What stands in front: its port of TLS on loopback, and the certificate that its callers trust."""

    name: str
    port: int
    certificate: Path

    @property
    def url(self) -> str:
        """The origin that callers see."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def shows_cuts(self) -> bool:
        """Say whether a stream that breaks off behind it looks broken: Caddy before 2.8 ends it as if it were whole."""
        if self.name != "caddy":
            return True
        told = subprocess.run([self.name, "version"], capture_output=True, text=True, check=True).stdout
        return tuple(int(part) for part in re.findall(r"\d+", told)[:2]) >= (2, 8)

    def trusting(self) -> ssl.SSLContext:
        """Return what a caller's side of TLS believes."""
        return ssl.create_default_context(cafile=str(self.certificate))


@contextlib.contextmanager
def front(name: str, folder: Path, port: int, replicas: Sequence[int], *, offload: bool = False) -> Iterator[Front]:
    """Run nginx or Caddy on `port` before the replicas' ports until the block ends; skip where it is not installed.

    With `offload`, nginx fetches files by itself.
    """
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    folder.mkdir()
    if name == "nginx":
        command, environ, certificate = _nginx(program, folder, port, replicas, offload=offload)
    else:
        command, environ, certificate = _caddy(program, folder, port, replicas)
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=output, stderr=output)
        try:
            running = Front(name, port, certificate)
            _wait(running, process, folder)
            yield running
        finally:
            process.terminate()
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:  # Caddy lets what runs end by itself
                process.kill()
                process.wait(_START_SECONDS)


def put_into(text: str, replaced: dict[str, str]) -> str:
    """Return a configuration with each of these in place of what stands in the file, where it must stand."""
    for old, new in replaced.items():
        assert old in text, f"{old!r} is not in the file"
        text = text.replace(old, new)
    return text


def nginx_text(folder: Path, port: int, replicas: Sequence[int], *, offload: bool) -> str:
    """Return nginx.conf for a test's folder and ports."""
    temporary = [f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    included = f"include {DEPLOY / 'nginx-offload.conf'};" if offload else ""
    return put_into(
        (DEPLOY / "nginx.conf").read_text("utf-8"),
        {
            "#include /etc/nginx/nginx-offload.conf;": included,
            "/run/nginx.pid": f"{folder}/nginx.pid",
            "/var/log/nginx/error.log": f"{folder}/error.log",
            "/etc/nginx/tls/fullchain.pem": f"{folder}/chain.pem",
            "/etc/nginx/tls/privkey.pem": f"{folder}/key.pem",
            "http {\n": "http {\n    " + " ".join(temporary) + "\n",
            "listen 80;": f"listen 127.0.0.1:{free_port()};",
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "127.0.0.1:8080": f"127.0.0.1:{replicas[0]}",
            "127.0.0.1:8081": f"127.0.0.1:{replicas[1]}",
        },
    )


def write_certificate(folder: Path) -> Path:
    """Write a key and a certificate for 127.0.0.1; return the authority's."""
    certificate = authority().issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(str(folder / "chain.pem"), append=True)
    path = folder / "authority.pem"
    authority().cert_pem.write_to_path(str(path))
    return path


def _nginx(
    program: str, folder: Path, port: int, replicas: Sequence[int], *, offload: bool
) -> tuple[list[str], dict[str, str], Path]:
    trusted = write_certificate(folder)
    (folder / "nginx.conf").write_text(nginx_text(folder, port, replicas, offload=offload), "utf-8")
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
    return command, clean_environment(), trusted


def _caddy(program: str, folder: Path, port: int, replicas: Sequence[int]) -> tuple[list[str], dict[str, str], Path]:
    text = (DEPLOY / "Caddyfile").read_text("utf-8")
    # Its API has a port of its own that two Caddys on one machine cannot share.
    (folder / "Caddyfile").write_text(put_into(text, {"skip_install_trust\n": "skip_install_trust\n\tadmin off\n"}))
    environ = clean_environment(
        FAL_PROXY_SITE=f"https://127.0.0.1:{port}",
        FAL_PROXY_HOST="127.0.0.1",
        FAL_PROXY_REPLICAS=" ".join(f"127.0.0.1:{replica}" for replica in replicas),
        FAL_PROXY_HTTP_PORT=str(free_port()),
        XDG_DATA_HOME=str(folder),
        XDG_CONFIG_HOME=str(folder),
    )
    command = [program, "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]
    return command, environ, folder / "caddy" / "pki" / "authorities" / "local" / "root.crt"


def _wait(running: Front, process: subprocess.Popen[bytes], folder: Path) -> None:
    """Return once it shakes hands with a certificate that its callers trust."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with (
                socket.create_connection(("127.0.0.1", running.port), timeout=2) as sock,
                running.trusting().wrap_socket(sock, server_hostname="127.0.0.1"),
            ):
                return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{error}: {(folder / 'output').read_text('utf-8', 'replace')}") from error
            time.sleep(0.02)
