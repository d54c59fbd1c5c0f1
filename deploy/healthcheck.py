"""The image's health check: ask the proxy in this container whether it is alive, under a name that it answers to."""

from __future__ import annotations

import http.client
import sys
from urllib.parse import urlsplit

from fal_proxy.settings import Settings

SECONDS = 2


def main() -> int:
    """Return 0 when `/healthz` answers 200."""
    server = Settings.load()[0].server
    name = next((host for host in server.hosts if host != "*"), urlsplit(server.public_url).netloc) or "localhost"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
    try:
        connection.request("GET", "/healthz", headers={"Host": name})
        return int(connection.getresponse().status != 200)
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
