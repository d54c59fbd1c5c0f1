"""The issuer's keys: when they are asked for, how often at most, and what happens while the issuer fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest

from fal_proxy.errors import Refusal
from fal_proxy.identity.jwks import (
    MAX_KEYS,
    REFRESH_SECONDS,
    IssuerKeys,
    PublicKey,
    read_keys,
)
from fal_proxy.identity.published import RETRY_SECONDS, UNKNOWN_SECONDS
from fal_proxy.upstream.own_calls import OwnCalls
from support.issuer import DISCOVERY, JWKS, Issuer, ec_signer, issuing, rsa_signer
from support.peers import PATIENCE
from support.services import Clock, Reply

MAX_BYTES = 64 * 1024


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    """An issuer on loopback."""
    async with issuing() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
async def make(issuer: Issuer, clock: Clock) -> AsyncIterator[Callable[..., IssuerKeys]]:
    """Return a function that makes key caches, which are closed when the test is over."""
    made: list[IssuerKeys] = []

    def start(jwks_url: str = "", *, seconds: float = PATIENCE) -> IssuerKeys:
        calls = OwnCalls(seconds=seconds, max_bytes=MAX_BYTES, connections=2)
        made.append(IssuerKeys(calls, issuer.url, jwks_url, ("RS256", "ES256"), clock=clock))
        return made[-1]

    yield start
    for keys in made:
        await keys.close()


Make = Callable[..., IssuerKeys]


async def test_fifty_first_callers_cause_one_fetch(make: Make, issuer: Issuer) -> None:
    keys = make()
    issuer.service.gate.clear()
    finds = [asyncio.create_task(keys.find("rsa", "RS256")) for _ in range(50)]
    await issuer.service.arrived(1)
    finds[0].cancel()  # the one that began it may leave
    issuer.service.gate.set()
    found = await asyncio.gather(*finds, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert all(isinstance(key, PublicKey) and key.kid == "rsa" for key in found[1:])
    assert [asked.path for asked in issuer.service.asked] == [DISCOVERY, JWKS]


async def test_flood_of_unknown_kids_causes_a_bounded_number_of_fetches(
    make: Make, issuer: Issuer, clock: Clock
) -> None:
    keys = make()
    for step in range(600):
        assert await keys.find(f"made-up-{step}", "RS256") is None
        clock.now += 0.1
    assert issuer.fetches == 1 + 60 // UNKNOWN_SECONDS - 1
    many = [keys.find(f"at-once-{index}", "RS256") for index in range(100)]
    clock.now += UNKNOWN_SECONDS
    before = issuer.fetches
    assert set(await asyncio.gather(*many)) == {None}
    assert issuer.fetches == before + 1


async def test_rotated_key_is_picked_up_by_the_first_token_that_names_it(
    make: Make, issuer: Issuer, clock: Clock
) -> None:
    keys = make()
    assert await keys.find("rsa", "RS256") is not None
    issuer.keys = [rsa_signer(1).public("new")]
    clock.now += UNKNOWN_SECONDS
    found = await keys.find("new", "RS256")
    assert found is not None
    assert found.verifies("RS256", b"data", rsa_signer(1).sign(b"data"))
    assert await keys.find("rsa", "RS256") is None, "what the issuer withdrew is gone"


async def test_withdrawn_key_ends_with_the_next_refresh(make: Make, issuer: Issuer, clock: Clock) -> None:
    keys = make()
    assert await keys.find("rsa", "RS256") is not None
    issuer.keys = []
    clock.now += REFRESH_SECONDS - 1
    assert await keys.find("rsa", "RS256") is not None
    clock.now += 1
    assert await keys.find("rsa", "RS256") is None


FAILURES = [
    ("answers 500", JWKS, Reply(500), "the issuer is ill"),
    ("answers 204", JWKS, Reply(204, b""), "no keys in it"),
    ("redirects", JWKS, Reply(302, b"", ((b"location", b"/elsewhere"),)), "never followed"),
    ("answers HTML", JWKS, Reply(200, b"<html>"), "a login page"),
    ("answers a list", JWKS, Reply(200, b"[]"), "not a JWK Set"),
    ("answers keys that are no list", JWKS, Reply(200, b'{"keys": {}}'), "not a JWK Set"),
    ("answers without keys", JWKS, Reply(200, b"{}"), "not a JWK Set"),
    ("answers nested JSON", JWKS, Reply(200, b"[" * 50_000), "no recursion without end"),
    ("answers too much", JWKS, Reply(200, b" " * (MAX_BYTES + 1)), "bounded memory"),
    ("answers too many keys", JWKS, Reply(200, json.dumps({"keys": [{}] * (MAX_KEYS + 1)}).encode()), "bounded work"),
    ("has no discovery", DISCOVERY, Reply(404), "a wrong issuer URL"),
    ("discovery of another issuer", DISCOVERY, Reply(200, b'{"issuer": "https://evil.example"}'), "Discovery §4.3"),
    ("discovery without issuer", DISCOVERY, Reply(200, b'{"jwks_uri": "https://x.example"}'), "Discovery §4.3"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "path", "reply", "reason"), FAILURES, ids=[row[0] for row in FAILURES])
async def test_last_good_keys_stay_while_the_issuer(
    case: str, path: str, reply: Reply, reason: str, make: Make, issuer: Issuer, clock: Clock
) -> None:
    keys, late = make(), make()
    assert await keys.find("rsa", "RS256") is not None
    issuer.overrides[path] = reply
    clock.now += REFRESH_SECONDS
    assert await keys.find("rsa", "RS256") is not None, reason
    with pytest.raises(Refusal) as refused:
        await late.find("rsa", "RS256")
    assert (refused.value.status, refused.value.error_type) == (503, "identity_unavailable"), "never any keys"
    assert dict(refused.value.headers) == {b"retry-after": b"5"}
    del issuer.overrides[path]
    clock.now += RETRY_SECONDS
    assert await late.find("rsa", "RS256") is not None, "it recovers"


JWKS_URIS = [
    "http://keys.example/",
    "ftp://127.0.0.1/",
    "file:///etc/passwd",
    "//127.0.0.1/keys",
    "",
    None,
    1,
    "https://",
]


@pytest.mark.parametrize("uri", JWKS_URIS)
async def test_discovered_address_must_be_https_or_loopback(uri: object, make: Make, issuer: Issuer) -> None:
    issuer.document = {"issuer": issuer.url, "jwks_uri": uri}
    with pytest.raises(Refusal, match="cannot be fetched"):
        await make().find("rsa", "RS256")
    assert issuer.fetches == 0


async def test_slow_issuer_is_given_up_and_asked_again_later(make: Make, issuer: Issuer, clock: Clock) -> None:
    keys = make(seconds=0.5)
    issuer.service.gate.clear()
    for _ in range(20):
        with pytest.raises(Refusal, match="cannot be fetched"):
            await keys.find("rsa", "RS256")
    assert len(issuer.service.asked) == 1, "not asked again at once"
    issuer.service.gate.set()
    clock.now += RETRY_SECONDS
    assert await keys.find("rsa", "RS256") is not None


async def test_given_address_is_used_without_discovery(make: Make, issuer: Issuer) -> None:
    assert await make(issuer.url + JWKS).find("rsa", "RS256") is not None
    assert [asked.path for asked in issuer.service.asked] == [JWKS]


async def test_issuer_with_a_slash_at_its_end_is_discovered_at_one_slash(issuer: Issuer, clock: Clock) -> None:
    issuer.document["issuer"] = issuer.url + "/"
    calls = OwnCalls(seconds=PATIENCE, max_bytes=MAX_BYTES, connections=2)
    keys = IssuerKeys(calls, issuer.url + "/", "", ("RS256",), clock=clock)
    assert await keys.find("rsa", "RS256") is not None
    await keys.close()


ENTRIES: list[tuple[str, object]] = [
    ("no object", "key"),
    ("no kty", {"n": "AQAB", "e": "AQAB"}),
    ("a shared secret", {"kty": "oct", "k": "c2VjcmV0", "kid": "rsa", "alg": "RS256"}),
    ("an unknown kty", {"kty": "AKP", "pub": "AA"}),
    ("kty that is no text", {"kty": ["RSA"], "n": "AQAB", "e": "AQAB"}),
    ("kid that is no text", rsa_signer().public(None) | {"kid": 7}),
    ("n that is no text", rsa_signer().public("a") | {"n": 7}),
    ("n that is no base64", rsa_signer().public("a") | {"n": "*"}),
    ("n of a hundred thousand bits", rsa_signer().public("a") | {"n": "_" * 17_000}),
    ("e of one", rsa_signer().public("a") | {"e": "AQ"}),
    ("a point off the curve", ec_signer().public("a") | {"x": ec_signer().jwk["y"]}),
    ("a curve that is no text", ec_signer().public("a") | {"crv": ["P-256"]}),
    ("key_ops that is no list", rsa_signer().public("a") | {"key_ops": "verify"}),
]


@pytest.mark.parametrize(("case", "entry"), ENTRIES, ids=[row[0] for row in ENTRIES])
def test_entry_that_cannot_be_used_is_left_out_and_the_rest_stays(case: str, entry: object) -> None:
    data = json.dumps({"keys": [entry, rsa_signer().public("good")]}).encode()
    assert [key.kid for key in read_keys(data, frozenset(["RS256", "ES256"]))] == ["good"], case


async def test_two_fitting_keys_of_one_kid_are_nobodys(make: Make, issuer: Issuer) -> None:
    issuer.keys = [rsa_signer().public("same"), rsa_signer(1).public("same"), ec_signer().public("same")]
    keys = make()
    assert await keys.find("same", "RS256") is None
    assert await keys.find("same", "ES256") is not None, "RFC 7517 §4.5: other types may share a kid"
