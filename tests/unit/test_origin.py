"""Which pages may use us: names that are ours, origins that are ours or listed, and the cross-site rule."""

from __future__ import annotations

import pytest

from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller
from fal_proxy.headers import Headers
from fal_proxy.policy.origin import Site, judge_cross_site
from fal_proxy.request import Request

COOKIE_HOLDER = Caller("anonymous::cookie-x", "anonymous", "default", ambient=True)
NETWORK = Caller("anonymous::network-x", "anonymous", "default", ambient=True, by_network=True)
KEY_HOLDER = Caller("key::ada", "key", "default", ambient=False)
COOKIE = (b"cookie", b"a=b")


def request(headers: Headers, scheme: str = "http") -> Request:
    """A request with these fields."""
    return Request("POST", b"/", None, headers, "127.0.0.1", scheme)


def site(value: bytes) -> tuple[bytes, bytes]:
    """Sec-Fetch-Site with this value."""
    return (b"sec-fetch-site", value)


HEADER, PATH = True, False
ALLOWED = [
    (COOKIE_HOLDER, True, [COOKIE], PATH, "(a) an origin that is ours or listed"),
    (
        COOKIE_HOLDER,
        True,
        [site(b"cross-site"), COOKIE],
        PATH,
        "(a) a listed page is cross-site, and that is its point",
    ),
    (NETWORK, True, [], HEADER, "(a) for networks too"),
    (COOKIE_HOLDER, None, [site(b"same-origin"), COOKIE], PATH, "(b) a GET of our own page"),
    (COOKIE_HOLDER, None, [site(b"same-origin"), COOKIE], HEADER, "(b) in either form"),
    (COOKIE_HOLDER, None, [COOKIE], HEADER, "(c) no page can set that field without being asked for Origin"),
    (NETWORK, None, [], HEADER, "(c) Node"),
    (NETWORK, None, [], PATH, "(c) curl, with nothing that could be abused"),
    (KEY_HOLDER, False, [site(b"cross-site")], PATH, "a key is no proof that a browser attaches by itself"),
    (KEY_HOLDER, None, [site(b"cross-site"), COOKIE], HEADER, "as above"),
]
DENIED = [
    (COOKIE_HOLDER, False, [COOKIE], PATH, "a foreign origin"),
    (COOKIE_HOLDER, False, [COOKIE], HEADER, "in either form"),
    (NETWORK, False, [], HEADER, "without a cookie too: the network's allowance is spent"),
    (NETWORK, False, [site(b"same-origin")], PATH, "Origin decides where there is one"),
    (COOKIE_HOLDER, None, [site(b"cross-site"), COOKIE], PATH, "an image of another page"),
    (COOKIE_HOLDER, None, [site(b"same-site"), COOKIE], HEADER, "a sister domain is another party"),
    (NETWORK, None, [site(b"none")], PATH, "a typed address runs nothing"),
    (NETWORK, None, [site(b"none")], HEADER, "as above"),
    (NETWORK, None, [site(b"")], HEADER, "an empty value is not absence"),
    (NETWORK, None, [site(b"Same-Origin")], HEADER, "browsers write it in lower case"),
    (COOKIE_HOLDER, None, [COOKIE], PATH, "a link in an old browser"),
    (NETWORK, None, [COOKIE], PATH, "any cookie makes it a browser with something to abuse"),
    (COOKIE_HOLDER, None, [], PATH, "not anonymous by network"),
]


@pytest.mark.parametrize(("caller", "accepted", "headers", "header_form", "reason"), ALLOWED)
def test_cross_site_rule_lets_pass(
    caller: Caller, accepted: bool | None, headers: Headers, header_form: bool, reason: str
) -> None:
    judge_cross_site(caller, request(headers), origin_accepted=accepted, header_form=header_form)


@pytest.mark.parametrize(("caller", "accepted", "headers", "header_form", "reason"), DENIED)
def test_cross_site_rule_denies(
    caller: Caller, accepted: bool | None, headers: Headers, header_form: bool, reason: str
) -> None:
    with pytest.raises(Refusal) as caught:
        judge_cross_site(caller, request(headers), origin_accepted=accepted, header_form=header_form)
    assert caught.value.error_type == "origin_denied", reason


