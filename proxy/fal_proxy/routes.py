"""Every route that the proxy answers, once: what leads to an answer and what the documentation shows derive from this list.

Knows no handler, and not which routes a deployment's settings open.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Served(NamedTuple):
    """One route: `{…}` stands for what a request fills in, the last one for anything that follows."""

    where: Literal["mount", "root", "admin"]  # below the mount; beside it; on the admin listener
    methods: str
    path: str
    meaning: str

    @property
    def raw(self) -> bytes:
        """Return the path as requests spell it."""
        return self.path.encode("ascii")

    @property
    def segment(self) -> bytes:
        """Return the path's first segment."""
        return self.raw[1:].partition(b"/")[0]

    @property
    def around(self) -> tuple[bytes, bytes]:
        """Return what stands before and after the one part that a request fills in."""
        return self.raw[: self.raw.index(b"{")], self.raw[self.raw.index(b"}") + 1 :]

    def below(self, mount: str) -> str:
        """Return the template of the whole path."""
        return mount + self.path if self.where == "mount" else self.path


BARE = Served("mount", "any", "", "what `x-fal-target-url` names")
PATH_FORM = Served("mount", "any", "/{host}/{path}", "`https://<host>/<path>`, HTTP and WebSocket")
ME = Served("mount", "GET", "/me", "where the caller stands: plan, limits, budget")
CLIENT = Served("mount", "GET, HEAD", "/client.js", "the module that leads a page's sockets here; needs no caller")
CLIENT_TYPES = Served("mount", "GET, HEAD", "/client.d.ts", "its types")
EVENTS = Served("mount", "GET", "/events", "server-sent events about the ends of the caller's jobs")
UPLOADS = Served("mount", "PUT, POST", "/uploads/{capability}", "the bytes of an upload whose URL we handed out")
WEBHOOKS = Served("mount", "POST", "/webhooks/{capability}", "what fal is told to call")
AUTHORIZE = Served(
    "mount", "GET", "/authorize", "for nginx' `auth_request`: may it fetch this file of fal's CDN by itself?"
)
HEALTH = Served("root", "GET, HEAD", "/healthz", "200 while the process lives")
READY = Served("root", "GET, HEAD", "/readyz", "200, or 503 with reasons: no usable key, no store, the end is near")
OVERVIEW = Served("admin", "GET, HEAD", "/", "browsers: the page; else version, requests in progress, the routes")
PAGE = Served("admin", "GET, HEAD", "/page/{file}", "what the page loads; needs no token")
METRICS = Served("admin", "GET, HEAD", "/metrics", "Prometheus")
DEAD_LETTERS = Served("admin", "GET, HEAD", "/webhooks/dead-letters", "deliveries given up, newest first")
USAGE = Served("admin", "GET, HEAD", "/usage", "the last hour and day of this process, and what is live, as JSON")
EXPORT = Served("admin", "GET, HEAD", "/usage.csv", "the last day's hours, for a spreadsheet")
STOP_PAID = Served("admin", "POST", "/paid/stop", "refuse everything that fal bills; needs the admin token")
RESUME_PAID = Served("admin", "POST", "/paid/resume", "allow it again; needs the admin token")
CALLER = Served("admin", "GET, HEAD", "/callers/{caller}", "one caller, by the short hash of access lines")
BLOCK = Served("admin", "POST", "/callers/{caller}/block", "refuse the caller everything; needs the admin token")
UNBLOCK = Served("admin", "POST", "/callers/{caller}/unblock", "end that; needs the admin token")
RESET = Served(
    "admin", "POST", "/callers/{caller}/reset", "forget the caller's hits and spending; needs the admin token"
)
RETRY = Served("admin", "POST", "/webhooks/dead-letters/{number}/retry", "make one due now; needs the admin token")

ROUTES = (
    BARE,
    PATH_FORM,
    ME,
    CLIENT,
    CLIENT_TYPES,
    EVENTS,
    UPLOADS,
    WEBHOOKS,
    AUTHORIZE,
    HEALTH,
    READY,
    OVERVIEW,
    PAGE,
    METRICS,
    USAGE,
    EXPORT,
    CALLER,
    STOP_PAID,
    RESUME_PAID,
    BLOCK,
    UNBLOCK,
    RESET,
    DEAD_LETTERS,
    RETRY,
)
_BELOW_MOUNT = {route.segment: route for route in ROUTES if route.where == "mount"}


def route_of(path: bytes, mount: str) -> str:
    """Return the template of the route below the mount that a path leads to."""
    segment = path[len(mount) + 1 :].partition(b"/")[0]
    return _BELOW_MOUNT.get(segment, PATH_FORM).below(mount)
