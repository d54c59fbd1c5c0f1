"""The anonymous caller: a signed cookie for browsers, the network for everyone else."""

from __future__ import annotations

import time

import msgspec
import pytest

from fal_proxy.environment import Secret
from fal_proxy.exchange import Caller
from fal_proxy.headers import Headers
from fal_proxy.identity import Presented
from fal_proxy.identity.anonymous import Anonymous, is_browser
from fal_proxy.identity.network import TrustedProxies
from fal_proxy.request import Request
from support.instantly import instantly

OLD, NEW = "an old secret, long enough", "a new secret, long enough"
PAGE = (b"origin", b"https://app.example")
DAY = 24 * 3600


def source(*secrets: str, https: bool = False, trusted: tuple[str, ...] = ()) -> Anonymous:
    """An anonymous source with these signing secrets, oldest first."""
    return Anonymous([Secret(text) for text in secrets or (NEW,)], "free", TrustedProxies(trusted), lambda _: https)


def identify(anonymous: Anonymous, headers: Headers, peer: str = "203.0.113.7") -> Caller:
    """Identify a request with these fields."""
    caller = instantly(anonymous.identify(Presented(Request("POST", b"/", None, headers, peer, "http"), None)))
    assert caller is not None
    assert (caller.source, caller.plan, caller.ambient) == ("anonymous", "free", True)
    return caller


def issued(anonymous: Anonymous) -> bytes:
    """Return `name=value` of a fresh cookie."""
    cookie = identify(anonymous, [PAGE]).set_cookie
    assert cookie is not None
    return cookie.partition(b";")[0]


def test_presented_credential_is_never_anonymous() -> None:
    for credential in ("", "x", "fpk_x"):
        assert (
            instantly(source().identify(Presented(Request("POST", b"/", None, [PAGE], "", "http"), credential))) is None
        )


def test_browser_is_given_a_cookie_and_recognised_by_it() -> None:
    anonymous = source()
    first = identify(anonymous, [PAGE])
    assert (first.id, first.by_network) == ("anonymous::network-203.0.113.7/32", True)
    assert first.set_cookie is not None
    cookie = first.set_cookie.partition(b";")[0]
    later = [identify(anonymous, [PAGE, (b"cookie", cookie)], peer) for peer in ("203.0.113.7", "198.51.100.1")]
    assert later[0].id == later[1].id, "wherever it comes from"
    assert later[0].id.startswith("anonymous::cookie-")
    assert (later[0].by_network, later[0].set_cookie) == (False, None)


