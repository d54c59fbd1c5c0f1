"""The trusted header: whose word counts, and every way to forge it."""

from __future__ import annotations

import pytest

from fal_proxy.environment import Secret
from fal_proxy.errors import Refusal
from fal_proxy.exchange import Caller
from fal_proxy.identity import Presented, credential_of
from fal_proxy.identity.header import TrustedHeader
from fal_proxy.request import Request
from fal_proxy.settings import HeaderSource

SECRET = "0123456789abcdef0123456789abcdef"
NAME = b"x-forwarded-user"
ADA = (NAME, b"ada")
NETWORKS = ("10.0.0.0/8", "127.0.0.1", "2001:db8::/64")


async def _identify(
    headers: list[tuple[bytes, bytes]], *, peer: str = "10.1.2.3", secret_header: str = "", secret: str | None = None
) -> Caller | None:
    settings = HeaderSource(name="X-Forwarded-User", from_=NETWORKS, secret_header=secret_header)
    source = TrustedHeader(settings, None if secret is None else Secret(secret))
    request = Request("POST", b"/", None, headers, peer, "http")
    return await source.identify(Presented(request, credential_of(request)))


async def test_listed_peer_names_an_ambient_caller_on_the_default_plan() -> None:
    assert await _identify([ADA]) == Caller("header::ada", "header", "default", ambient=True)


PEERS = [
    ("10.1.2.3", True, "in a listed network"),
    ("127.0.0.1", True, "a listed address"),
    ("::ffff:10.1.2.3", True, "IPv4 inside IPv6 is the same address"),
    ("::ffff:127.0.0.1", True, "as above"),
    ("2001:db8::7", True, "a listed IPv6 network"),
    ("2001:db8::7%eth0", True, "with a zone"),
    ("11.0.0.1", False, "another network"),
    ("::ffff:11.0.0.1", False, "another network inside IPv6"),
    ("127.0.0.2", False, "another loopback address"),
    ("::1", False, "IPv6's loopback is not listed"),
    ("::10.1.2.3", False, "not the mapped form"),
    ("64:ff9b::10.1.2.3", False, "behind NAT64 is somebody else"),
    ("2001:db8:0:1::7", False, "the next network"),
    ("", False, "a local socket has no address"),
    ("unix", False, "no address"),
]


@pytest.mark.parametrize(("peer", "counts", "reason"), PEERS)
async def test_only_the_sockets_peer_decides_whether_the_field_counts(peer: str, counts: bool, reason: str) -> None:
    claims = [(b"x-forwarded-for", b"10.1.2.3"), (b"x-real-ip", b"10.1.2.3"), (b"forwarded", b"for=10.1.2.3")]
    assert (await _identify([ADA, *claims], peer=peer) is not None) == counts, reason


VALUES = [
    (b"", None, "empty is absent"),
    (b"  ", None, "empty is absent"),
    (b" ada ", "ada", "surrounding space is HTTP's"),
    (b"Ada Lovelace", "Ada Lovelace", "a space inside is not"),
    ("Åda".encode(), "Åda", "UTF-8"),
    (b"ada@example.com", "ada@example.com", "an address"),
    (b"a" * 255, "a" * 255, "the longest"),
    (b"a" * 256, 401, "too long"),
    (b"\xff", 401, "not UTF-8"),
    (b"a\x00b", 401, "not printable"),
    (b"a\tb", 401, "not printable"),
    ("a\u202eb".encode(), 401, "turns text around"),
]


@pytest.mark.parametrize(("value", "expected", "reason"), VALUES)
async def test_value_names_the_caller_only_if_it_is_plain(
    value: bytes, expected: str | int | None, reason: str
) -> None:
    try:
        caller = await _identify([(NAME, value)])
        got: str | int | None = None if caller is None else caller.id.removeprefix("header::")
    except Refusal as refusal:
        got = refusal.status
    assert got == expected, reason


FORGED = [
    ([ADA, ADA], "two lines, even equal ones"),
    ([ADA, (NAME, b"root")], "one is the client's"),
    ([ADA, (NAME, b"")], "one is the client's"),
    ([ADA, (b"x_forwarded_user", b"root")], "CGI makes one of them"),
    ([(b"x_forwarded_user", b"root")], "the proxy in front sets the other spelling"),
    ([(b"x-forwarded_user", b"root")], "half a twin"),
    ([(b"x_forwarded-user", b"root"), ADA], "half a twin"),
]


@pytest.mark.parametrize(("headers", "reason"), FORGED)
async def test_contradiction_from_a_trusted_peer_is_401(headers: list[tuple[bytes, bytes]], reason: str) -> None:
    with pytest.raises(Refusal) as refused:
        await _identify(headers)
    assert (refused.value.status, refused.value.error_type) == (401, "unidentified"), reason
    assert await _identify(headers, peer="11.0.0.1") is None, "from elsewhere the field means nothing"


SECRETS = [
    ([(b"x-secret", SECRET.encode())], True, "equal"),
    ([], False, "absent"),
    ([(b"x-secret", b"")], False, "empty"),
    ([(b"x-secret", SECRET[:-1].encode())], False, "a prefix"),
    ([(b"x-secret", SECRET.encode() + b"0")], False, "longer"),
    ([(b"x-secret", SECRET.upper().encode())], False, "another case"),
    ([(b"x-secret", b"\xff")], False, "no text"),
    ([(b"x-secret", SECRET.encode()), (b"x-secret", SECRET.encode())], False, "two lines"),
    ([(b"x_secret", SECRET.encode())], False, "another spelling"),
]


@pytest.mark.parametrize(("fields", "counts", "reason"), SECRETS)
async def test_shared_secret_must_come_along(fields: list[tuple[bytes, bytes]], counts: bool, reason: str) -> None:
    caller = await _identify([ADA, *fields], secret_header="X-Secret", secret=SECRET)
    assert (caller is not None) == counts, reason
    assert await _identify([ADA, *fields], secret_header="X-Secret", secret=SECRET, peer="11.0.0.1") is None
    assert await _identify([ADA, *fields], secret_header="X-Secret") is None, (
        "no secret is configured: nothing equals it"
    )


@pytest.mark.parametrize("credential", [b"Bearer nobody", b"Key fpk_x", b"Bearer "])
async def test_presented_credential_makes_the_header_step_aside(credential: bytes) -> None:
    assert await _identify([ADA, (b"authorization", credential)]) is None
    assert await _identify([ADA, (b"authorization", b"Basic YTpi")]) is not None, "no credential here"
