"""Which pages may use us. Host names that are ours, origins that are ours, and the cross-site rule for ambient callers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller
from fal_proxy.request import Request
from fal_proxy.settings import origin_of

# A name or an IPv6 literal, and a numeric port: what browsers send (RFC 9110 §7.2).
_HOST = re.compile(r"(?:[a-z0-9._~\-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class Site:
    """Our own names, as the outside sees them."""

    def __init__(self, public_url: str, hosts: Sequence[str], origins: Sequence[str]) -> None:
        """Take `server.public_url`, `server.hosts` and `cors.origins`; raise ValueError for malformed ones."""
        self.origin = origin_of(public_url) if public_url else None
        if public_url and self.origin is None:
            raise ValueError("server.public_url must be http[s]://host[:port]")
        self._listed = frozenset(_listed_origin(origin) for origin in origins)
        names = [_host_name(host) for host in hosts]
        if not names and self.origin:
            names = [_split_port(self.origin.partition("://")[2])[0]]
        self._hosts = None if not names or "*" in names else frozenset(names)
        # The few that pass come with every request; what is refused is not remembered.
        self._host = lru_cache(maxsize=64)(self._named)
        self.is_ours = lru_cache(maxsize=64)(self._is_ours)

    def judge_host(self, request: Request) -> str:
        """Return the request's Host. Raises Refusal: bad_request without exactly one, misdirected_host for others'."""
        return self._host(request.one(b"host"))

    def _named(self, value: bytes | None) -> str:
        host = (value or b"").decode("latin-1").strip().lower()
        if not _HOST.fullmatch(host):
            raise Refusal("bad_request", "a request needs exactly one plain Host field")
        if self._hosts is not None and _split_port(host)[0] not in self._hosts:
            raise Refusal("misdirected_host", "this name is not one that the proxy answers to (server.hosts)")
        return host

    def is_https(self, request: Request) -> bool:
        """Say whether our public side is https."""
        return (self.origin or request.scheme).startswith("https")

    def base(self, request: Request) -> str:
        """Return what URLs to us begin with, without a final slash: public_url, else how this request, judged, came."""
        return self.origin or f"{request.scheme}://{self.judge_host(request)}"

    def _is_ours(self, origin: str, host: str) -> bool:
        """Say whether a page of this origin is our own: exactly public_url's, else one whose host:port is our Host."""
        if self.origin is not None:
            return origin == self.origin
        scheme, _, authority = origin.partition("://")
        name, port = _split_port(authority)
        own_name, own_port = _split_port(host)
        default = _DEFAULT_PORTS.get(scheme)
        return default is not None and name == own_name and (port or default) == (own_port or default)

    def is_listed(self, origin: str) -> bool:
        """Say whether the operator lists this origin."""
        return origin in self._listed


def judge_cross_site(
    caller: Caller, request: Request, *, origin_accepted: bool | None, header_form: bool, navigable: bool = False
) -> None:
    """Raise Refusal `origin_denied` for an ambient caller behind a page that is not allowed.

    `origin_accepted` is None without an Origin field. Browsers send Origin on every cross-origin request and on every
    same-origin one that is not GET or HEAD; Sec-Fetch-Site fills the gap (Fetch §3.2.9, §4.3). What has neither is no
    browser of this decade: the header form needs a field that no form or image can send, the path form is left to
    callers who have no cookie that could be abused. What is `navigable`, a file, may also be opened from the address bar.
    """
    if not caller.ambient or origin_accepted:
        return
    if origin_accepted is None:
        site = request.one(b"sec-fetch-site")
        if site == b"same-origin":
            return
        carries_cookie = any(name == b"cookie" for name, _ in request.headers)
        unsaid = site is None or (navigable and site == b"none")
        if unsaid and (header_form or (caller.by_network and not carries_cookie)):
            return
    raise Refusal("origin_denied", "this page's origin may not use the proxy; the operator can list it in cors.origins")


def _listed_origin(origin: str) -> str:
    if origin_of(origin) != origin:
        raise ValueError(f"cors.origins: {origin!r} is no exact origin such as https://app.example.com")
    return origin


def _host_name(host: str) -> str:
    name = host.lower()
    if name != "*" and (origin_of(f"http://{name}") != f"http://{name}" or _split_port(name)[1]):
        raise ValueError(f"{host!r} is no host name: no scheme, no port, IPv6 in brackets")
    return name


def _split_port(authority: str) -> tuple[str, str]:
    """Split `host[:port]`, brackets kept on IPv6."""
    if authority.endswith("]"):
        return authority, ""
    name, separator, port = authority.rpartition(":")
    return (name, port) if separator else (authority, "")
