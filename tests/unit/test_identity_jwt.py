"""Every way to make a token that must not be believed, and the few that must. The issuer is real, the clock is ours."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fal_proxy.exchange import Caller
from fal_proxy.identity import Identities, Presented
from fal_proxy.identity.jwt import MAX_TOKEN_CHARS, JwtBearers, TokenRefused
from fal_proxy.request import Request
from fal_proxy.settings import JwtSource
from support.bearers import Stage, fresh, staging
from support.issuer import AUDIENCE, ec_signer, encoded, issuing, rsa_signer, token
from support.services import Reply, Service, served

stage = staging
Mint = Callable[[Stage], str]

GOOD: list[tuple[str, Mint, str]] = [
    ("RS256", lambda stage: stage.mint(), "the commonest"),
    ("ES256", lambda stage: stage.mint(by="ec"), "in the default list"),
    ("EdDSA", lambda stage: stage.mint(by="ed"), "in the default list"),
    ("aud as a list", lambda stage: stage.mint(aud=["other", AUDIENCE]), "RFC 7519 §4.1.3 allows several"),
    ("no kid, one key of that type", lambda stage: stage.mint({"kid": None}), "nothing to confuse"),
    ("exp a little ago", lambda stage: stage.mint(exp=stage.clock.now - 20), "clocks differ"),
    ("nbf a little ahead", lambda stage: stage.mint(nbf=stage.clock.now + 20), "clocks differ"),
    ("exp with a fraction", lambda stage: stage.mint(exp=stage.clock.now + 0.5), "NumericDate may have one"),
    ("without iat", lambda stage: stage.mint(iat=None), "not required"),
    ("typ at+jwt", lambda stage: stage.mint({"typ": "at+jwt"}), "RFC 9068"),
    ("embedded jwk", lambda stage: stage.mint({"jwk": rsa_signer(1).public("rsa")}), "not looked at: ours counts"),
    ("x5c and x5u", lambda stage: stage.mint({"x5c": ["AA=="], "x5u": "https://evil.example/"}), "not looked at"),
]


async def test_token_of_our_issuer_for_us_is_accepted(subtests: pytest.Subtests) -> None:
    async with issuing() as issuer:
        for case, mint, reason in GOOD:
            with subtests.test(case):
                async with fresh(issuer) as stage:
                    caller = (await stage.source.accept(mint(stage))).caller
                expected = Caller(f"jwt:{issuer.url}:ada", "jwt", "default", ambient=False)
                assert caller == expected, reason


def _confused(stage: Stage) -> str:
    header = {"alg": "HS256", "kid": "rsa"}
    claims = stage.issuer.claims(stage.clock.now)
    return token(header, claims, lambda data: hmac.new(rsa_signer().pem, data, hashlib.sha256).digest())


def _unsigned(stage: Stage, algorithm: str, *, empty: bool = False) -> str:
    signature = b"" if empty else b"signed, really"
    return token({"alg": algorithm, "kid": "rsa"}, stage.issuer.claims(stage.clock.now), lambda data: signature)


def _raw(stage: Stage, header: bytes | None = None, claims: bytes | None = None) -> str:
    usual = json.dumps(stage.issuer.claims(stage.clock.now)).encode()
    return token(header or b'{"alg":"RS256","kid":"rsa"}', claims or usual, rsa_signer().sign)


def _twice(stage: Stage) -> bytes:
    return json.dumps(stage.issuer.claims(stage.clock.now, sub="ada"))[:-1].encode() + b',"sub":"root"}'


def _by_other_curve(stage: Stage) -> str:
    other = ec_signer(ec.SECP384R1, "ES256")
    stage.issuer.keys = [other.public("p384")]
    return token({"alg": "ES256", "kid": "p384"}, stage.issuer.claims(stage.clock.now), other.sign)


def _with_key(stage: Stage, **changes: Any) -> str:
    stage.issuer.keys = [rsa_signer().public("rsa", **changes)]
    return stage.mint()


def _by_small_key(stage: Stage) -> str:
    small = rsa_signer(9, 1024)
    stage.issuer.keys = [small.public("small")]
    return token({"alg": "RS256", "kid": "small"}, stage.issuer.claims(stage.clock.now), small.sign)


def _ambiguous(stage: Stage) -> str:
    stage.issuer.keys.append(rsa_signer(1).public("second"))
    return stage.mint({"kid": None})


def _swapped(stage: Stage) -> str:
    header, _, signature = stage.mint().split(".")
    return f"{header}.{encoded(json.dumps(stage.issuer.claims(stage.clock.now, sub='root')).encode())}.{signature}"


def _respelled(stage: Stage) -> str:
    text = stage.mint(by="ed")  # 64 bytes of signature: the last character has four spare bits
    spelled = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + spelled[spelled.index(text[-1]) ^ 1]


NO_KEY = "no key of the issuer"
FORGED = "its signature does not hold"
BAD: list[tuple[str, Mint, str]] = [
    ("alg none", lambda stage: _unsigned(stage, "none"), "its algorithm is not accepted"),
    ("alg none as RFC 7519 §6 writes it", lambda stage: _unsigned(stage, "none", empty=True), "it is not base64url"),
    ("alg nOnE", lambda stage: _unsigned(stage, "nOnE"), "its algorithm is not accepted"),
    ("alg empty", lambda stage: _unsigned(stage, ""), "its algorithm is not accepted"),
    ("empty signature", lambda stage: _unsigned(stage, "RS256", empty=True), "it is not base64url"),
    ("HS256 with the public key as the secret", _confused, "its algorithm is not accepted"),
    ("an algorithm that is not listed", lambda stage: stage.mint({"alg": "RS512"}), "its algorithm is not accepted"),
    ("alg that is no text", lambda stage: stage.mint({"alg": ["RS256"]}), "alg or kid is no text"),
    ("no alg", lambda stage: stage.mint({"alg": None}), "alg or kid is no text"),
    ("alg of another key type", lambda stage: stage.mint({"kid": "ec"}), NO_KEY),
    ("EdDSA over an RSA kid", lambda stage: stage.mint({"kid": "rsa"}, by="ed"), NO_KEY),
    ("ES256 with a key on P-384", _by_other_curve, NO_KEY),
    ("a key meant for another alg", lambda stage: _with_key(stage, alg="PS256"), NO_KEY),
    ("a key meant for encryption", lambda stage: _with_key(stage, use="enc"), NO_KEY),
    ("a key that may only sign", lambda stage: _with_key(stage, key_ops=["sign"]), NO_KEY),
    ("a key of 1024 bits", _by_small_key, NO_KEY),
    ("kid as a path", lambda stage: stage.mint({"kid": "../../../../dev/null"}), NO_KEY),
    ("kid as SQL", lambda stage: stage.mint({"kid": "x' UNION SELECT 'key"}), NO_KEY),
    ("kid that nobody has", lambda stage: stage.mint({"kid": "other"}), NO_KEY),
    ("kid with another case", lambda stage: stage.mint({"kid": "RSA"}), NO_KEY),
    ("kid that is no text", lambda stage: stage.mint({"kid": 1}), "alg or kid is no text"),
    ("kid null", lambda stage: _raw(stage, b'{"alg":"RS256","kid":null}'), "alg or kid is no text"),
    ("no kid, several keys", _ambiguous, NO_KEY),
    ("crit", lambda stage: stage.mint({"crit": ["exp"], "exp": 1}), "critical"),
    ("crit b64", lambda stage: stage.mint({"crit": ["b64"], "b64": False}), "critical"),
    ("crit empty", lambda stage: stage.mint({"crit": []}), "critical"),
    ("other claims under a good signature", _swapped, FORGED),
    ("another's key with our kid", lambda stage: token({"alg": "RS256", "kid": "rsa"}, stage.issuer.claims(stage.clock.now), rsa_signer(1).sign), FORGED),
    ("iss of another", lambda stage: stage.mint(iss="https://evil.example"), "iss is not"),
    ("iss that begins like ours", lambda stage: stage.mint(iss=stage.issuer.url + ".evil.example"), "iss is not"),
    ("iss with a slash more", lambda stage: stage.mint(iss=stage.issuer.url + "/"), "iss is not"),
    ("iss as a list", lambda stage: stage.mint(iss=[stage.issuer.url]), "iss is not"),
    ("no iss", lambda stage: stage.mint(iss=None), "iss is not"),
    ("aud of another", lambda stage: stage.mint(aud="other"), "aud is not"),
    ("aud that begins like ours", lambda stage: stage.mint(aud=AUDIENCE + "-staging"), "aud is not"),
    ("aud that ours begins with", lambda stage: stage.mint(aud=AUDIENCE[:3]), "aud is not"),
    ("aud list of others", lambda stage: stage.mint(aud=["other", AUDIENCE + "2"]), "aud is not"),
    ("aud list with an object", lambda stage: stage.mint(aud=[AUDIENCE, {}]), "aud is not"),
    ("aud list in a list", lambda stage: stage.mint(aud=[[AUDIENCE]]), "aud is not"),
    ("aud as an object", lambda stage: stage.mint(aud={AUDIENCE: 1}), "aud is not"),
    ("no aud", lambda stage: stage.mint(aud=None), "aud is not"),
    ("no exp", lambda stage: stage.mint(exp=None), "exp is missing"),
    ("exp null", lambda stage: _raw(stage, None, json.dumps(stage.issuer.claims(0) | {"exp": None}).encode()), "exp is no number"),
    ("exp past", lambda stage: stage.mint(exp=stage.clock.now - 31), "expired"),
    ("exp as text", lambda stage: stage.mint(exp="4000000000"), "exp is no number"),
    ("exp true", lambda stage: stage.mint(exp=True), "exp is no number"),
    ("exp 1e999", lambda stage: _raw(stage, None, json.dumps(stage.issuer.claims(0)).replace("300", "1e999").encode()), "exp is no number"),
    ("exp of 4000 digits", lambda stage: stage.mint(exp=10**4000), "exp is no number"),
    ("exp Infinity", lambda stage: stage.mint(exp=float("inf")), "Infinity is no JSON"),
    ("exp NaN", lambda stage: stage.mint(exp=float("nan")), "NaN is no JSON"),
    ("nbf ahead", lambda stage: stage.mint(nbf=stage.clock.now + 31), "not valid yet"),
    ("nbf as text", lambda stage: stage.mint(nbf="1"), "nbf is no number"),
    ("iat ahead", lambda stage: stage.mint(iat=stage.clock.now + 31), "issued in the future"),
    ("no sub", lambda stage: stage.mint(sub=None), "sub is no plain text"),
    ("sub empty", lambda stage: stage.mint(sub=""), "sub is no plain text"),
    ("sub a number", lambda stage: stage.mint(sub=1), "sub is no plain text"),
    ("sub too long", lambda stage: stage.mint(sub="a" * 256), "sub is no plain text"),
    ("sub with a line break", lambda stage: stage.mint(sub="ada\nroot"), "sub is no plain text"),
    ("sub with half a character", lambda stage: stage.mint(sub="\ud800"), "sub is no plain text"),
    ("plan as a list", lambda stage: stage.mint(plan=["pro"]), "plan is no plain text"),
    ("plan with half a character", lambda stage: stage.mint(plan="\udfff"), "plan is no plain text"),
    ("a megabyte", lambda stage: stage.mint(filler="a" * 1_000_000), "longer than"),
    ("a megabyte of dots", lambda stage: "." * 1_000_000, "longer than"),
    ("header nested without end", lambda stage: _raw(stage, b"[" * 5000), "it holds no JSON"),
    ("claims nested without end", lambda stage: _raw(stage, None, b'{"a":' * 1000), "it holds no JSON"),
    ("claims as a list", lambda stage: _raw(stage, None, b'["ada"]'), "no JSON object"),
    ("claims as text", lambda stage: _raw(stage, None, b'"ada"'), "no JSON object"),
    ("claims not UTF-8", lambda stage: _raw(stage, None, b'{"sub":"\xff"}'), "it holds no JSON"),
    ("header as a list", lambda stage: _raw(stage, b"[]"), "no JSON object"),
    ("a claim twice", lambda stage: _raw(stage, None, _twice(stage)), "appears twice"),
    ("alg twice", lambda stage: _raw(stage, b'{"alg":"none","alg":"RS256","kid":"rsa"}'), "appears twice"),
    ("two parts", lambda stage: stage.mint().rpartition(".")[0], "three parts"),
    ("four parts", lambda stage: stage.mint() + ".AAAA", "three parts"),
    ("five parts, a JWE", lambda stage: "AAAA.AAAA.AAAA.AAAA.AAAA", "three parts"),
    ("empty parts", lambda stage: "..", "not base64url"),
    ("padding", lambda stage: stage.mint() + "==", "not base64url"),
    ("the other alphabet", lambda stage: stage.mint(by="ed")[:-2] + "+/", "not base64url"),
    ("another spelling of the same signature", _respelled, "not base64url"),
    ("a space inside", lambda stage: stage.mint().replace(".", ". ", 1), "not base64url"),
    ("a line break at the end", lambda stage: stage.mint() + "\n", "not base64url"),
    ("letters beyond ASCII", lambda stage: stage.mint()[:-1] + "\xe9", "not base64url"),
]  # fmt: skip


async def test_token_is_refused_for_the_right_reason(subtests: pytest.Subtests) -> None:
    async with issuing() as issuer:
        for case, mint, reason in BAD:
            with subtests.test(case):
                async with fresh(issuer) as stage:
                    with pytest.raises(TokenRefused, match=reason):
                        await stage.source.accept(mint(stage))
                # Only what would be accepted if its signature holds makes us ask for keys.
                assert issuer.fetches == (reason in (NO_KEY, FORGED)), case


async def test_addresses_in_the_header_are_never_followed(stage: Stage) -> None:
    evil = rsa_signer(1)
    trap = Service(lambda asked: Reply(200, json.dumps({"keys": [evil.public("evil")]}).encode()))
    async with served(trap) as url:
        header = {"alg": "RS256", "kid": "evil", "jku": f"{url}/keys", "x5u": f"{url}/cert", "jwk": evil.public("evil")}
        with pytest.raises(TokenRefused, match=NO_KEY):
            await stage.source.accept(token(header, stage.issuer.claims(stage.clock.now), evil.sign))
    assert trap.asked == []


async def test_plan_comes_from_the_claim_that_the_settings_name(stage: Stage) -> None:
    assert (await stage.source.accept(stage.mint(plan="pro"))).caller.plan == "pro"
    named = JwtBearers(
        JwtSource(issuer=stage.issuer.url, audience=AUDIENCE, plan_claim="https://app/tier"),
        stage.source._keys,
        clock=stage.clock,
    )
    assert (await named.accept(stage.mint(None, plan="pro", **{"https://app/tier": "gold"}))).caller.plan == "gold"


async def test_longest_accepted_token_is_within_the_cap(stage: Stage) -> None:
    text = stage.mint(filler="a" * 5500)
    assert 7000 < len(text) <= MAX_TOKEN_CHARS
    assert (await stage.source.accept(text)).caller.source == "jwt"


@pytest.mark.parametrize("credential", [None, "", "fpk_abc", "opaque", "a.b", "Basic x"])
async def test_what_is_no_token_is_left_to_other_sources(credential: str | None, stage: Stage) -> None:
    request = Request("POST", b"/", None, [], "127.0.0.1", "http")
    assert await stage.source.identify(Presented(request, credential)) is None
    assert stage.issuer.service.asked == []


async def test_published_private_key_is_used_as_a_public_one(stage: Stage) -> None:
    stage.issuer.keys = [rsa_signer().public("rsa", d=base64.b64encode(b"x").decode(), p="AQ", q="AQ")]
    assert (await stage.source.accept(stage.mint())).caller.source == "jwt"


async def test_identities_ask_sources_in_order_and_take_the_first_that_knows(stage: Stage) -> None:
    request = Request("POST", b"/", None, [(b"authorization", b"Bearer " + stage.mint().encode())], "", "http")
    assert (await Identities([stage.source]).identify(request)).source == "jwt"
