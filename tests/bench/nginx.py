"""nginx twice: as fal, which answers at once, and as the proxy that everybody is measured beside."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.machine import pinned
from support.certificates import authority
from support.ports import free_port
from support.proxied import FAL_KEY, MOUNT

START_SECONDS = 10.0
IMAGE = (
    '{"images":[{"url":"https://v3.fal.media/files/b/harbour.png","width":1024,"height":768,'
    '"content_type":"image/png"}],"timings":{"inference":0.4127},"seed":42,"has_nsfw_concepts":[false],'
    '"prompt":"a harbour at dawn, in the manner of an old postcard"}'
)
_BASE = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log warn;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 75; tcp_nodelay on;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/a; uwsgi_temp_path {folder}/b; scgi_temp_path {folder}/c;
  client_max_body_size 0; default_type application/json; sendfile on;
{servers}
}}
"""
# `…/job/17` is submitted by caller 17, whose number is in every answer, so that a load needs no table of its own.
_FAL = """
  server {{
    listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl;
    ssl_certificate {folder}/chain.pem; ssl_certificate_key {folder}/key.pem;
    add_header x-fal-request-id $request_id; add_header x-fal-billable-units 1;
    location ~ /job/(?<caller>[0-9]+)/requests/(?<id>[0-9a-f]+)/status$ {{
      return 200 '{{"status":"IN_PROGRESS","request_id":"$id","caller":$caller,"response_url":"https://queue.fal.run/bench/job/requests/$id","logs":[]}}';
    }}
    location ~ /requests/ {{ return 200 '{image}'; }}
    location ~ /job/(?<caller>[0-9]+)$ {{
      return 200 '{{"status":"IN_QUEUE","request_id":"$request_id","caller":$caller,"response_url":"https://queue.fal.run/bench/job/requests/$request_id","status_url":"https://queue.fal.run/bench/job/requests/$request_id/status","cancel_url":"https://queue.fal.run/bench/job/requests/$request_id/cancel","queue_position":0}}';
    }}
    location ~ /film$ {{ error_page 405 =200 $uri; root {files}; try_files /film =404; default_type video/mp4; }}
    location / {{ return 200 '{image}'; }}
  }}
"""
_PROXY = """
  upstream {name} {{ server 127.0.0.1:{to}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    location {mount}/ {{
      proxy_pass {scheme}://{name}/; proxy_http_version 1.1; proxy_max_temp_file_size 0; {more}
      proxy_set_header Connection $connection_up; proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Authorization "Key {key}"; proxy_set_header Host 127.0.0.1;
      proxy_ssl_verify on; proxy_ssl_trusted_certificate {folder}/authority.pem; proxy_ssl_name fal.run;
    }}
  }}
"""
_STREAMING = "proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 600;"
_UPGRADES = "  map $http_upgrade $connection_up { default upgrade; '' ''; }\n"


@contextlib.contextmanager
def fal(folder: Path, core: int) -> Iterator[tuple[int, int]]:
    """Run nginx as fal; yields its plain and its TLS port. `…/film` is the file `film` of the folder."""
    certificate = authority().issue_cert("127.0.0.1", "fal.run", "queue.fal.run")
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "chain.pem"))
    plain, tls = free_port(), free_port()
    servers = _FAL.format(plain=plain, tls=tls, folder=folder, files=folder, image=IMAGE)
    with _running(folder, "fal", servers, core):
        yield plain, tls


@contextlib.contextmanager
def proxy(folder: Path, core: int, upstreams: Mapping[str, tuple[str, int]]) -> Iterator[tuple[dict[str, int], int]]:
    """Run nginx in front of upstreams, each a scheme and a port; yields a port for each, and the worker's process id.

    An upstream called `talk` is streamed from and to, as long answers, uploads and sockets need it.
    """
    authority().cert_pem.write_to_path(str(folder / "authority.pem"))
    ports = {name: free_port() for name in upstreams}
    servers = _UPGRADES + "".join(
        _PROXY.format(
            name=name,
            to=to,
            port=ports[name],
            mount=MOUNT,
            scheme=scheme,
            key=FAL_KEY.reveal(),
            folder=folder,
            more=_STREAMING if name == "talk" else "",
        )
        for name, (scheme, to) in upstreams.items()
    )
    with _running(folder, "proxy", servers, core) as worker:
        yield ports, worker


@contextlib.contextmanager
def _running(folder: Path, name: str, servers: str, core: int) -> Iterator[int]:
    """Run one nginx; yields its worker's process id."""
    config = folder / f"{name}.conf"
    config.write_text(_BASE.format(folder=folder, servers=servers).replace(f"{folder}/pid", f"{folder}/{name}.pid"))
    process = subprocess.Popen(pinned(core, ["nginx", "-p", str(folder), "-c", str(config)]))
    try:
        children, deadline = Path(f"/proc/{process.pid}/task/{process.pid}/children"), time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if workers := children.read_text().split():
                yield int(workers[0])
                return
            time.sleep(0.01)
        raise SystemExit(f"bench: nginx as {name} does not start")
    finally:
        process.terminate()
        process.wait()