def test_two_sec_fetch_site_lines_are_no_proof() -> None:
    headers = [site(b"same-origin"), site(b"same-origin")]
    with pytest.raises(Refusal):
        judge_cross_site(NETWORK, request(headers), origin_accepted=None, header_form=HEADER)


P = "https://p.example"
OURS = [
    (P, P, "anything", True, "exactly public_url"),
    (P + "/", P, "p.example", True, "a slash in the setting is no difference"),
    (P + ":443", P, "p.example", True, "nor is the default port"),
    (P, P + ":443", "p.example", False, "browsers leave it out, so nobody else has a reason to send it"),
    (P, "http://p.example", "p.example", False, "plain text in front of our name"),
    (P, P + ":8443", "p.example", False, "another port"),
    (P, P + ".evil.example", "p.example", False, "our name as a beginning"),
    (P, "https://evil-p.example", "p.example", False, "our name as an end"),
    (P, "https://p.example@evil.example", "p.example", False, "our name as a user"),
    (P, "HTTPS://P.EXAMPLE", "p.example", False, "browsers write lower case"),
    (P, "null", "p.example", False, "a sandboxed page"),
    (P, "http://127.0.0.1:8080", "127.0.0.1:8080", False, "with public_url Host decides nothing"),
    ("http://[::1]:8080", "http://[::1]:8080", "x", True, "IPv6"),
    ("", "http://localhost:8080", "localhost:8080", True, "host:port equals Host"),
    ("", "http://localhost", "localhost", True, "both without a port"),
    ("", "http://localhost", "localhost:80", True, "the default port, said by one side"),
    ("", "http://localhost:80", "localhost", True, "by the other"),
    ("", "https://p.example", "p.example", True, "TLS ends in front of us"),
    ("", "https://p.example", "p.example:443", True, "as above"),
    ("", "https://p.example", "p.example:80", False, "the default of another scheme"),
    ("", "http://localhost:3000", "localhost:8080", False, "another port is another page"),
    ("", "http://[::1]:8080", "[::1]:8080", True, "IPv6"),
    ("", "http://[::1]", "[::1]:80", True, "IPv6, default port"),
    ("", "http://[::1]", "[::2]", False, "another address"),
    ("", "http://127.0.0.1:8080", "localhost:8080", False, "another name of the same machine"),
    ("", "http://localhost.evil.example:8080", "localhost:8080", False, "our name as a beginning"),
    ("", "http://evil-localhost:8080", "localhost:8080", False, "our name as an end"),
    ("", "http://localhost:8080/", "localhost:8080", False, "no origin has a path"),
    ("", "http://u@localhost:8080", "localhost:8080", False, "nor a user"),
    ("", "http://LOCALHOST:8080", "localhost:8080", False, "browsers write lower case"),
    ("", "ftp://localhost:8080", "localhost:8080", False, "another scheme"),
    ("", "chrome-extension://localhost:8080", "localhost:8080", False, "as above"),
    ("", "localhost:8080", "localhost:8080", False, "no scheme"),
    ("", "null", "null", False, "a sandboxed page, even at a host of that name"),
    ("", "", "", False, "nothing"),
]


@pytest.mark.parametrize(("public_url", "origin", "host", "ours", "reason"), OURS)
def test_origin_is_ours_exactly(public_url: str, origin: str, host: str, ours: bool, reason: str) -> None:
    assert Site(public_url, (), ()).is_ours(origin, host) is ours, reason


def test_listed_origin_is_compared_exactly() -> None:
    listed = Site("", (), ["https://a.example", "http://localhost:3000", "http://[::1]:3000"])
    for origin in ("https://a.example", "http://localhost:3000", "http://[::1]:3000"):
        assert listed.is_listed(origin)
    for origin in ("http://a.example", "https://A.example", "https://a.example:443", "https://x.a.example", "null", ""):
        assert not listed.is_listed(origin)