def test_every_cookie_is_another_caller() -> None:
    anonymous = source()
    assert len({identify(anonymous, [(b"cookie", issued(anonymous))]).id for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("https", "name", "end"),
    [
        (False, b"fal_proxy_anon", b"Max-Age=2592000; Path=/; HttpOnly; SameSite=Lax"),
        (True, b"__Host-fal_proxy_anon", b"Max-Age=2592000; Path=/; HttpOnly; SameSite=Lax; Secure"),
    ],
)
def test_cookie_has_the_form_of_its_scheme(https: bool, name: bytes, end: bytes) -> None:
    cookie = identify(source(https=https), [PAGE]).set_cookie
    assert cookie is not None
    pair, _, attributes = cookie.partition(b"; ")
    assert pair.startswith(name + b"=")
    assert attributes == end


def test_cookie_of_the_other_scheme_is_none() -> None:
    plain, secure = source(https=False), source(https=True)
    assert identify(secure, [(b"cookie", issued(plain))]).by_network
    assert identify(plain, [(b"cookie", issued(secure))]).by_network
    renamed = issued(plain).replace(b"fal_proxy_anon", b"__Host-fal_proxy_anon")
    assert not identify(secure, [(b"cookie", renamed)]).by_network, "the signature is the same"


def _forgeries(cookie: bytes) -> dict[str, bytes]:
    name, _, value = cookie.partition(b"=")
    subject, stamp, signature = value.split(b".")
    return {
        "another subject": name + b"=" + b".".join([subject[::-1], stamp, signature]),
        "another time": name + b"=" + b".".join([subject, stamp[::-1], signature]),
        "another signature": name + b"=" + b".".join([subject, stamp, signature[::-1]]),
        "no signature": name + b"=" + b".".join([subject, stamp]),
        "nothing but a subject": name + b"=" + subject,
        "empty": name + b"=",
        "no value": name,
        "one character less": cookie[:-1],
        "one character more": cookie + b"A",
        "a prefix in the name": b"x" + cookie,
        "another case of the name": name.upper() + b"=" + value,
        "quoted": name + b'="' + value + b'"',
        "bytes": name + b"=\xff\xfe." + stamp + b"." + signature,
        "oversized": name + b"=" + b"A" * 100_000,
        "a good one behind 250 characters": name + b"=" + b"A" * 250 + value,
        "dots": name + b"=" + b"." * 200,
    }


@pytest.mark.parametrize("reason", list(_forgeries(b"n=a.b.c")))
def test_bad_cookie_is_replaced(reason: str) -> None:
    anonymous = source()
    forged = _forgeries(issued(anonymous))[reason]
    caller = identify(anonymous, [PAGE, (b"cookie", forged)])
    assert (caller.by_network, caller.set_cookie is not None) == (True, True)
    assert identify(anonymous, [(b"cookie", forged)]).set_cookie is None, "but not for curl"


def test_another_deployments_cookie_is_none() -> None:
    assert identify(source(NEW), [(b"cookie", issued(source(OLD)))]).by_network


def test_good_cookie_is_found_among_others() -> None:
    anonymous = source()
    good = issued(anonymous)
    expected = identify(anonymous, [(b"cookie", good)]).id
    for headers in (
        [(b"cookie", b"a=1; " + good + b"; b=2")],
        [(b"cookie", b"a=1"), (b"cookie", good)],
        [(b"cookie", b"fal_proxy_anon=forged; " + good)],
        [(b"cookie", b";; " + good + b" ;")],
    ):
        assert identify(anonymous, [PAGE, *headers]).id == expected


def test_of_two_good_cookies_the_first_counts() -> None:
    anonymous = source()
    first, second = issued(anonymous), issued(anonymous)
    expected = identify(anonymous, [(b"cookie", first)]).id
    assert identify(anonymous, [(b"cookie", first + b"; " + second)]).id == expected
    assert identify(anonymous, [(b"cookie", first), (b"cookie", second)]).id == expected


def test_rotated_secret_signs_anew_and_the_old_one_still_counts() -> None:
    old, rotated, new = source(OLD), source(OLD, NEW), source(NEW)
    before = issued(old)
    assert identify(rotated, [(b"cookie", before)]).id == identify(old, [(b"cookie", before)]).id
    after = issued(rotated)
    assert not identify(new, [(b"cookie", after)]).by_network, "the last one signs"
    assert identify(old, [(b"cookie", after)]).by_network
    assert identify(new, [(b"cookie", before)]).by_network, "a removed secret ends its cookies"


def test_cookie_ends_after_thirty_days(monkeypatch: pytest.MonkeyPatch) -> None:
    anonymous = source()
    now = int(time.time())
    monkeypatch.setattr("itsdangerous.timed.time.time", lambda: now)
    cookie = issued(anonymous)
    for age, good in ((0, True), (30 * DAY, True), (30 * DAY + 1, False), (-60, False)):
        monkeypatch.setattr("itsdangerous.timed.time.time", lambda age=age: now + age)
        assert identify(anonymous, [(b"cookie", cookie)]).by_network is not good, age


def _again(anonymous: Anonymous, first: Request, peer: str | None = None) -> Caller:
    """Identify the sender of the same head, which may come from elsewhere."""
    request = msgspec.structs.replace(first, peer=first.peer if peer is None else peer)
    assert request.notes is first.notes
    caller = instantly(anonymous.identify(Presented(request, None)))
    assert caller is not None
    return caller


def test_the_same_head_from_another_address_is_another_network() -> None:
    anonymous = source(trusted=("192.0.2.1",))
    for fields in ([], [(b"cookie", issued(anonymous))], [(b"x-forwarded-for", b"198.51.100.9")]):
        head = Request("POST", b"/", None, fields, "203.0.113.7", "http")
        networks = [_again(anonymous, head, peer).network for peer in ("203.0.113.7", "203.0.113.8", "203.0.113.7")]
        assert networks[0] == networks[2] != networks[1]
        trusted = _again(anonymous, head, "192.0.2.1").network
        assert trusted.endswith("198.51.100.9/32" if fields and fields[0][0] != b"cookie" else "192.0.2.1/32")
        assert {caller.network for caller in [_again(anonymous, head)]} == {networks[0]}


def test_a_cookie_of_a_head_that_comes_again_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    anonymous = source()
    now = int(time.time())
    monkeypatch.setattr("itsdangerous.timed.time.time", lambda: now)
    head = Request("POST", b"/", None, [(b"cookie", issued(anonymous))], "203.0.113.7", "http")
    for age, good in ((-1, False), (0, True), (-1, False), (30 * DAY, True), (30 * DAY + 1, False), (5, True)):
        monkeypatch.setattr("itsdangerous.timed.time.time", lambda age=age: now + age)
        assert _again(anonymous, head).by_network is not good, age


def test_a_browser_without_a_cookie_is_given_another_one_each_time_its_head_comes() -> None:
    anonymous = source()
    head = Request("POST", b"/", None, [PAGE], "203.0.113.7", "http")
    callers = [_again(anonymous, head) for _ in range(3)]
    assert len({caller.set_cookie for caller in callers}) == 3
    assert len({caller.owners for caller in callers}) == 3


def test_of_two_sources_each_recognises_for_itself() -> None:
    old, new = source(OLD), source(NEW)
    head = Request("POST", b"/", None, [(b"cookie", issued(old))], "203.0.113.7", "http")
    for _ in range(2):
        assert not _again(old, head).by_network
        assert _again(new, head).by_network


def test_browsers_show_themselves_by_either_field() -> None:
    def shown(*headers: tuple[bytes, bytes]) -> bool:
        return is_browser(Request("GET", b"/", None, list(headers), "", "http"))

    assert shown((b"origin", b"null"))
    assert shown((b"sec-fetch-site", b"none"))
    assert not shown((b"user-agent", b"Mozilla/5.0"), (b"referer", b"https://x"), (b"sec-fetch-mode", b"cors"))


PROXIES = ("10.0.0.0/8", "fd00::/8", "192.0.2.1")
NETWORKS = [
    ("203.0.113.7", [], "203.0.113.7/32", "the socket's other end"),
    ("2001:db8:1:2:3:4:5:6", [], "2001:db8:1:2::/64", "a household of IPv6"),
    ("::ffff:203.0.113.7", [], "203.0.113.7/32", "IPv4 inside IPv6"),
    ("fe80::1%eth0", [], "fe80::/64", "a zone"),
    ("", [], "local", "a local socket"),
    ("testclient", [], "local", "no address"),
    ("203.0.113.7", [b"198.51.100.1"], "203.0.113.7/32", "nobody whom we trust said so"),
    ("10.0.0.1", [b"198.51.100.1"], "198.51.100.1/32", "a trusted hop said so"),
    ("::ffff:10.0.0.1", [b"198.51.100.1"], "198.51.100.1/32", "a trusted hop on a socket for both"),
    ("fd00::1", [b"2001:db8::1"], "2001:db8::/64", "IPv6 all the way"),
    ("10.0.0.1", [b"1.1.1.1, 198.51.100.1"], "198.51.100.1/32", "what the client put in front is ignored"),
    ("10.0.0.1", [b"1.1.1.1, 198.51.100.1, 10.0.0.2"], "198.51.100.1/32", "two trusted hops"),
    (
        "10.0.0.1",
        [b"1.1.1.1, 10.0.0.2, 198.51.100.1"],
        "198.51.100.1/32",
        "a trusted name behind a stranger is a claim",
    ),
    ("10.0.0.1", [b"1.1.1.1", b"198.51.100.1"], "198.51.100.1/32", "two lines are one list"),
    ("10.0.0.1", [b"10.0.0.3,10.0.0.2"], "10.0.0.3/32", "trusted to the end"),
    ("192.0.2.1", [b"198.51.100.1"], "198.51.100.1/32", "a single address as a network"),
    ("192.0.2.2", [b"198.51.100.1"], "192.0.2.2/32", "its neighbour is a stranger"),
    ("10.0.0.1", [], "10.0.0.1/32", "the hop said nothing"),
    ("10.0.0.1", [b""], "10.0.0.1/32", "as above"),
    ("10.0.0.1", [b"1.1.1.1, unknown"], "10.0.0.1/32", "a malformed hop ends the belief"),
    ("10.0.0.1", [b"1.1.1.1,"], "10.0.0.1/32", "an empty hop too"),
    ("10.0.0.1", [b"1.1.1.1, \xff"], "10.0.0.1/32", "and bytes"),
    ("10.0.0.1", [b"1.1.1.1, 300.1.1.1"], "10.0.0.1/32", "and no address"),
    ("10.0.0.1", [b"1.1.1.1, bad, 10.0.0.2"], "10.0.0.2/32", "back to the last that was believed"),
    ("10.0.0.1", [b"198.51.100.1:4711"], "198.51.100.1/32", "with a port, as Azure writes it"),
    ("10.0.0.1", [b"[2001:db8::1]:4711"], "2001:db8::/64", "in brackets"),
    ("10.0.0.1", [b"::ffff:198.51.100.1"], "198.51.100.1/32", "IPv4 inside IPv6"),
    ("10.0.0.1", [b" 198.51.100.1\t"], "198.51.100.1/32", "spaces"),
    ("10.0.0.1", [b"0:0:0:0:0:ffff:c633:6401"], "198.51.100.1/32", "in another spelling"),
]


@pytest.mark.parametrize(("peer", "lines", "network", "reason"), NETWORKS)
def test_network_is_the_first_untrusted_address_from_the_right(
    peer: str, lines: list[bytes], network: str, reason: str
) -> None:
    headers = [(b"x-forwarded-for", line) for line in lines]
    caller = identify(source(trusted=PROXIES), headers, peer)
    assert caller.id == f"anonymous::network-{network}", reason
    assert caller.by_network


def test_nobody_is_trusted_by_default() -> None:
    headers = [(b"x-forwarded-for", b"198.51.100.1"), (b"forwarded", b"for=1.1.1.1"), (b"x-real-ip", b"1.1.1.1")]
    assert identify(source(), headers, "127.0.0.1").id == "anonymous::network-127.0.0.1/32"
    caller = identify(source(trusted=("127.0.0.1",)), headers[1:], "127.0.0.1")
    assert caller.id == "anonymous::network-127.0.0.1/32", "other spellings of the claim are not read"


def test_shown_id_is_short_and_tells_callers_apart() -> None:
    shown = [identify(source(), [], peer).shown for peer in ("203.0.113.7", "203.0.113.8")]
    assert len(set(shown)) == 2
    assert all(len(text) == 12 and "203" not in text for text in shown)