@pytest.mark.parametrize("origin", ["*", "null", "a.example", "https://a.example/", "https://*.example", "HTTPS://a"])
def test_inexact_origin_cannot_be_listed(origin: str) -> None:
    with pytest.raises(ValueError, match="no exact origin"):
        Site("", (), [origin])


NAMED = ["proxy.example", "localhost", "127.0.0.1", "[::1]"]
HOSTS = [
    (NAMED, "", "proxy.example", None, "listed"),
    (NAMED, "", "proxy.example:8080", None, "ports do not matter"),
    (NAMED, "", "PROXY.Example", None, "nor does case"),
    (NAMED, "", " localhost ", None, "nor do spaces around it"),
    (NAMED, "", "[::1]", None, "IPv6"),
    (NAMED, "", "[::1]:8080", None, "IPv6 with a port"),
    (NAMED, "", "[::2]", "misdirected_host", "another address"),
    (NAMED, "", "evil.example", "misdirected_host", "DNS that points here"),
    (NAMED, "", "proxy.example.evil.example", "misdirected_host", "our name as a beginning"),
    (NAMED, "", "xproxy.example", "misdirected_host", "our name as an end"),
    (NAMED, "", "proxy.example.", "misdirected_host", "a trailing dot is another name"),
    (NAMED, "", "", "bad_request", "empty"),
    (NAMED, "", "localhost,evil.example", "bad_request", "two names in one"),
    (NAMED, "", "evil.example/localhost", "bad_request", "a path"),
    (NAMED, "", "evil.example\\localhost", "bad_request", "a path to some"),
    (NAMED, "", "evil@localhost", "bad_request", "a user"),
    (NAMED, "", "a b", "bad_request", "a space"),
    ([], "https://proxy.example:8443", "proxy.example", None, "public_url names the host"),
    ([], "http://[::1]:8080", "[::1]:9", None, "IPv6 in public_url"),
    ([], "https://proxy.example", "localhost", "misdirected_host", "and no other"),
    (["a.example"], "https://proxy.example", "a.example", None, "hosts replace it"),
    (["a.example"], "https://proxy.example", "proxy.example", "misdirected_host", "as above"),
    (["*"], "https://proxy.example", "evil.example", None, "any"),
    (["*"], "", "", "bad_request", "any, but one"),
    ([], "", "evil.example", None, "nothing configured: key holders only"),
]


@pytest.mark.parametrize(("hosts", "public_url", "host", "refused", "reason"), HOSTS)
def test_host_is_one_of_ours(hosts: list[str], public_url: str, host: str, refused: str | None, reason: str) -> None:
    judged = Site(public_url, hosts, ())
    if refused is None:
        assert judged.judge_host(request([(b"host", host.encode())])) == host.strip().lower(), reason
        return
    with pytest.raises(Refusal) as caught:
        judged.judge_host(request([(b"host", host.encode())]))
    assert caught.value.error_type == refused, reason


@pytest.mark.parametrize("headers", [[], [(b"host", b"localhost"), (b"host", b"localhost")]])
def test_host_must_be_there_once(headers: Headers) -> None:
    with pytest.raises(Refusal) as caught:
        Site("", ["*"], ()).judge_host(request(headers))
    assert caught.value.status == 400


@pytest.mark.parametrize("host", ["a.example:80", "a.example:8080", "https://a.example", "::1", "[::1]:80", "a b", ""])
def test_host_that_could_never_match_is_refused_at_start(host: str) -> None:
    with pytest.raises(ValueError, match="no host name"):
        Site("", [host], ())


@pytest.mark.parametrize(
    ("public_url", "scheme", "https"),
    [
        ("https://p.example", "http", True),
        ("http://p.example", "https", False),
        ("", "https", True),
        ("", "http", False),
    ],
)
def test_public_url_decides_about_https_and_else_the_socket(public_url: str, scheme: str, https: bool) -> None:
    assert Site(public_url, (), ()).is_https(request([], scheme)) is https


@pytest.mark.parametrize(
    "public_url", ["p.example", "ftp://p.example", "https://p.example/path", "https://u@p.example"]
)
def test_malformed_public_url_is_refused(public_url: str) -> None:
    with pytest.raises(ValueError, match="public_url"):
        Site(public_url, (), ())
